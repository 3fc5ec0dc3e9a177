#include "state.h"

#include "ggml.h"
#include "join.h"
#include "llama-batch.h"

#include <algorithm>
#include <limits>

pyskip_state::pyskip_state(int32_t n_layer) : n_layer(n_layer) {
    reset_counters();
}

void pyskip_state::set_rule(const pyskip_rule & next) {
    const bool was_off = rule.type == PYSKIP_POLICY_OFF;
    const bool is_off  = next.type == PYSKIP_POLICY_OFF;

    // the same graph serves every rule but off, which has upstream's own
    must_rebuild = must_rebuild || was_off != is_off;
    rule         = next;
}

// Whether the rows of the join are the batch's tokens, or those of them that have an output.
static bool rows_are_tokens(const pyskip_block & block, const llama_ubatch & ubatch) {
    const int64_t n_rows    = ggml_nrows(block.join);
    const int64_t n_outputs = ubatch.output ? std::count_if(ubatch.output, ubatch.output + ubatch.n_tokens,
                                                            [](int8_t output) { return output != 0; }) : 0;
    return n_rows == (int64_t) ubatch.n_tokens || n_rows == n_outputs;
}

void pyskip_state::attach(ggml_cgraph * gf, const llama_ubatch & ubatch) {
    slots.clear();
    if (rule.type == PYSKIP_POLICY_OFF) {
        return;
    }
    std::vector<pyskip_block> blocks = pyskip_graph_find(gf);
    slots.reserve(blocks.size()); // the joins point into it
    for (pyskip_block & block : blocks) {
        if (block.il >= n_layer || !rows_are_tokens(block, ubatch)) {
            continue; // a layer past the model's own (multi-token prediction), or a stream of another shape: dense
        }
        pyskip_slot & slot = slots.emplace_back();
        slot.k             = (int32_t) slots.size() - 1;
        slot.n_rows        = ggml_nrows(block.join);
        slot.state         = this;
        slot.block         = std::move(block);
        pyskip_join_install(slot);
    }
}

// The index of token i among the generated ones: of all its sequences the one that makes it densest.
static int32_t generated_index(const pyskip_sequences & sequences, const llama_ubatch & ubatch, uint32_t i) {
    int32_t index = std::numeric_limits<int32_t>::max();
    for (int32_t s = 0; s < ubatch.n_seq_id[i]; ++s) {
        index = std::min(index, sequences.index(ubatch.seq_id[i][s], ubatch.pos[i]));
    }
    return index;
}

void pyskip_state::begin(const llama_ubatch & ubatch) {
    if (slots.empty()) {
        return;
    }
    const size_t n_tokens = ubatch.n_tokens;

    tokens.assign(n_tokens, pyskip_token());
    places.resize(n_tokens);
    is_output.resize(n_tokens);
    outputs.clear();
    for (uint32_t i = 0; i < n_tokens; ++i) {
        tokens[i].index = generated_index(sequences, ubatch, i);
        places[i]       = { ubatch.seq_id[i][0], ubatch.pos[i] };
        is_output[i]    = ubatch.output && ubatch.output[i];
        if (is_output[i]) {
            outputs.push_back((int32_t) i);
        }
    }
    decisions.assign(slots.size() * n_tokens, 0);
    sims.assign(slots.size() * n_tokens, std::numeric_limits<float>::quiet_NaN());

    n_run_next = 0;
    n_done     = 0;

    int64_t n_run = 0;
    for (uint32_t i = 0; i < n_tokens; ++i) {
        skips(0, i) = pyskip_rule_skips(rule, slots[0].block.il, tokens[i]);
        n_run += has_token(slots[0], i) && !skips(0, i);
    }
    arm(slots[0], n_run > 0);
}

// A node without GGML_TENSOR_FLAG_COMPUTE is passed over by every thread before its barrier, weights unread
// (ggml_graph_compute_thread). Only a join of an earlier layer changes it, and a barrier lies between.
void pyskip_state::arm(pyskip_slot & slot, bool run) {
    if (slot.is_armed == run) {
        return;
    }
    for (ggml_tensor * node : slot.block.region) {
        if (run) {
            node->flags |= GGML_TENSOR_FLAG_COMPUTE;
        } else {
            node->flags &= ~GGML_TENSOR_FLAG_COMPUTE;
        }
    }
    slot.is_armed = run;
}

void pyskip_state::arm_next(const pyskip_slot & slot, int64_t n_run, int nth) {
    const size_t next = (size_t) slot.k + 1;
    if (next == slots.size()) {
        return;
    }
    if (nth == 1) {
        arm(slots[next], n_run > 0);
        return;
    }
    n_run_next.fetch_add(n_run);
    if (n_done.fetch_add(1) == nth - 1) {
        arm(slots[next], n_run_next.load() > 0);
        n_run_next = 0;
        n_done     = 0;
    }
}

void pyskip_state::end(bool computed) {
    if (slots.empty() || !computed) {
        return;
    }
    count();
    if (trace_capacity > 0) {
        record();
    }
}

void pyskip_state::count() {
    for (size_t t = 0; t < tokens.size(); ++t) {
        pyskip_counters & c = counters[tokens[t].index >= 0 ? PYSKIP_PHASE_GENERATED : PYSKIP_PHASE_PROMPT];
        c.n_tokens++;
        int32_t il = 0;
        for (const pyskip_slot & slot : slots) {
            for (; il < slot.block.il; ++il) {
                c.evaluated[il]++; // a layer without a block
            }
            if (has_token(slot, (int32_t) t)) {
                (skips(slot.k, (int32_t) t) ? c.skipped : c.evaluated)[il]++;
            }
            il++;
        }
        for (; il < n_layer; ++il) {
            c.evaluated[il]++;
        }
    }
}

void pyskip_state::record() {
    for (size_t t = 0; t < tokens.size(); ++t) {
        if (tokens[t].index < 0) {
            continue;
        }
        if (trace.size() == trace_capacity) {
            trace.pop_front();
        }
        pyskip_trace_entry & entry = trace.emplace_back();
        entry.token                = places[t];
        entry.skipped.assign(n_layer, 0);
        entry.sim.assign(n_layer, std::numeric_limits<float>::quiet_NaN());
        for (const pyskip_slot & slot : slots) {
            entry.skipped[slot.block.il] = skips(slot.k, (int32_t) t);
            entry.sim[slot.block.il]     = sim(slot.k, (int32_t) t);
        }
    }
}

void pyskip_state::set_trace(size_t capacity) {
    trace_capacity = capacity;
    trace.clear();
}

void pyskip_state::reset_counters() {
    for (pyskip_counters & c : counters) {
        c.n_tokens = 0;
        c.evaluated.assign(n_layer, 0);
        c.skipped.assign(n_layer, 0);
    }
}
