// The pace that one request's tokens keep: what each took goes to a controller (native/src/pace.cpp), and the sequence's
// policy follows what it says. Only the thread that decodes calls it.

#pragma once

#include "pyskip.h"
#include "request.h"

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>

struct llama_context;

struct pyskip_pace_deleter {
    void operator()(pyskip_pace * pace) const { pyskip_pace_free(pace); }
};

using pyskip_pace_ptr = std::unique_ptr<pyskip_pace, pyskip_pace_deleter>;

// None if none is asked for. Throws pyskip_bad_spec for bounds that leave nothing to move.
pyskip_pace_ptr pyskip_pace_make(const pyskip_pacing & pacing, const pyskip_spec & floor);

class pyskip_turn_pace {
public:
    // A task begins, whose policy is in force. It stands at its floor.
    void begin(llama_context * ctx, int32_t seq_id, const pyskip_request & request, int32_t warmup);

    // A token was sampled.
    void sampled();

    // None if no pace is kept.
    std::optional<pyskip_pace_stats> stats() const;

private:
    llama_context * ctx    = nullptr;
    int32_t         seq_id = 0;
    pyskip_spec     floor;
    pyskip_pace_ptr pace;
    int64_t         n_dense = 0; // tokens to come whose decode no rate has a say in: the prompt's, and the warm-up

    std::chrono::steady_clock::time_point last; // token
};
