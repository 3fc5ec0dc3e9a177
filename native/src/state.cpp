#include "state.h"

#include "gate.h"
#include "gather.h"
#include "ggml-impl.h"
#include "ggml.h"
#include "join.h"
#include "llama-batch.h"
#include "profile.h"

#include <algorithm>
#include <limits>

// Tensors and leafs that a slot adds to a graph, at most: gate, packed rows, a view of them, three of a stand-in, and its
// three weights; a gather as many.
static constexpr size_t MAX_EXTRA = 12;

pyskip_state::pyskip_state(int32_t n_layer) : n_layer(n_layer) {
    reset_counters();
}

void pyskip_state::set_rule(const pyskip_rule & next, std::shared_ptr<const pyskip_profile> next_profile) {
    const bool was_off = rule.type == PYSKIP_POLICY_OFF;
    const bool is_off  = next.type == PYSKIP_POLICY_OFF;

    // one graph serves every rule but off, which has upstream's own, and those with a profile, whose gates it holds
    must_rebuild = must_rebuild || was_off != is_off || profile != next_profile;
    rule         = next;
    if (profile != next_profile) {
        retired = std::move(profile); // the graph in use may still name its weights
        profile = std::move(next_profile);
    }
}

void pyskip_state::set_gather(pyskip_gather * next) {
    must_rebuild = true;
    gather       = next;
}

void pyskip_state::set_streaming(bool on) {
    must_rebuild = must_rebuild || is_streaming != on;
    is_streaming = on;
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
    extra.reset();
    if (rule.type == PYSKIP_POLICY_OFF && !gather) {
        return;
    }
    std::vector<pyskip_block> blocks = pyskip_graph_find(gf);
    if (profile || gather) {
        const ggml_init_params params = { blocks.size() * MAX_EXTRA * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/ true };
        extra.reset(ggml_init(params));
    }
    slots.reserve(blocks.size()); // the operators point into it
    for (pyskip_block & block : blocks) {
        if (block.il >= n_layer || !rows_are_tokens(block, ubatch)) {
            continue; // a layer past the model's own (multi-token prediction), or a stream of another shape: dense
        }
        pyskip_slot & slot = slots.emplace_back();
        slot.k             = (int32_t) slots.size() - 1;
        slot.n_rows        = ggml_nrows(block.join);
        slot.state         = this;
        slot.governed      = block.region;
        slot.block         = std::move(block);
        attach_slot(gf, slot);
    }
    if (is_streaming) {
        pyskip_stream_plan(gf, slots, first_weights);
    }
}

// Room in the graph for what a slot adds to it. llama.cpp sizes graphs for 8 nodes a tensor and uses about 3.
static bool has_room(const ggml_cgraph * gf) {
    return gf->n_nodes + gf->n_leafs + (int) MAX_EXTRA <= gf->size;
}

void pyskip_state::attach_slot(ggml_cgraph * gf, pyskip_slot & slot) {
    const bool has_input = slot.block.input && slot.n_rows > 0 && has_room(gf);

    std::vector<ggml_tensor *> group;
    const auto                 expand = [&](const std::vector<ggml_tensor *> & made) {
        const int n_old = gf->n_nodes;
        for (ggml_tensor * t : made) {
            ggml_build_forward_expand(gf, t);
        }
        group.insert(group.end(), gf->nodes + n_old, gf->nodes + gf->n_nodes);
    };
    if (gather) {
        if (has_input) {
            expand(pyskip_gather_build(extra.get(), *gather, slot));
            pyskip_graph_place(gf, slot.block.join, group);
        }
    } else if (profile && has_input && profile->layers[slot.block.il].gate) {
        slot.own = &profile->layers[slot.block.il];
        for (ggml_tensor * node : slot.block.prelude) {
            slot.governed.erase(std::find(slot.governed.begin(), slot.governed.end(), node));
        }
        expand(pyskip_gate_build(extra.get(), slot));
        group.insert(group.end(), slot.governed.begin(), slot.governed.end());
        pyskip_graph_place(gf, slot.block.join, group);
    }
    pyskip_join_install(slot);
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
        places[i]        = { ubatch.seq_id[i][0], ubatch.pos[i] };
        tokens[i].index  = generated_index(sequences, ubatch, i);
        tokens[i].seq_id = places[i].seq_id;
        tokens[i].pos    = places[i].pos;
        is_output[i]    = ubatch.output && ubatch.output[i];
        if (is_output[i]) {
            outputs.push_back((int32_t) i);
        }
    }
    decisions.assign(slots.size() * n_tokens, 0);
    sims.assign(slots.size() * n_tokens, std::numeric_limits<float>::quiet_NaN());

    n_run_all = 0;
    n_done    = 0;

    if (is_streaming) {
        pyskip_stream_in(first_weights);
    }
    if (gather) {
        return;
    }
    if (profile) {
        for (pyskip_slot & slot : slots) {
            pyskip_gate_restore(slot);
        }
        return;
    }
    int64_t n_run = 0;
    for (uint32_t i = 0; i < n_tokens; ++i) {
        skips(0, i) = pyskip_rule_skips(rule, slots[0].block.il, tokens[i]);
        n_run += has_token(slots[0], i) && !skips(0, i);
    }
    arm(slots[0], n_run > 0, false);
}

static void set_computed(const std::vector<ggml_tensor *> & nodes, bool is_computed) {
    for (ggml_tensor * node : nodes) {
        if (is_computed) {
            node->flags |= GGML_TENSOR_FLAG_COMPUTE;
        } else {
            node->flags &= ~GGML_TENSOR_FLAG_COMPUTE;
        }
    }
}

// A node without GGML_TENSOR_FLAG_COMPUTE is passed over by every thread before its barrier, weights unread
// (ggml_graph_compute_thread). Only a join of an earlier layer or the block's own gate changes it, and a barrier lies
// between.
void pyskip_state::arm(pyskip_slot & slot, bool run, bool stand_in) {
    if (slot.is_armed != run) {
        set_computed(slot.governed, run);
        slot.is_armed = run;
    }
    if (slot.is_standing != stand_in) {
        set_computed(slot.stand_in, stand_in);
        slot.is_standing = stand_in;
    }
    if (is_streaming) {
        if (run) {
            pyskip_stream_in(slot.region_weights);
        }
        pyskip_stream_in(slot.next_weights);
    }
}

bool pyskip_state::all_done(int64_t & n_run, int nth) {
    if (nth == 1) {
        return true;
    }
    n_run_all.fetch_add(n_run);
    if (n_done.fetch_add(1) < nth - 1) {
        return false;
    }
    n_run     = n_run_all.load();
    n_run_all = 0;
    n_done    = 0;
    return true;
}

void pyskip_state::end(bool computed) {
    if (slots.empty() || !computed || gather) {
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
