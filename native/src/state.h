// What one context knows while it skips: its rule, its sequences, the blocks of its current graph, the tokens of the
// batch under way, counters and trace. Owned by llama_context (a member that the patches add), made when a policy or a
// mark is first set; a context without one is upstream's own.

#pragma once

#include "ggml-cpp.h"
#include "policy.h"
#include "sequences.h"
#include "slot.h"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

struct llama_ubatch;
struct pyskip_gather;
struct pyskip_profile;

struct pyskip_counters {
    int64_t              n_tokens = 0;
    std::vector<int64_t> evaluated; // by layer
    std::vector<int64_t> skipped;
};

struct pyskip_trace_entry {
    pyskip_trace_token   token;
    std::vector<uint8_t> skipped; // by layer
    std::vector<float>   sim;     // by layer, NaN if it was not tested
};

struct pyskip_state {
    explicit pyskip_state(int32_t n_layer);

    pyskip_state(const pyskip_state &)             = delete;
    pyskip_state & operator=(const pyskip_state &) = delete;

    // Decide by this rule, with this profile or none, from the next batch on.
    void set_rule(const pyskip_rule & next, std::shared_ptr<const pyskip_profile> next_profile);

    // Run dense and gather from the next batch on; nullptr: go back to the rule.
    void set_gather(pyskip_gather * next);

    // Read weights as they are needed from the next batch on: the model is larger than memory.
    void set_streaming(bool on);

    // A batch is about to be computed on the graph that the slots are of; it was computed.
    void begin(const llama_ubatch & ubatch);
    void end(bool computed);

    // Called by every one of an operator's nth threads when its rows are done: true for the last of them, whose n_run
    // is then the sum of all.
    bool all_done(int64_t & n_run, int nth);

    // Set whether the region's nodes, and those of the stand-in, are computed.
    void arm(pyskip_slot & slot, bool run, bool stand_in);

    void set_trace(size_t capacity);
    void reset_counters();

    // Whether the gates decide, or nobody does (a gathering context is dense); else the joins, each for the next block.
    bool gates_decide() const { return profile || gather; }

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

    std::shared_ptr<const pyskip_profile> profile; // the gates decide
    std::shared_ptr<const pyskip_profile> retired; // the one before it
    pyskip_gather *                       gather = nullptr;

    bool                     is_streaming = false;
    pyskip_weights           first_weights; // read before the first region

    bool                     must_rebuild = false; // the graph in use was built for another kind of rule
    std::vector<pyskip_slot> slots;
    ggml_context_ptr         extra; // the tensors that were added to the graph

    // the batch under way
    std::vector<pyskip_token>       tokens;
    std::vector<pyskip_trace_token> places;
    std::vector<uint8_t>            is_output;
    std::vector<int32_t>            outputs;   // tokens with an output, in order
    std::vector<uint8_t>            decisions; // [slots][tokens], 1: skip
    std::vector<float>              sims;      // [slots][tokens], cosines or scores

    pyskip_counters                counters[2]; // by pyskip_phase
    size_t                         trace_capacity = 0;
    std::deque<pyskip_trace_entry> trace;

    std::atomic<bool> abort{ false };
    bool              has_abort_callback = false;

    // which layers can be skipped; empty until somebody asked
    std::vector<uint8_t> skippable;

private:
    void count();
    void record();

    std::atomic<int64_t> n_run_all{ 0 };
    std::atomic<int>     n_done{ 0 };
};
