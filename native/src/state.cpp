#include "state.h"

#include "llama-batch.h"
#include "stream-in.h"

#include <algorithm>
#include <limits>

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
            slot.restore();
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

void pyskip_state::arm(pyskip_slot & slot, bool run, bool stand_in) {
    slot.arm(run, stand_in);
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
