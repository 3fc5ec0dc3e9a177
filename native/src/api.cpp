// The C API of pyskip.h. Nothing throws across it.

#include "access.h"
#include "crash.h"
#include "deep-stack.h"
#include "gather.h"
#include "gguf-inspect.h"
#include "interrupt.h"
#include "json-schema.h"
#include "llama.h"
#include "lossless.h"
#include "profile.h"
#include "pyskip-build.h"
#include "pyskip.h"
#include "state.h"
#include "sums.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <string>

static constexpr int32_t PYSKIP_SHORT_TEXT     = 2048; // bytes that every thread's stack is enough for
static constexpr size_t  PYSKIP_STACK_PER_BYTE = 1024; // std::regex takes less than 350 a character, unoptimised more

static pyskip_status report(pyskip_status status, const std::string & line, char * error, size_t n_error) {
    if (error && n_error > 0) {
        std::snprintf(error, n_error, "%s", line.c_str());
    }
    return status;
}

// Runs `body` and turns what it throws into a status.
template <typename F> static pyskip_status guard(char * error, size_t n_error, F body) {
    try {
        return body();
    } catch (const std::bad_alloc &) {
        return report(PYSKIP_STATUS_NO_MEMORY, "out of memory: close other programs or use a smaller model", error,
                      n_error);
    } catch (const std::exception & e) {
        return report(PYSKIP_STATUS_UNSUPPORTED, std::string("llama.cpp failed: ") + e.what(), error, n_error);
    }
}

const char * pyskip_build(void) {
    return PYSKIP_BUILD;
}

int32_t pyskip_n_layer(const llama_context * ctx) {
    return pyskip_context_n_layer(ctx);
}

pyskip_status pyskip_check_generates(llama_context * ctx, char * error, size_t n_error) {
    return guard(error, n_error, [&] {
        std::string line;
        if (!pyskip_context_generates(ctx, line)) {
            return report(PYSKIP_STATUS_UNSUPPORTED, line, error, n_error);
        }
        return PYSKIP_STATUS_OK;
    });
}

using pyskip_flags = std::vector<uint8_t>;

static pyskip_status get_skippable(llama_context * ctx, pyskip_flags pyskip_state::* own, uint8_t * skippable, size_t n,
                                   char * error, size_t n_error) {
    return guard(error, n_error, [&] {
        pyskip_state & state = pyskip_state_make(ctx);
        if (n < (size_t) state.n_layer) {
            return report(PYSKIP_STATUS_INVALID,
                          "skippable has room for " + std::to_string(n) + " layers, expected " +
                              std::to_string(state.n_layer),
                          error, n_error);
        }
        std::string line;
        if (!pyskip_context_probe(ctx, state, line)) {
            return report(PYSKIP_STATUS_UNSUPPORTED, line, error, n_error);
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

// The least that keeps memory safe; whose profile it is, its fingerprint tells.
static bool pyskip_profile_fits(const pyskip_profile & profile, const llama_context * ctx, std::string & line) {
    const int32_t n_layer = pyskip_context_n_layer(ctx);
    const int32_t n_embd  = pyskip_context_n_embd(ctx);
    if (profile.info.n_layer == n_layer && profile.info.n_embd == n_embd) {
        return true;
    }
    line = "the profile is for a model of " + std::to_string(profile.info.n_layer) + " layers of " +
           std::to_string(profile.info.n_embd) + " values, this one has " + std::to_string(n_layer) + " of " +
           std::to_string(n_embd) + ": give the model's own profile";
    return false;
}

// Whether the model has what the rule asks for.
static pyskip_status check_rule(llama_context * ctx, pyskip_state & state, const pyskip_rule & rule,
                                std::string & line) {
    if (rule.type != PYSKIP_POLICY_OFF && !pyskip_context_probe(ctx, state, line)) {
        return PYSKIP_STATUS_UNSUPPORTED;
    }
    for (int32_t il = 0; rule.type == PYSKIP_POLICY_STATIC && il < state.n_layer; ++il) {
        const bool no_ffn = pyskip_rule_covers(rule, PYSKIP_SUBLAYER_FFN, il) && !state.skippable[il];
        if (no_ffn || (pyskip_rule_covers(rule, PYSKIP_SUBLAYER_ATTENTION, il) && !state.skippable_attention[il])) {
            line = "static names layer " + std::to_string(il) + ", which has no " + (no_ffn ? "FFN" : "attention") +
                   " that can be skipped: leave it out";
            return PYSKIP_STATUS_INVALID;
        }
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
    return guard(error, n_error, [&] {
        if (policy->type == PYSKIP_POLICY_OFF && !pyskip_state_get(ctx)) {
            return PYSKIP_STATUS_OK;
        }
        pyskip_state & state = pyskip_state_make(ctx);
        pyskip_rule    rule;
        std::string    line;
        if (!pyskip_rule_init(rule, *policy, state.n_layer, line)) {
            return report(PYSKIP_STATUS_INVALID, line, error, n_error);
        }
        const pyskip_status status = check_rule(ctx, state, rule, line);
        if (status != PYSKIP_STATUS_OK) {
            return report(status, line, error, n_error);
        }
        if (rule.has_gates()) {
            rule.curve           = pyskip_profile_thresholds(*rule.profile, PYSKIP_SUBLAYER_FFN);
            rule.attention_curve = pyskip_profile_thresholds(*rule.profile, PYSKIP_SUBLAYER_ATTENTION);
        }
        if (!state.set_rule(seq_id, rule, rule.has_gates() ? rule.profile->self : nullptr)) {
            return report(PYSKIP_STATUS_INVALID,
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
    return guard(nullptr, 0, [&] {
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
    return guard(nullptr, 0, [&] {
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
    return guard(nullptr, 0, [&] {
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
    return guard(error, n_error, [&] {
        const llama_model * model = llama_get_model(ctx);
        pyskip_state &      state = pyskip_state_make(ctx);
        std::string         line;
        if (llama_model_is_recurrent(model) || llama_model_is_hybrid(model) || llama_model_has_encoder(model)) {
            return report(PYSKIP_STATUS_UNSUPPORTED,
                          "the model is recurrent or has an encoder, expected one whose KV cache can be cut: go "
                          "without lossless",
                          error, n_error);
        }
        if (!pyskip_context_probe(ctx, state, line)) {
            return report(PYSKIP_STATUS_UNSUPPORTED, line, error, n_error);
        }
        if (llama_memory_seq_pos_max(llama_get_memory(ctx), 0) >= 0) {
            return report(PYSKIP_STATUS_INVALID, "the context holds tokens, expected an empty one: clear it before",
                          error, n_error);
        }
        *lossless = new pyskip_lossless(ctx, always);
        return PYSKIP_STATUS_OK;
    });
}

void pyskip_lossless_free(pyskip_lossless * lossless) {
    delete lossless;
}

bool pyskip_lossless_pays(const pyskip_lossless * lossless, char * line, size_t n_line) {
    report(PYSKIP_STATUS_OK, lossless->line(), line, n_line);
    return lossless->pays || lossless->always;
}

int32_t pyskip_lossless_draft(pyskip_lossless * lossless, int32_t seq_id, int32_t pos, int32_t token, int32_t n_max,
                              int32_t * tokens) {
    int32_t n = 0;
    guard(nullptr, 0, [&] { // without a draft the decode that follows says what is wrong
        n = lossless->draft(seq_id, pos, token, n_max, tokens);
        return PYSKIP_STATUS_OK;
    });
    return n;
}

pyskip_status pyskip_set_streaming(llama_context * ctx, bool on) {
    return guard(nullptr, 0, [&] {
        pyskip_state_make(ctx).set_streaming(on);
        return PYSKIP_STATUS_OK;
    });
}

pyskip_status pyskip_set_abort(llama_context * ctx, bool abort) {
    return guard(nullptr, 0, [&] {
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

pyskip_status pyskip_gguf_inspect(const char * path, pyskip_gguf_info * info, char * error, size_t n_error) {
    return guard(error, n_error, [&] {
        std::string line;
        if (!pyskip_gguf_read(path, *info, line)) {
            return report(PYSKIP_STATUS_FILE, line, error, n_error);
        }
        return PYSKIP_STATUS_OK;
    });
}

pyskip_status pyskip_gguf_ffn_bytes(const char * path, int64_t * bytes, size_t n, char * error, size_t n_error) {
    return guard(error, n_error, [&] {
        std::string line;
        if (!pyskip_gguf_read_ffn(path, bytes, n, line)) {
            return report(PYSKIP_STATUS_FILE, line, error, n_error);
        }
        return PYSKIP_STATUS_OK;
    });
}

pyskip_status pyskip_profile_load(const char * path, pyskip_profile ** profile, char * error, size_t n_error) {
    return guard(error, n_error, [&] {
        auto        loaded = std::make_shared<pyskip_profile>();
        std::string line;
        if (!pyskip_profile_read(path, *loaded, line)) {
            return report(PYSKIP_STATUS_FILE, line, error, n_error);
        }
        loaded->self = loaded;
        *profile     = loaded.get();
        return PYSKIP_STATUS_OK;
    });
}

void pyskip_profile_free(pyskip_profile * profile) {
    if (profile) {
        const auto last = std::move(profile->self); // contexts that decide by it hold their own share
    }
}

void pyskip_profile_get(const pyskip_profile * profile, pyskip_profile_info * info) {
    *info = profile->info;
}

void pyskip_profile_get_points(const pyskip_profile * profile, pyskip_sublayer sublayer,
                               pyskip_profile_point * points) {
    std::copy(profile->curves[sublayer].begin(), profile->curves[sublayer].end(), points);
}

pyskip_status pyskip_profile_get_point_at(const pyskip_profile * profile, pyskip_sublayer sublayer, double rate,
                                          pyskip_profile_point * point, char * error, size_t n_error) {
    return guard(error, n_error, [&] {
        std::string line;
        if (!pyskip_profile_at(*profile, sublayer, (float) rate, *point, line)) {
            return report(PYSKIP_STATUS_INVALID, line, error, n_error);
        }
        return PYSKIP_STATUS_OK;
    });
}

void pyskip_profile_get_bytes(const pyskip_profile * profile, pyskip_sublayer sublayer, int64_t * stand_in_bytes,
                              int64_t * gate_bytes) {
    for (int32_t il = 0; il < profile->info.n_layer; ++il) {
        const pyskip_stand_in * own = profile->find(sublayer, il);
        stand_in_bytes[il]          = own ? own->bytes : 0;
        gate_bytes[il]              = own ? profile->gate_bytes : 0;
    }
}

pyskip_status pyskip_gather_start(llama_context * ctx, pyskip_gather_kind kind, pyskip_sublayer sublayer,
                                  const pyskip_profile * profile, int32_t warmup, pyskip_gather ** gather, char * error,
                                  size_t n_error) {
    return guard(error, n_error, [&] {
        pyskip_state & state = pyskip_state_make(ctx);
        std::string    line;
        if ((kind == PYSKIP_GATHER_HIDDEN || kind == PYSKIP_GATHER_ERRORS) != (profile != nullptr)) {
            return report(PYSKIP_STATUS_INVALID, "hidden values and errors are those of a profile, the rest takes none",
                          error, n_error);
        }
        if (sublayer == PYSKIP_SUBLAYER_ATTENTION && (kind == PYSKIP_GATHER_NEURONS || kind == PYSKIP_GATHER_HIDDEN)) {
            return report(PYSKIP_STATUS_INVALID, "attention has no neurons: gather its outputs or errors", error,
                          n_error);
        }
        if (kind == PYSKIP_GATHER_HIDDEN && std::strcmp(profile->info.stand_in, "gated") != 0) {
            return report(PYSKIP_STATUS_INVALID,
                          "the profile's stand-ins have no hidden values: give one with gated ones", error, n_error);
        }
        if (profile && !pyskip_profile_fits(*profile, ctx, line)) {
            return report(PYSKIP_STATUS_INVALID, line, error, n_error);
        }
        if (!pyskip_context_probe(ctx, state, line)) {
            return report(PYSKIP_STATUS_UNSUPPORTED, line, error, n_error);
        }
        *gather = new pyskip_gather(kind, sublayer, state.n_layer, pyskip_context_n_embd(ctx), warmup,
                                    profile ? profile->self : nullptr);
        state.set_gather(*gather);
        return PYSKIP_STATUS_OK;
    });
}

void pyskip_gather_set_targets(pyskip_gather * gather, const float * targets, int32_t n) {
    gather->targets.assign(targets, targets + n);
}

void pyskip_gather_get(const pyskip_gather * gather, int32_t il, pyskip_gather_sums * sums) {
    const pyskip_gather_layer & layer = gather->layers[il];

    *sums = {};
    if (layer.n_tokens == 0) {
        return;
    }
    sums->n_tokens = layer.n_tokens;
    sums->energy   = layer.energy;
    if (layer.gram) {
        pyskip_sums_mirror((float *) layer.gram->data, layer.gram->ne[0]);
        sums->gram    = (const float *) layer.gram->data;
        sums->cross   = (const float *) layer.cross->data;
        sums->n_row   = layer.cross->ne[0];
        sums->n_cross = layer.cross->ne[1];
    } else {
        sums->cross      = layer.neurons.data();
        sums->n_row      = 1;
        sums->n_cross    = (int64_t) layer.neurons.size();
        sums->activation = layer.activation;
    }
}

void pyskip_gather_free(llama_context * ctx, pyskip_gather * gather) {
    if (ctx) {
        pyskip_state_make(ctx).set_gather(nullptr);
    }
    delete gather;
}

pyskip_status pyskip_tokenize(const llama_vocab * vocab, const char * text, int32_t n_text, int32_t * tokens,
                              int32_t n_tokens, bool add_special, bool parse_special, int32_t * n_out, char * error,
                              size_t n_error) {
    return guard(error, n_error, [&] {
        const auto run = [&] {
            const pyskip_aborts_caught caught;
            *n_out = llama_tokenize(vocab, text, n_text, tokens, n_tokens, add_special, parse_special);
        };
        if (n_text <= PYSKIP_SHORT_TEXT) {
            pyskip_crash_stack();
            run();
            return PYSKIP_STATUS_OK;
        }
        // std::regex, which some vocabularies' rules fall back to, recurses once a character of what it matches
        if (!pyskip_on_deep_stack((size_t) n_text * PYSKIP_STACK_PER_BYTE, run)) {
            return report(PYSKIP_STATUS_NO_MEMORY,
                          "no memory for a stack to split a text of " + std::to_string(n_text) +
                              " bytes on: split it into smaller texts",
                          error, n_error);
        }
        return PYSKIP_STATUS_OK;
    });
}

pyskip_status pyskip_token_to_piece(const llama_vocab * vocab, int32_t token, char * piece, int32_t n_piece,
                                    bool special, int32_t * n_out, char * error, size_t n_error) {
    return guard(error, n_error, [&] {
        const pyskip_aborts_caught caught;
        *n_out = llama_token_to_piece(vocab, token, piece, n_piece, /*lstrip =*/0, special);
        return PYSKIP_STATUS_OK;
    });
}

pyskip_status pyskip_sampler_init_dry(const llama_vocab * vocab, float multiplier, float base, int32_t allowed_length,
                                      int32_t penalty_last_n, const char ** breakers, size_t n_breakers,
                                      llama_sampler ** sampler, char * error, size_t n_error) {
    return guard(error, n_error, [&] {
        const pyskip_aborts_caught caught;
        *sampler =
            llama_sampler_init_dry(vocab, multiplier, base, allowed_length, penalty_last_n, breakers, n_breakers);
        return PYSKIP_STATUS_OK;
    });
}

pyskip_status pyskip_json_schema_grammar(const char * schema, char * grammar, size_t n_grammar, size_t * n_needed,
                                         char * error, size_t n_error) {
    return guard(error, n_error, [&] {
        std::string text;
        if (!pyskip_schema_to_gbnf(schema, text)) {
            return report(PYSKIP_STATUS_INVALID, text, error, n_error);
        }
        *n_needed = text.size() + 1;
        std::snprintf(grammar, n_grammar, "%s", text.c_str());
        return PYSKIP_STATUS_OK;
    });
}
