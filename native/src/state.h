// What one context knows while it skips: its sequences with their rules, the blocks of its current graph, the tokens of the
// batch under way, counters and trace. Owned by llama_context (a member that the patches add), made when a policy or a
// mark is first set; a context without one is upstream's own.

#pragma once

#include "ggml-cpp.h"
#include "policy.h"
#include "sequences.h"
#include "slot.h"

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <vector>

struct llama_ubatch;
struct pyskip_gather;
struct pyskip_profile;

// What a graph was built for. One built for more is not used for less: what nobody needs costs nothing.
enum pyskip_graph {
    PYSKIP_GRAPH_OFF,   // every token's policy is off: upstream's own, nothing is counted
    PYSKIP_GRAPH_DENSE, // upstream's own, its blocks are known and counted
    PYSKIP_GRAPH_JOINS, // joins decide, each for the next block
    PYSKIP_GRAPH_GATES, // gates decide for the tokens that have a profile, and act on what joins decided for the others
    PYSKIP_GRAPH_GATHER, // dense, and sums are gathered
};

struct pyskip_counters {
    int64_t              n_tokens = 0;
    std::vector<int64_t> evaluated; // by layer: FFNs
    std::vector<int64_t> skipped;
    std::vector<int64_t> attention_skipped; // the rest of n_tokens was evaluated
};

// What was counted of a block.
enum pyskip_outcome : uint8_t {
    PYSKIP_OUTCOME_NONE, // not computed: the last layer's, of a token without an output
    PYSKIP_OUTCOME_EVALUATED,
    PYSKIP_OUTCOME_SKIPPED,
};

// A generated token that was counted.
struct pyskip_counted {
    pyskip_trace_token          token;
    std::vector<pyskip_outcome> outcomes; // by pyskip_place()
};

// A draft (lossless.cpp): what decides for its tokens in the place of their sequences' rules. Nothing of them is counted or
// remembered.
struct pyskip_drafting {
    std::shared_ptr<const pyskip_rule> rule; // null: no draft
    pyskip_choice_ptr                  choice;
    int32_t                            index = 0; // among generated tokens
};

// The last batch that was decoded, from the look at its tokens to the end of the computation.
struct pyskip_timed {
    int64_t n_batches = 0; // so far
    int32_t n_tokens  = 0;
    double  seconds   = 0.0;
};

struct pyskip_trace_entry {
    pyskip_trace_token   token;
    std::vector<uint8_t> skipped;   // by layer: FFNs
    std::vector<uint8_t> attention; // by layer: attention skipped
    std::vector<float>   sim;       // by layer: of FFNs, NaN if it was not tested
    std::vector<float>   attention_sim;
};

struct pyskip_state {
    explicit pyskip_state(int32_t n_layer);

    pyskip_state(const pyskip_state &)             = delete;
    pyskip_state & operator=(const pyskip_state &) = delete;

    // Decide by this rule for a sequence, or for all (seq_id < 0), from the next batch on. All rules with a profile have the
    // same one. False, and nothing is changed, if another sequence has another.
    bool set_rule(int32_t seq_id, const pyskip_rule & next, std::shared_ptr<const pyskip_profile> next_profile);

    // Run dense and gather from the next batch on; nullptr: go back to the rules.
    void set_gather(pyskip_gather * next);

    // Read weights as they are needed from the next batch on: the model is larger than memory.
    void set_streaming(bool on);

    // A batch comes: what may happen to its tokens. False if the graph in use was built for something else.
    bool plan(const llama_ubatch & ubatch);

    // It is about to be computed on the graph that the slots are of; it was computed.
    void begin(const llama_ubatch & ubatch);
    void end(const llama_ubatch & ubatch, bool computed);

    // Called by every one of an operator's nth threads when its rows are done: true for the last of them, whose n_run
    // is then the sum of all.
    bool all_done(int64_t & n_run, int nth);

    // Set whether the region's nodes, and those of the stand-in, are computed.
    void arm(pyskip_slot & slot, bool run, bool stand_in);

    void set_trace(size_t capacity);
    void reset_counters(int32_t seq_id); // < 0: all
    void take_back(int32_t seq_id, int32_t pos);

    // Of a sequence, or of all (seq_id < 0).
    pyskip_counters counted(int32_t seq_id, pyskip_phase phase) const;

    uint8_t & skips(int32_t k, int32_t t) { return decisions[(size_t) k * tokens.size() + t]; }
    uint8_t   skips(int32_t k, int32_t t) const { return decisions[(size_t) k * tokens.size() + t]; }
    float &   sim(int32_t k, int32_t t) { return sims[(size_t) k * tokens.size() + t]; }
    float &   scale(int32_t k, int32_t t) { return scales[(size_t) k * tokens.size() + t]; }

    // Whether token t skips slot k's block for what came before it. If gates decide for the token, they do so later.
    bool skips_unasked(int32_t k, int32_t t) const {
        const pyskip_token & token = tokens[t];
        return !token.rule->asks_gates() &&
               pyskip_rule_skips(*token.rule, slots[k].block.sublayer, slots[k].block.il, token);
    }

    // The token of a row of slot k's join.
    int32_t token_of_row(const pyskip_slot & slot, int64_t row) const {
        return slot.n_rows == (int64_t) tokens.size() ? (int32_t) row : outputs[row];
    }
    // Whether slot k computes token t at all.
    bool has_token(const pyskip_slot & slot, int32_t t) const {
        return slot.n_rows == (int64_t) tokens.size() || is_output[t];
    }

    const int32_t n_layer;

    pyskip_sequences sequences;
    pyskip_drafting  drafting;
    pyskip_timed     timed;

    std::shared_ptr<const pyskip_profile> profile; // of every rule that has one
    std::shared_ptr<const pyskip_profile> retired; // the one before it
    pyskip_gather *                       gather = nullptr;

    bool           is_streaming = false;
    pyskip_weights first_weights; // read before the first region

    bool                     must_rebuild    = false;            // the graph in use names what has changed
    pyskip_graph             graph           = PYSKIP_GRAPH_OFF; // what the graph in use was built for
    pyskip_graph             wanted          = PYSKIP_GRAPH_OFF; // what the batch under way needs
    bool                     has_attention   = false;            // whether attention is conditional in the graph in use
    bool                     wants_attention = false;            // whether it must be for the batch under way
    std::vector<pyskip_slot> slots;
    ggml_context_ptr         extra; // the tensors that were added to the graph

    // the batch under way
    std::vector<pyskip_token> tokens;
    std::vector<uint8_t>      is_output;
    std::vector<int32_t>      outputs;   // tokens with an output, in order
    std::vector<uint8_t>      decisions; // [slots][tokens], 1: skip
    std::vector<float>        sims;      // [slots][tokens], cosines or scores
    std::vector<float>        scales;    // [slots][tokens], |z| / |x| where a cosine is

    size_t                         trace_capacity = 0;
    std::deque<pyskip_trace_entry> trace;

    std::atomic<bool> abort{ false };
    bool              has_abort_callback = false;

    // which layers can be skipped, and of which the attention; empty until somebody asked
    std::vector<uint8_t> skippable;
    std::vector<uint8_t> skippable_attention;
    bool                 is_shared = false; // layers lie on other back ends than the CPU, too

private:
    void         change_profile(std::shared_ptr<const pyskip_profile> next);
    pyskip_token plan_token(const llama_ubatch & ubatch, uint32_t i);
    void         look(int32_t t, std::vector<pyskip_outcome> & outcomes) const;
    void         count();
    void         record();
    void         remember(const llama_ubatch & ubatch);
    void         remember(const llama_ubatch & ubatch, int32_t t, pyskip_sublayer sublayer, float owed);
    void         measure(const llama_ubatch & ubatch);

    std::chrono::steady_clock::time_point   began;   // the batch under way
    std::vector<pyskip_sequences::rule_ptr> rules;   // of the batch under way: a hook may replace them
    std::vector<pyskip_choice_ptr>          choices; // likewise

    std::map<int32_t, std::array<pyskip_counters, 2>> counters; // by sequence and pyskip_phase
    std::deque<pyskip_counted>                        recent;   // generated tokens that may be taken back

    std::atomic<int64_t> n_run_all{ 0 };
    std::atomic<int>     n_done{ 0 };
};
