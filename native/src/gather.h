// Calibration's sums: what the closed-form fits need of a dense run, gathered while the graph runs, so that no
// activation is ever stored. Called by api.cpp and, while a graph is
// made, by state.cpp. No policy uses it.

#pragma once

#include "ggml-cpp.h"
#include "profile.h"
#include "pyskip.h"

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

struct ggml_tensor;
struct pyskip_slot;

// One layer's sums, of its FFN or of its attention, of f f' and f t', f being its n_row features and t its n_cross targets (enum pyskip_gather_kind).
struct pyskip_gather_layer {
    ggml_tensor *      gram  = nullptr;                     // [n_row, n_row]; none for neurons and steps
    ggml_tensor *      cross = nullptr;                     // [n_row, n_cross]
    std::vector<float> totals;                              // the cross of neurons and of steps, f being 1
    pyskip_activation  activation = PYSKIP_ACTIVATION_NONE; // of neurons

    double  energy   = 0.0;
    int64_t n_tokens = 0;

    pyskip_gather *     gather = nullptr;
    const pyskip_slot * slot   = nullptr; // of the graph in use
};

struct pyskip_gather {
    // Room for all layers is taken at once, zeroed. Throws std::bad_alloc.
    pyskip_gather(pyskip_gather_kind kind, pyskip_sublayer sublayer, int32_t n_layer, int64_t n_embd, int32_t warmup,
                  std::shared_ptr<const pyskip_profile> profile);

    // Of a layer's gate and stand-in; nullptr if there is none.
    const pyskip_stand_in * find(int32_t il) const { return profile ? profile->find(sublayer, il) : nullptr; }

    const pyskip_gather_kind kind;
    const pyskip_sublayer    sublayer;
    const int64_t            n_embd;
    const int32_t            warmup;

    std::shared_ptr<const pyskip_profile> profile;

    std::vector<float>               targets; // those that are given, by position
    std::vector<pyskip_gather_layer> layers;
    std::mutex                       mutex; // of energy and n_tokens

    ggml_context_ptr        tensors;
    ggml_backend_buffer_ptr sums;
};

// The nodes that add one batch of the slot's block to the sums, in `ctx`; to expand the graph with, in order. None if
// the block lacks the gathered quantity.
std::vector<ggml_tensor *> pyskip_gather_build(ggml_context * ctx, pyskip_gather & gather, const pyskip_slot & slot);
