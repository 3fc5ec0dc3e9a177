// What one context knows while it skips: its rule, its sequences, the blocks of its current graph, the tokens of the
// batch under way, counters and trace. Owned by llama_context (a member that the patches add), made when a policy or a
// mark is first set; a context without one is upstream's own.

#pragma once

#include "graph-pass.h"
#include "policy.h"
#include "sequences.h"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

struct llama_ubatch;
struct pyskip_state;

// A block of the graph in use, as its join operator sees it. Its address is the operator's userdata.
struct pyskip_slot {
    pyskip_block   block;
    pyskip_state * state    = nullptr;
    int32_t        k        = 0; // its place among the slots
    int64_t        n_rows   = 0; // rows of the join: all tokens of the batch, or only those with an output
    bool           is_armed = true; // whether the region's nodes are set to be computed
};

struct pyskip_counters {
    int64_t              n_tokens = 0;
    std::vector<int64_t> evaluated; // by layer
    std::vector<int64_t> skipped;
};

struct pyskip_trace_entry {
    pyskip_trace_token   token;
    std::vector<uint8_t> skipped; // by layer
    std::vector<float>   sim;     // by layer, NaN where it was not tested
};

struct pyskip_state {
    explicit pyskip_state(int32_t n_layer);

    pyskip_state(const pyskip_state &)             = delete;
    pyskip_state & operator=(const pyskip_state &) = delete;

    // Decide by this rule from the next batch on.
    void set_rule(const pyskip_rule & next);

    // A graph was built for a batch of this shape: make its blocks conditional. With the rule off it stays as it is.
    void attach(ggml_cgraph * gf, const llama_ubatch & ubatch);

    // A batch is about to be computed on the attached graph; it was computed.
    void begin(const llama_ubatch & ubatch);
    void end(bool computed);

    // The rows [i0, i1) of slot k's join are done; called by every thread of the join, the last one arms slot k + 1.
    void arm_next(const pyskip_slot & slot, int64_t n_run, int nth);

    void set_trace(size_t capacity);
    void reset_counters();

    uint8_t & skips(int32_t k, int32_t t) { return decisions[(size_t) k * tokens.size() + t]; }
    float &   sim(int32_t k, int32_t t) { return sims[(size_t) k * tokens.size() + t]; }

    // The token of a row of slot k's join.
    int32_t token_of_row(const pyskip_slot & slot, int64_t row) const {
        return slot.n_rows == (int64_t) tokens.size() ? (int32_t) row : outputs[row];
    }
    // Whether slot k computes token t at all.
    bool has_token(const pyskip_slot & slot, int32_t t) const {
        return slot.n_rows == (int64_t) tokens.size() || is_output[t];
    }

    const int32_t n_layer;

    pyskip_rule      rule;
    pyskip_sequences sequences;

    bool                     must_rebuild = false; // the graph in use was built for another kind of rule
    std::vector<pyskip_slot> slots;

    // the batch under way
    std::vector<pyskip_token>       tokens;
    std::vector<pyskip_trace_token> places;
    std::vector<uint8_t>            is_output;
    std::vector<int32_t>            outputs;   // tokens with an output, in order
    std::vector<uint8_t>            decisions; // [slots][tokens], 1: skip
    std::vector<float>              sims;      // [slots][tokens]

    pyskip_counters                counters[2]; // by pyskip_phase
    size_t                         trace_capacity = 0;
    std::deque<pyskip_trace_entry> trace;

    std::atomic<bool> abort{ false };
    bool              has_abort_callback = false;

    // which layers can be skipped; empty until somebody asked
    std::vector<uint8_t> skippable;

private:
    void arm(pyskip_slot & slot, bool run);
    void count();
    void record();

    std::atomic<int64_t> n_run_next{ 0 };
    std::atomic<int>     n_done{ 0 };
};
