// The C API of pyskip.h: what is asked of a context. Files and sums: api-files.cpp; text: api-text.cpp.

#include "api.h"
#include "access.h"
#include "crash.h"
#include "interrupt.h"
#include "llama.h"
#include "lossless.h"
#include "pyskip-build.h"
#include "state.h"
#include "static-set.h"

#include <algorithm>
#include <cstdio>

pyskip_status pyskip_report(pyskip_status status, const std::string & line, char * error, size_t n_error) {
    if (error && n_error > 0) {
        std::snprintf(error, n_error, "%s", line.c_str());
    }
    return status;
}

const char * pyskip_build(void) {
    return PYSKIP_BUILD;
}

int32_t pyskip_n_layer(const llama_context * ctx) {
    return pyskip_context_n_layer(ctx);
}

pyskip_status pyskip_check_generates(llama_context * ctx, char * error, size_t n_error) {
    return pyskip_guard(error, n_error, [&] {
        std::string line;
        if (!pyskip_context_generates(ctx, line)) {
            return pyskip_report(PYSKIP_STATUS_UNSUPPORTED, line, error, n_error);
        }
        return PYSKIP_STATUS_OK;
    });
}

using pyskip_flags = std::vector<uint8_t>;

static pyskip_status get_skippable(llama_context * ctx, pyskip_flags pyskip_state::* own, uint8_t * skippable, size_t n,
                                   char * error, size_t n_error) {
    return pyskip_guard(error, n_error, [&] {
        pyskip_state & state = pyskip_state_make(ctx);
        if (n < (size_t) state.n_layer) {
            return pyskip_report(PYSKIP_STATUS_INVALID,
                                 "skippable has room for " + std::to_string(n) + " layers, expected " +
                                     std::to_string(state.n_layer),
                                 error, n_error);
        }
        std::string line;
        if (!pyskip_context_probe(ctx, state, line)) {
            return pyskip_report(PYSKIP_STATUS_UNSUPPORTED, line, error, n_error);
        }
        std::copy((state.*own).begin(), (state.*own).end(), skippable);
        return PYSKIP_STATUS_OK;
    });
}

pyskip_status pyskip_skippable(llama_context * ctx, uint8_t * skippable, size_t n, char * error, size_t n_error) {
    return get_skippable(ctx, &pyskip_state::skippable, skippable, n, error, n_error);
}

pyskip_status pyskip_skippable_attention(llama_context * ctx, uint8_t * skippable, size_t n, char * error,
                                         size_t n_error) {
    return get_skippable(ctx, &pyskip_state::skippable_attention, skippable, n, error, n_error);
}

// Whether the model has what the rule asks for.
static pyskip_status check_rule(llama_context * ctx, pyskip_state & state, const pyskip_rule & rule,
                                std::string & line) {
    if (rule.type != PYSKIP_POLICY_OFF && !pyskip_context_probe(ctx, state, line)) {
        return PYSKIP_STATUS_UNSUPPORTED;
    }
    line = pyskip_rule_check_layers(rule, state.skippable, state.skippable_attention);
    if (!line.empty()) {
        return PYSKIP_STATUS_INVALID;
    }
    pyskip_profile_point point;
    if (rule.has_gates() && rule.attention_rate > 0.0f &&
        !pyskip_profile_at(*rule.profile, PYSKIP_SUBLAYER_ATTENTION, 0.0f, point, line)) {
        return PYSKIP_STATUS_INVALID; // it has no gates of attention
    }
    return rule.has_gates() && !pyskip_profile_fits(*rule.profile, ctx, line) ? PYSKIP_STATUS_INVALID
                                                                              : PYSKIP_STATUS_OK;
}

pyskip_status pyskip_seq_set_policy(llama_context * ctx, int32_t seq_id, const pyskip_policy * policy, char * error,
                                    size_t n_error) {
    return pyskip_guard(error, n_error, [&] {
        if (policy->type == PYSKIP_POLICY_OFF && !pyskip_state_get(ctx)) {
            return PYSKIP_STATUS_OK;
        }
        pyskip_state & state = pyskip_state_make(ctx);
        pyskip_rule    rule;
        std::string    line;

        pyskip_policy     asked = *policy;
        pyskip_static_set named;
        if (!pyskip_static_expand(asked, named, line) || !pyskip_rule_init(rule, asked, state.n_layer, line)) {
            return pyskip_report(PYSKIP_STATUS_INVALID, line, error, n_error);
        }
        const pyskip_status status = check_rule(ctx, state, rule, line);
        if (status != PYSKIP_STATUS_OK) {
            return pyskip_report(status, line, error, n_error);
        }
        if (rule.has_gates()) {
            rule.curve           = pyskip_profile_thresholds(*rule.profile, PYSKIP_SUBLAYER_FFN);
            rule.attention_curve = pyskip_profile_thresholds(*rule.profile, PYSKIP_SUBLAYER_ATTENTION);
        }
        if (!state.set_rule(seq_id, rule, rule.has_gates() ? rule.profile->self : nullptr)) {
            return pyskip_report(PYSKIP_STATUS_INVALID,
                                 "another sequence has another profile, expected one for all: give this one the "
                                 "same, or the others a policy without",
                                 error, n_error);
        }
        return PYSKIP_STATUS_OK;
    });
}

pyskip_status pyskip_set_policy(llama_context * ctx, const pyskip_policy * policy, char * error, size_t n_error) {
    return pyskip_seq_set_policy(ctx, -1, policy, error, n_error);
}

pyskip_status pyskip_set_generated_from(llama_context * ctx, int32_t seq_id, int32_t pos) {
    return pyskip_guard(nullptr, 0, [&] {
        pyskip_crash_stack(); // whoever decodes comes by here first
        pyskip_state_make(ctx).sequences.set_from(seq_id, pos);
        return PYSKIP_STATUS_OK;
    });
}

// put(counters, n_layer), whose vectors have an entry for each layer.
template <typename F>
static pyskip_status get_counters(const llama_context * ctx, int32_t seq_id, pyskip_phase phase, F put) {
    if (phase != PYSKIP_PHASE_PROMPT && phase != PYSKIP_PHASE_GENERATED) {
        return PYSKIP_STATUS_INVALID;
    }
    return pyskip_guard(nullptr, 0, [&] {
        const pyskip_state * state   = pyskip_state_get(ctx);
        const int32_t        n_layer = pyskip_context_n_layer(ctx);
        pyskip_counters      c       = state ? state->counted(seq_id, phase) : pyskip_counters{};
        for (std::vector<int64_t> * by_layer : { &c.evaluated, &c.skipped, &c.attention_skipped }) {
            by_layer->resize(n_layer);
        }
        put(c, n_layer);
        return PYSKIP_STATUS_OK;
    });
}

pyskip_status pyskip_seq_get_counters(const llama_context * ctx, int32_t seq_id, pyskip_phase phase, int64_t * n_tokens,
                                      int64_t * evaluated, int64_t * skipped) {
    return get_counters(ctx, seq_id, phase, [&](const pyskip_counters & c, int32_t) {
        *n_tokens = c.n_tokens;
        std::copy(c.evaluated.begin(), c.evaluated.end(), evaluated);
        std::copy(c.skipped.begin(), c.skipped.end(), skipped);
    });
}

pyskip_status pyskip_get_counters(const llama_context * ctx, pyskip_phase phase, int64_t * n_tokens,
                                  int64_t * evaluated, int64_t * skipped) {
    return pyskip_seq_get_counters(ctx, -1, phase, n_tokens, evaluated, skipped);
}

pyskip_status pyskip_seq_get_attention_counters(const llama_context * ctx, int32_t seq_id, pyskip_phase phase,
                                                int64_t * evaluated, int64_t * skipped) {
    return get_counters(ctx, seq_id, phase, [&](const pyskip_counters & c, int32_t n_layer) {
        for (int32_t il = 0; il < n_layer; ++il) {
            evaluated[il] = c.n_tokens - c.attention_skipped[il];
            skipped[il]   = c.attention_skipped[il];
        }
    });
}

void pyskip_seq_reset_counters(llama_context * ctx, int32_t seq_id) {
    if (pyskip_state * state = pyskip_state_get(ctx)) {
        state->reset_counters(seq_id);
    }
}

void pyskip_seq_take_back(llama_context * ctx, int32_t seq_id, int32_t pos) {
    if (pyskip_state * state = pyskip_state_get(ctx)) {
        state->take_back(seq_id, pos);
    }
}

void pyskip_reset_counters(llama_context * ctx) {
    pyskip_seq_reset_counters(ctx, -1);
}

pyskip_status pyskip_set_trace(llama_context * ctx, size_t capacity) {
    return pyskip_guard(nullptr, 0, [&] {
        pyskip_state_make(ctx).set_trace(capacity);
        return PYSKIP_STATUS_OK;
    });
}

size_t pyskip_seq_take_trace(llama_context * ctx, int32_t seq_id, size_t n, pyskip_trace_token * tokens,
                             uint8_t * skipped, float * sim, uint8_t * attention, float * attention_sim) {
    pyskip_state * state = pyskip_state_get(ctx);
    if (!state) {
        return 0;
    }
    const size_t n_layer  = (size_t) state->n_layer;
    size_t       n_taken  = 0;
    const auto   is_taken = [&](const pyskip_trace_entry & entry) {
        if (n_taken == n || (seq_id >= 0 && entry.token.seq_id != seq_id)) {
            return false;
        }
        tokens[n_taken] = entry.token;
        if (skipped) {
            std::copy(entry.skipped.begin(), entry.skipped.end(), skipped + n_taken * n_layer);
        }
        if (sim) {
            std::copy(entry.sim.begin(), entry.sim.end(), sim + n_taken * n_layer);
        }
        if (attention) {
            std::copy(entry.attention.begin(), entry.attention.end(), attention + n_taken * n_layer);
        }
        if (attention_sim) {
            std::copy(entry.attention_sim.begin(), entry.attention_sim.end(), attention_sim + n_taken * n_layer);
        }
        n_taken++;
        return true;
    };
    state->trace.erase(std::remove_if(state->trace.begin(), state->trace.end(), is_taken), state->trace.end());
    return n_taken;
}

size_t pyskip_take_trace(llama_context * ctx, size_t n, pyskip_trace_token * tokens, uint8_t * skipped, float * sim) {
    return pyskip_seq_take_trace(ctx, -1, n, tokens, skipped, sim, nullptr, nullptr);
}

pyskip_status pyskip_lossless_new(llama_context * ctx, bool always, pyskip_lossless ** lossless, char * error,
                                  size_t n_error) {
    return pyskip_guard(error, n_error, [&] {
        const llama_model * model = llama_get_model(ctx);
        pyskip_state &      state = pyskip_state_make(ctx);
        std::string         line;
        if (llama_model_is_recurrent(model) || llama_model_is_hybrid(model) || llama_model_has_encoder(model)) {
            return pyskip_report(PYSKIP_STATUS_UNSUPPORTED,
                                 "the model is recurrent or has an encoder, expected one whose KV cache can be cut: go "
                                 "without lossless",
                                 error, n_error);
        }
        if (!pyskip_context_probe(ctx, state, line)) {
            return pyskip_report(PYSKIP_STATUS_UNSUPPORTED, line, error, n_error);
        }
        if (llama_memory_seq_pos_max(llama_get_memory(ctx), 0) >= 0) {
            return pyskip_report(PYSKIP_STATUS_INVALID,
                                 "the context holds tokens, expected an empty one: clear it before", error, n_error);
        }
        *lossless = new pyskip_lossless(ctx, always);
        return PYSKIP_STATUS_OK;
    });
}

void pyskip_lossless_free(pyskip_lossless * lossless) {
    delete lossless;
}

bool pyskip_lossless_pays(const pyskip_lossless * lossless, char * line, size_t n_line) {
    pyskip_report(PYSKIP_STATUS_OK, lossless->line(), line, n_line);
    return lossless->pays || lossless->always;
}

int32_t pyskip_lossless_draft(pyskip_lossless * lossless, int32_t seq_id, int32_t pos, int32_t token, int32_t n_max,
                              int32_t * tokens) {
    int32_t n = 0;
    pyskip_guard(nullptr, 0, [&] { // without a draft the decode that follows says what is wrong
        n = lossless->draft(seq_id, pos, token, n_max, tokens);
        return PYSKIP_STATUS_OK;
    });
    return n;
}

pyskip_status pyskip_set_streaming(llama_context * ctx, bool on) {
    return pyskip_guard(nullptr, 0, [&] {
        pyskip_state_make(ctx).set_streaming(on);
        return PYSKIP_STATUS_OK;
    });
}

pyskip_status pyskip_set_abort(llama_context * ctx, bool abort) {
    return pyskip_guard(nullptr, 0, [&] {
        pyskip_state & state = pyskip_state_make(ctx);
        state.abort          = abort;
        if (!state.has_abort_callback) {
            state.has_abort_callback = true;
            const auto callback      = [](void * data) {
                const pyskip_state * state = (const pyskip_state *) data;
                return state->abort.load() || pyskip_interrupted(state);
            };
            llama_set_abort_callback(ctx, callback, &state);
        }
        return PYSKIP_STATUS_OK;
    });
}
