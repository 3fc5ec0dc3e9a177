#include "turn-pace.h"

#include "llama.h"
#include "model.h"

#include <cstdio>

pyskip_pace_ptr pyskip_pace_make(const pyskip_pacing & pacing, const pyskip_spec & floor) {
    if (pacing.target_tps <= 0.0) {
        return nullptr;
    }
    char          line[512] = "";
    pyskip_pace * pace      = nullptr;
    if (pyskip_pace_new(pacing.target_tps, pacing.max_skip, floor.rate.value, &pace, line, sizeof(line)) !=
        PYSKIP_STATUS_OK) {
        throw pyskip_bad_spec(line);
    }
    return pyskip_pace_ptr(pace);
}

void pyskip_turn_pace::begin(llama_context * context, int32_t seq, const pyskip_request & request, int32_t warmup) {
    ctx     = context;
    seq_id  = seq;
    floor   = request.spec;
    pace    = pyskip_pace_make(request.pacing, floor);
    n_dense = 1 + (int64_t) warmup;
}

// The time between two tokens is what the reader of a stream sees: what others of the same batches cost is in it, and of a
// draft's tokens that were accepted together all but the first cost nothing.
void pyskip_turn_pace::sampled() {
    if (!pace) {
        return;
    }
    const auto   now     = std::chrono::steady_clock::now();
    const double seconds = std::chrono::duration<double>(now - last).count();
    last                 = now;
    if (n_dense > 0) {
        n_dense--;
        return;
    }
    if (!pyskip_pace_add(pace.get(), seconds, 1)) {
        return;
    }
    char                line[4096 + 512] = "";
    const pyskip_spec   spec             = floor.at_rate(stats()->rate);
    const pyskip_policy policy           = pyskip_server_model().policy(spec);
    if (pyskip_seq_set_policy(ctx, seq_id, &policy, line, sizeof(line)) != PYSKIP_STATUS_OK) {
        std::fprintf(stderr, "pyskip: the pace is no longer kept: %s\n", line); // the old rate is still in force
        pace.reset();
    }
}

std::optional<pyskip_pace_stats> pyskip_turn_pace::stats() const {
    if (!pace) {
        return std::nullopt;
    }
    pyskip_pace_stats stats{};
    pyskip_pace_get(pace.get(), &stats);
    return stats;
}
