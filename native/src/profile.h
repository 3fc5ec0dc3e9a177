// A profile: for each layer a gate and a stand-in of its FFN, and maybe of its attention, fitted by `pyskip calibrate` for one model, read from a GGUF file by
// upstream's reader. Checked whole before a byte is allocated for its weights. docs/calibration.md lists its fields.
//
// Called by api.cpp; the gate and the stand-in operators read it (gate.cpp, stand-in.cpp). Policies
// that have one: profile, prompt, random, static.

#pragma once

#include "ggml-cpp.h"
#include "hold.h"
#include "pyskip.h"

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

struct ggml_tensor;

// One sublayer's gate and stand-in, weights in the CPU's memory. Kinds: linear (down, then up; up alone if it has full
// rank), gated (activation(gate) * up, then down), none (bias alone). Of attention always linear.
struct pyskip_stand_in {
    const float * gate = nullptr; // [n_embd + 2]: on the normed input, on log(|x|), constant; nullptr: never skipped
    const float * bias = nullptr; // [n_embd]

    ggml_tensor * down    = nullptr; // linear: [n_embd, rank]; gated: [width, n_embd]
    ggml_tensor * up      = nullptr; // linear: [rank, n_embd], or [n_embd, n_embd] without down
    ggml_tensor * gate_up = nullptr; // gated: [n_embd, 2*width]

    pyskip_activation activation = PYSKIP_ACTIVATION_SILU; // gated
    bool              is_normed  = false;                  // gated: `down` reads hidden values of root mean square 1

    int64_t bytes = 0; // what skipping one block reads in place of the block
    int64_t rank  = 0; // or width
};

struct pyskip_profile {
    pyskip_profile_info info{};
    int64_t             gate_bytes = 0; // of one gate

    // by sublayer; of attention, whose last layer's always runs, empty if the profile is of FFNs alone
    std::array<std::vector<pyskip_profile_point>, 2> curves;
    std::array<std::vector<pyskip_stand_in>, 2>      stand_ins; // [il]

    // by enum pyskip_static_by
    std::array<std::vector<pyskip_static_step>, 3> static_steps;

    // nullptr if it is never skipped
    const pyskip_stand_in * find(pyskip_sublayer sublayer, int32_t il) const {
        const std::vector<pyskip_stand_in> & layers = stand_ins[sublayer];
        return (size_t) il < layers.size() && layers[il].gate ? &layers[il] : nullptr;
    }

    ggml_context_ptr        tensors;
    ggml_backend_buffer_ptr packed; // weights that pyskip's kernels serve; empty under PYSKIP_KERNELS_UPSTREAM
    ggml_backend_buffer_ptr weights;

    std::shared_ptr<pyskip_profile> self; // the caller's share of it, until pyskip_profile_free()
};

// False with a line in `error` that names the file and the field.
bool pyskip_profile_read(const char * path, pyskip_profile & profile, std::string & error);

// Of profile-curve.cpp: what is to be expected at a rate, straight between the curve's points, and where pyskip_hold_start()
// has the threshold. False with a line in `error` beyond the last point, and of attention if the profile has none.
bool pyskip_profile_at(const pyskip_profile & profile, pyskip_sublayer sublayer, float rate,
                       pyskip_profile_point & point, std::string & error);

std::vector<pyskip_hold_point> pyskip_profile_thresholds(const pyskip_profile & profile, pyskip_sublayer sublayer);

// Of profile-weights.cpp: memory for all tensors, laid out for the kernels that pyskip_kernels_get() names.
void pyskip_profile_alloc(pyskip_profile & profile);

// The first row of a weight as the file holds it with a value that is not finite; -1 if there is none.
int64_t pyskip_profile_row_not_finite(const ggml_tensor * t, const char * data);
