#include "state.h"

#include "llama-batch.h"
#include "stream-in.h"

#include <algorithm>
#include <cmath>
#include <limits>

static constexpr float NOT_A_NUMBER = std::numeric_limits<float>::quiet_NaN();

pyskip_state::pyskip_state(int32_t n_layer) : n_layer(n_layer) {}

bool pyskip_state::set_rule(int32_t seq_id, const pyskip_rule & next,
                            std::shared_ptr<const pyskip_profile> next_profile) {
    if (next_profile && next_profile != profile) {
        if (seq_id >= 0 && sequences.any_has_gates(seq_id)) {
            return false;
        }
        change_profile(std::move(next_profile));
    }
    sequences.set_rule(seq_id, std::make_shared<pyskip_rule>(next));
    if (profile && !sequences.any_has_gates(-1)) {
        change_profile(nullptr);
    }
    return true;
}

void pyskip_state::change_profile(std::shared_ptr<const pyskip_profile> next) {
    if (profile) {
        retired = std::move(profile); // the graph in use may still name its weights
    }
    profile      = std::move(next);
    must_rebuild = true;
}

void pyskip_state::set_gather(pyskip_gather * next) {
    must_rebuild = true;
    gather       = next;
}

void pyskip_state::set_streaming(bool on) {
    must_rebuild = must_rebuild || is_streaming != on;
    is_streaming = on;
}

// A token of several sequences is decided by the first of them, as densely as any of them asks for.
pyskip_token pyskip_state::plan_token(const llama_ubatch & ubatch, uint32_t i) {
    pyskip_token  token;
    const int32_t seq_id = ubatch.seq_id[i][0];
    token.seq_id         = seq_id;
    token.pos            = ubatch.pos[i];
    token.index          = std::numeric_limits<int32_t>::max();
    if (drafting.rule) {
        token.index  = drafting.index;
        rules[i]     = drafting.rule;
        choices[i]   = drafting.choice;
        token.rule   = rules[i].get();
        token.choice = choices[i].get();
        return token;
    }
    rules[i] = sequences.rule(seq_id);
    for (int32_t s = 0; s < ubatch.n_seq_id[i]; ++s) {
        token.index      = std::min(token.index, sequences.index(ubatch.seq_id[i][s], token.pos));
        const auto & own = sequences.rule(ubatch.seq_id[i][s]);
        if (own != rules[i] && !(*own == *rules[i])) {
            rules[i] = std::make_shared<pyskip_rule>(); // off
        }
    }
    token.rule   = rules[i].get();
    choices[i]   = token.rule->type == PYSKIP_POLICY_OFF ? nullptr : sequences.choice(seq_id, token.pos);
    token.choice = choices[i].get();
    if (token.index < 0) {
        token.ahead = std::max(sequences.from(seq_id) - token.pos, 0);
    }
    for (const pyskip_sublayer sublayer : { PYSKIP_SUBLAYER_FFN, PYSKIP_SUBLAYER_ATTENTION }) {
        const float start         = pyskip_rule_threshold(*token.rule, sublayer, token);
        const float owed          = pyskip_rule_owes(*token.rule, sublayer, token);
        token.threshold[sublayer] = start > -INFINITY && owed > 0.0f
                                        ? sequences.history(seq_id, sublayer)
                                              .threshold(token.index < 0, sequences.span(seq_id, token.pos),
                                                         token.pos + token.ahead - PYSKIP_HOLD_TAIL, owed, start)
                                        : start;
    }
    return token;
}

bool pyskip_state::plan(const llama_ubatch & ubatch) {
    const size_t n_tokens = ubatch.n_tokens;

    began = std::chrono::steady_clock::now();
    tokens.resize(n_tokens);
    rules.resize(n_tokens);
    choices.resize(n_tokens);
    wanted             = is_streaming ? PYSKIP_GRAPH_JOINS : PYSKIP_GRAPH_DENSE; // weights are asked for by joins
    wants_attention    = false;
    bool        is_off = true;
    pyskip_need most   = PYSKIP_NEED_NOTHING;
    for (uint32_t i = 0; i < n_tokens; ++i) {
        for (int32_t s = 0; s < ubatch.n_seq_id[i]; ++s) { // what was decoded there before, and was taken back
            sequences.remove(ubatch.seq_id[i][s], ubatch.pos[i], -1);
        }
    }
    for (uint32_t i = 0; i < n_tokens; ++i) {
        tokens[i] = plan_token(ubatch, i);
        is_off &= tokens[i].rule->type == PYSKIP_POLICY_OFF;
        wants_attention |= pyskip_rule_has_attention(*tokens[i].rule);
        most = std::max(most, pyskip_rule_needs(*tokens[i].rule, tokens[i]));
    }
    if (most == PYSKIP_NEED_JOINS) {
        wanted = PYSKIP_GRAPH_JOINS;
    } else if (most == PYSKIP_NEED_GATES) {
        wanted = PYSKIP_GRAPH_GATES;
    }
    if (gather) {
        wanted = PYSKIP_GRAPH_GATHER;
    } else if (is_off) {
        wanted = PYSKIP_GRAPH_OFF;
    }
    wants_attention = wants_attention && (wanted == PYSKIP_GRAPH_JOINS || wanted == PYSKIP_GRAPH_GATES);
    return !must_rebuild && wanted == graph && wants_attention == has_attention;
}

void pyskip_state::begin(const llama_ubatch & ubatch) {
    if (slots.empty()) {
        return;
    }
    const size_t n_tokens = ubatch.n_tokens;

    is_output.resize(n_tokens);
    outputs.clear();
    for (uint32_t i = 0; i < n_tokens; ++i) {
        is_output[i] = ubatch.output && ubatch.output[i];
        if (is_output[i]) {
            outputs.push_back((int32_t) i);
        }
    }
    decisions.assign(slots.size() * n_tokens, 0);
    sims.assign(slots.size() * n_tokens, NOT_A_NUMBER);
    scales.assign(slots.size() * n_tokens, NOT_A_NUMBER);

    n_run_all = 0;
    n_done    = 0;

    if (is_streaming) {
        pyskip_stream_in(first_weights);
    }
    if (graph != PYSKIP_GRAPH_JOINS && graph != PYSKIP_GRAPH_GATES) {
        return;
    }
    for (pyskip_slot & slot : slots) {
        slot.restore();
    }
    int64_t n_run = 0;
    for (uint32_t i = 0; i < n_tokens; ++i) {
        skips(0, i) = skips_unasked(0, i);
        n_run += has_token(slots[0], i) && !skips(0, i);
    }
    if (!slots[0].gate) {
        arm(slots[0], n_run > 0, false);
    }
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

void pyskip_state::end(const llama_ubatch & ubatch, bool computed) {
    if (computed) {
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
        timed                                    = { timed.n_batches + 1, (int32_t) ubatch.n_tokens, took.count() };
    }
    if (slots.empty() || !computed || gather || drafting.rule) {
        return;
    }
    count();
    remember(ubatch);
    measure(ubatch);
    if (trace_capacity > 0) {
        record();
    }
}

static void make_room(pyskip_counters & c, int32_t n_layer) {
    c.evaluated.resize(n_layer);
    c.skipped.resize(n_layer);
    c.attention_skipped.resize(n_layer);
}

// Counts a token n times: once, or -1 times for one that is taken back.
static void add(pyskip_counters & c, const std::vector<pyskip_outcome> & outcomes, int64_t n) {
    c.n_tokens += n;
    for (size_t il = 0; il < c.skipped.size(); ++il) {
        const pyskip_outcome ffn       = outcomes[pyskip_place(PYSKIP_SUBLAYER_FFN, il)];
        const pyskip_outcome attention = outcomes[pyskip_place(PYSKIP_SUBLAYER_ATTENTION, il)];
        c.evaluated[il] += ffn == PYSKIP_OUTCOME_EVALUATED ? n : 0;
        c.skipped[il] += ffn == PYSKIP_OUTCOME_SKIPPED ? n : 0;
        c.attention_skipped[il] += attention == PYSKIP_OUTCOME_SKIPPED ? n : 0;
    }
}

// What became of token t's blocks. A layer without a block is evaluated.
void pyskip_state::look(int32_t t, std::vector<pyskip_outcome> & outcomes) const {
    outcomes.assign(2 * (size_t) n_layer, PYSKIP_OUTCOME_EVALUATED);
    for (const pyskip_slot & slot : slots) {
        outcomes[pyskip_place(slot.block.sublayer, slot.block.il)] = !has_token(slot, t)     ? PYSKIP_OUTCOME_NONE
                                                                     : skips(slot.k, t) != 0 ? PYSKIP_OUTCOME_SKIPPED
                                                                                             : PYSKIP_OUTCOME_EVALUATED;
    }
}

void pyskip_state::count() {
    std::vector<pyskip_outcome> outcomes;
    for (size_t t = 0; t < tokens.size(); ++t) {
        const pyskip_token & token = tokens[t];
        if (token.rule->type == PYSKIP_POLICY_OFF) {
            continue;
        }
        const bool        is_generated = token.index >= 0;
        pyskip_counters & c = counters[token.seq_id][is_generated ? PYSKIP_PHASE_GENERATED : PYSKIP_PHASE_PROMPT];
        make_room(c, n_layer);
        look((int32_t) t, outcomes);
        add(c, outcomes, 1);
        if (is_generated) {
            if (recent.size() == PYSKIP_N_RECENT) {
                recent.pop_front();
            }
            recent.push_back({ { token.seq_id, token.pos }, outcomes });
        }
    }
}

void pyskip_state::take_back(int32_t seq_id, int32_t pos) {
    const auto is_gone = [&](const pyskip_trace_token & token) { return token.seq_id == seq_id && token.pos >= pos; };
    for (const pyskip_counted & counted : recent) {
        if (is_gone(counted.token)) {
            add(counters[seq_id][PYSKIP_PHASE_GENERATED], counted.outcomes, -1);
        }
    }
    const auto drop = [&](auto & entries) {
        const auto gone = [&](const auto & entry) { return is_gone(entry.token); };
        entries.erase(std::remove_if(entries.begin(), entries.end(), gone), entries.end());
    };
    drop(recent);
    drop(trace);
}

// What thresholds to come are made of. The last layer, which not every token has, is left out.
void pyskip_state::remember(const llama_ubatch & ubatch) {
    for (size_t t = 0; t < tokens.size(); ++t) {
        for (const pyskip_sublayer sublayer : { PYSKIP_SUBLAYER_FFN, PYSKIP_SUBLAYER_ATTENTION }) {
            const float owed = pyskip_rule_owes(*tokens[t].rule, sublayer, tokens[t]);
            if (owed > 0.0f) {
                remember(ubatch, (int32_t) t, sublayer, owed);
            }
        }
    }
}

void pyskip_state::remember(const llama_ubatch & ubatch, int32_t t, pyskip_sublayer sublayer, float owed) {
    const pyskip_token & token = tokens[t];
    std::vector<float>   scores(n_layer, NOT_A_NUMBER);
    int32_t              n_skipped = 0;
    for (const pyskip_slot & slot : slots) {
        if (slot.block.sublayer == sublayer && slot.block.il + 1 < n_layer && slot.own) {
            scores[slot.block.il] = sim(slot.k, t);
            n_skipped += skips(slot.k, t);
        }
    }
    const pyskip_hold_token held = { token.pos, token.index < 0, owed, (float) n_skipped / (float) n_layer };
    for (int32_t s = 0; s < ubatch.n_seq_id[t]; ++s) {
        sequences.history(ubatch.seq_id[t][s], sublayer).append(held, scores);
    }
}

// What choices to come are made of. The last layer is left out, as above.
void pyskip_state::measure(const llama_ubatch & ubatch) {
    std::vector<pyskip_measure> measures(2 * (size_t) n_layer);
    for (size_t t = 0; t < tokens.size(); ++t) {
        const pyskip_token & token = tokens[t];
        if (!pyskip_rule_measures(*token.rule, token.index)) {
            continue;
        }
        std::fill(measures.begin(), measures.end(), pyskip_measure{ NOT_A_NUMBER, NOT_A_NUMBER });
        for (const pyskip_slot & slot : slots) {
            if (slot.block.il + 1 < n_layer) {
                measures[pyskip_place(slot.block.sublayer, slot.block.il)] = { sim(slot.k, (int32_t) t),
                                                                               scale(slot.k, (int32_t) t) };
            }
        }
        for (int32_t s = 0; s < ubatch.n_seq_id[t]; ++s) {
            sequences.measure(ubatch.seq_id[t][s], token.pos, token.index < 0, measures);
        }
    }
}

void pyskip_state::record() {
    for (size_t t = 0; t < tokens.size(); ++t) {
        if (tokens[t].index < 0 || tokens[t].rule->type == PYSKIP_POLICY_OFF) {
            continue;
        }
        if (trace.size() == trace_capacity) {
            trace.pop_front();
        }
        pyskip_trace_entry & entry = trace.emplace_back();
        entry.token                = { tokens[t].seq_id, tokens[t].pos };
        entry.skipped.assign(n_layer, 0);
        entry.attention.assign(n_layer, 0);
        entry.sim.assign(n_layer, NOT_A_NUMBER);
        entry.attention_sim.assign(n_layer, NOT_A_NUMBER);
        for (const pyskip_slot & slot : slots) {
            const bool is_ffn = slot.block.sublayer == PYSKIP_SUBLAYER_FFN;

            (is_ffn ? entry.skipped : entry.attention)[slot.block.il] = skips(slot.k, (int32_t) t);
            (is_ffn ? entry.sim : entry.attention_sim)[slot.block.il] = sim(slot.k, (int32_t) t);
        }
    }
}

void pyskip_state::set_trace(size_t capacity) {
    trace_capacity = capacity;
    trace.clear();
}

void pyskip_state::reset_counters(int32_t seq_id) {
    const auto is_reset = [&](const pyskip_counted & counted) { return seq_id < 0 || counted.token.seq_id == seq_id; };
    recent.erase(std::remove_if(recent.begin(), recent.end(), is_reset), recent.end());
    if (seq_id < 0) {
        counters.clear();
    } else {
        counters.erase(seq_id);
    }
}

pyskip_counters pyskip_state::counted(int32_t seq_id, pyskip_phase phase) const {
    pyskip_counters sum;
    make_room(sum, n_layer);
    for (const auto & [id, by_phase] : counters) {
        const pyskip_counters & c = by_phase[phase];
        if ((seq_id >= 0 && id != seq_id) || c.n_tokens == 0) {
            continue;
        }
        sum.n_tokens += c.n_tokens;
        for (int32_t il = 0; il < n_layer; ++il) {
            sum.evaluated[il] += c.evaluated[il];
            sum.skipped[il] += c.skipped[il];
            sum.attention_skipped[il] += c.attention_skipped[il];
        }
    }
    return sum;
}
