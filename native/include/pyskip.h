// pyskip: conditional feed-forward blocks for llama.cpp contexts.
//
// Plain C. Handles are llama.cpp's own (`struct llama_context *`); nothing throws across this line. Every function
// that can fail returns a status and, if it takes `error`, writes one line into it that says what was found, what was
// expected and what to do.
//
// A context is not thread-safe, as in llama.cpp: call these between two llama_decode() of the same context.

#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && !defined(__MINGW32__) // which exports all, as ggml.h has it
#    define PYSKIP_API __declspec(dllexport)
#else
#    define PYSKIP_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

struct llama_context;
struct llama_sampler;
struct llama_vocab;
struct pyskip_profile;
struct pyskip_gather;
struct pyskip_lossless;
struct pyskip_pace;

// The newest version of the profile's fields, "pyskip.profile_version"; older ones are read too. 2 brought the
// activation of gated stand-ins and their normed hidden values, 3 gates of attention.
#define PYSKIP_PROFILE_VERSION 3

enum pyskip_status {
    PYSKIP_STATUS_OK          = 0,
    PYSKIP_STATUS_INVALID     = 1, // an argument is out of range or contradicts another
    PYSKIP_STATUS_UNSUPPORTED = 2, // this model, context or back end cannot skip
    PYSKIP_STATUS_NO_MEMORY   = 3,
    PYSKIP_STATUS_FILE        = 4, // a file cannot be read, or is not what it should be
};

enum pyskip_policy_type {
    PYSKIP_POLICY_OFF     = 0,
    PYSKIP_POLICY_STATIC  = 1,
    PYSKIP_POLICY_COSINE  = 2,
    PYSKIP_POLICY_PROFILE = 3,
    PYSKIP_POLICY_RANDOM  = 4,
    PYSKIP_POLICY_CUSTOM  = 5,
    PYSKIP_POLICY_ADASKIP = 6, // AdaSkip, AAAI 2025
    PYSKIP_POLICY_PROMPT  = 7, // the prompt chooses, as in FiRST, EMNLP Findings 2025
};

// Which code multiplies with a model's weights.
enum pyskip_kernels {
    PYSKIP_KERNELS_FAST     = 0, // pyskip's own, for the types and processors that it has them for
    PYSKIP_KERNELS_UPSTREAM = 1, // llama.cpp's: results are equal, bit by bit, to those of an unpatched build
};

enum pyskip_phase {
    PYSKIP_PHASE_PROMPT    = 0,
    PYSKIP_PHASE_GENERATED = 1,
};

// The two parts of a layer that add to the residual stream. An FFN is skipped whole. Of attention everything is but K and V,
// which are always computed and written to the cache.
enum pyskip_sublayer {
    PYSKIP_SUBLAYER_FFN       = 0,
    PYSKIP_SUBLAYER_ATTENTION = 1,
};

// What a custom policy knows of a token that is about to enter a layer's FFN block.
struct pyskip_decision {
    int32_t il;      // the layer
    int32_t n_layer; // of the model
    int32_t seq_id;  // the token's (first) sequence
    int32_t pos;     // its position there
    int32_t index;   // 0, 1, ... among the generated tokens of its sequence; -1: of the prompt
    int32_t il_sim;  // the last layer before this one whose FFN ran for the token and can be skipped; -1: none
    float   sim;     // cos(x, z) there, x the residual stream entering the block, z leaving it; NaN: none
};

// true: skip the block. Asked once for each token and each layer that can skip, layers in rising order, from llama.cpp's
// compute threads; in a batch from several at once, for different tokens. It must not throw and not call llama.cpp. An
// answer that depends only on `decision` and on what `data` holds unchanged during a decode is the same in one batch and in
// single steps.
typedef bool (*pyskip_decide)(const struct pyskip_decision * decision, void * data);

// The rule that a context decides by. Fields that the type does not use are ignored.
struct pyskip_policy {
    int32_t         type;       // enum pyskip_policy_type
    float           threshold;  // cosine: skip the next blocks when cos(x, z) >= threshold
                                // profile: skip a block when its gate's score is below it
                                // random: with a profile, skip no block whose score is not below it (INFINITY: any)
    int32_t         run;        // cosine: how many blocks one positive test skips; 0 means up to the cold end
    int32_t         cold_start; // cosine: the first layers that always run
    int32_t         cold_end;   // cosine: the last layers that always run
    int32_t         warmup;     // cosine, profile, random: the first generated tokens of a sequence that run dense
    const int32_t * layers;     // static: the layers whose FFN is skipped for every token
    size_t          n_layers;
    const struct pyskip_profile * profile; // profile, prompt; random, static: its stand-ins are used; or NULL
    bool            prefill; // profile: prompt tokens at positions >= warmup are decided like generated ones
    float           rate;    // random, prompt: the share of blocks to skip; profile with hold: the same
    uint32_t        seed;    // random
    pyskip_decide   decide;  // custom; it and its data must live for as long as the policy is in force
    void *          decide_data;
    bool            hold;   // profile: of a sequence's generated tokens `rate` of the blocks are skipped: the threshold
                            // begins where the profile's curve has it, and follows from the sequence's own past.
                            // The last layer runs, the rest makes up for it
    float           prompt; // profile, if above 0: likewise in the prompt, whose end pyskip_set_generated_from() told;
                            // its first `warmup` and its last 32 tokens run dense, far from the end more is
                            // skipped. While nobody told, `prefill` counts
    const int32_t * attention_layers; // static: the layers whose attention is skipped for every token
    size_t          n_attention_layers;
    int32_t n_sublayers;    // adaskip: how many of both kinds are skipped, chosen by what the sequence's prompt showed
                            // (those of the last layer run): the prompt runs dense, and so does all that follows one
                            // that was not decoded under this policy
                            // static, if above 0: in place of layers, the first of those that the profile names
    int32_t static_by;      // enum pyskip_static_by: which it names
    bool    bare;           // static: nothing stands in, whatever the profile has
    float   attention_rate; // random: the share of attention sublayers to skip; profile with hold: the same, of a
                            // sequence's generated tokens, as `rate`. Those of the last layer, and of prompts, run
    float   attention_threshold; // profile without hold, if attention_rate is above 0: skip attention when its gate's
                                 // score is below it
};

// What a profile says of itself. Texts are UTF-8, cut to their room.
struct pyskip_profile_info {
    int32_t n_layer;
    int32_t n_embd;
    int32_t warmup;         // generated tokens that run dense
    int32_t rank;           // of the largest stand-in of an FFN; the width if it is gated
    int32_t n_points;       // of its curve
    int32_t recommended;    // index of a point
    int32_t attention_rank; // of the largest stand-in of attention; 0 if the profile has none
    int32_t n_attention_points;
    int64_t n_tokens;        // that it was calibrated on
    char    fingerprint[32]; // of the model, as in pyskip_gguf_info
    char    model[128];
    char    stand_in[16]; // linear, gated or none
    char    method[256];
    char    text[256]; // what was calibrated on
    char    text_sha256[72];
    char    made_by[64];
};

// One operating point, measured on text that the calibration did not fit, with all of the other sublayer computed.
struct pyskip_profile_point {
    float rate;      // of FFN blocks skipped, or of attention
    float threshold; // for pyskip_policy
    float ppl_ratio; // perplexity against dense
    float ppl_ratio_se;
    float kld_mean;        // nats per token, dense || skipped
    float ffn_bytes_saved; // share of the FFN's bytes that are not read, what gates and stand-ins read taken off
    float ideal_speedup;   // bytes of all weights / bytes read; of attention before the cache is looked at
};

// What sets of sublayers for PYSKIP_POLICY_STATIC were chosen by.
enum pyskip_static_by {
    PYSKIP_STATIC_BY_LOSS   = 0, // greedily, that which adds least to the divergence next
    PYSKIP_STATIC_BY_COSINE = 1, // the mean of cos(x, z), greatest first
    PYSKIP_STATIC_BY_NORM   = 2, // the mean of |z - x| / |x|, least first
};

// One sublayer of such a set, and what it costs to skip it and all before it, with the profile's stand-ins in their place, measured on
// text that did not choose them.
struct pyskip_static_step {
    int32_t il;
    int32_t sublayer;  // enum pyskip_sublayer
    float   kld_mean;  // nats per token, dense || skipped
    float   ppl_ratio; // perplexity against dense
};

// One traced token: what was decided for it in each layer.
struct pyskip_trace_token {
    int32_t seq_id; // its (first) sequence
    int32_t pos;    // its position there
};

// The release of llama-cpp-python and the hash of the patch series that this library was built from, for instance
// "llama-cpp-python 0.3.36, llama.cpp 0c1e57098, patches 1f0c...". Static storage.
PYSKIP_API const char * pyskip_build(void);

// The kernels of the models that are loaded from now on, in this process; those already loaded keep theirs. FAST until
// it is called.
PYSKIP_API enum pyskip_status  pyskip_kernels_set(enum pyskip_kernels kernels);
PYSKIP_API enum pyskip_kernels pyskip_kernels_get(void);

// Number of layers of the context's model.
PYSKIP_API int32_t pyskip_n_layer(const struct llama_context * ctx);

// UNSUPPORTED, with the reason in error, if the context does not generate text token by token: encoders and diffusion
// models. An encoder-decoder does, once llama_encode() was called.
PYSKIP_API enum pyskip_status pyskip_check_generates(struct llama_context * ctx, char * error, size_t n_error);

// Which layers have an FFN that can be skipped, found by building the context's decode graph once: skippable[il] = 1,
// else 0. n is the length of skippable, at least pyskip_n_layer(). UNSUPPORTED with the reason in error if there is
// none (encoders, models without an FFN, all layers on another back end than the CPU).
PYSKIP_API enum pyskip_status pyskip_skippable(struct llama_context * ctx, uint8_t * skippable, size_t n, char * error,
                                               size_t n_error);

// The same for attention: OK if no layer's can be skipped.
PYSKIP_API enum pyskip_status pyskip_skippable_attention(struct llama_context * ctx, uint8_t * skippable, size_t n,
                                                         char * error, size_t n_error);

// Decide by this policy from the next token on, in every sequence. The policy is copied. The context keeps its KV cache, its
// counters and what it knows of its sequences; only a rate that is held begins anew if the policy is another one. After a
// failure the old policy is still in force.
PYSKIP_API enum pyskip_status pyskip_set_policy(struct llama_context * ctx, const struct pyskip_policy * policy,
                                                char * error, size_t n_error);

// The same for one sequence; seq_id < 0: for every sequence, also those not seen yet. Sequences of one batch may each have
// another policy: each token is decided as it would be alone. Of those with a profile all have the same one, else INVALID.
// llama_memory_seq_cp gives the copy the policy of the original, _seq_keep leaves the other sequences the policy that was
// set for all; llama_memory_seq_rm and llama_memory_clear leave policies alone. A token of several sequences runs dense
// unless they have the same policy.
PYSKIP_API enum pyskip_status pyskip_seq_set_policy(struct llama_context * ctx, int32_t seq_id,
                                                    const struct pyskip_policy * policy, char * error, size_t n_error);

// Tokens of seq_id at positions >= pos count as generated from now on, those before as prompt. The first `warmup` of
// the generated ones run dense. pos < 0: all of the sequence is prompt (as in a new context). seq_id < 0: every
// sequence, also those not seen yet. The mark is the caller's word: llama_memory_seq_rm leaves it alone, _seq_cp, _add
// and _div carry it along, _seq_keep drops those of the other sequences, llama_memory_clear drops all. Another mark makes a
// rate that is held begin anew; what is decoded again after llama_memory_seq_rm is decided as it was the first time.
PYSKIP_API enum pyskip_status pyskip_set_generated_from(struct llama_context * ctx, int32_t seq_id, int32_t pos);

// Blocks evaluated and skipped, per layer, for tokens of a phase that were decoded under a policy other than off since
// the context was made or the counters were reset. evaluated and skipped hold pyskip_n_layer() entries each. Layers
// that cannot be skipped count as evaluated. In the last layer only tokens with an output count, since llama.cpp
// computes no others there.
PYSKIP_API enum pyskip_status pyskip_get_counters(const struct llama_context * ctx, enum pyskip_phase phase,
                                                  int64_t * n_tokens, int64_t * evaluated, int64_t * skipped);
PYSKIP_API void               pyskip_reset_counters(struct llama_context * ctx);

// The same for the tokens that were decoded in one sequence; seq_id < 0: in all. Counters stay when a sequence is copied or
// removed.
PYSKIP_API enum pyskip_status pyskip_seq_get_counters(const struct llama_context * ctx, int32_t seq_id,
                                                      enum pyskip_phase phase, int64_t * n_tokens, int64_t * evaluated,
                                                      int64_t * skipped);
// Attention sublayers of the same tokens, which count in every layer.
PYSKIP_API enum pyskip_status pyskip_seq_get_attention_counters(const struct llama_context * ctx, int32_t seq_id,
                                                                enum pyskip_phase phase, int64_t * evaluated,
                                                                int64_t * skipped);
PYSKIP_API void               pyskip_seq_reset_counters(struct llama_context * ctx, int32_t seq_id);

// A draft was rejected: generated tokens of seq_id at positions >= pos count no more, nor are they in the trace. Of the last
// PYSKIP_N_RECENT generated tokens that were decoded. What is in the memory is llama_memory_seq_rm's matter.
#define PYSKIP_N_RECENT 256
PYSKIP_API void pyskip_seq_take_back(struct llama_context * ctx, int32_t seq_id, int32_t pos);

// Keep the decisions of the last `capacity` generated tokens that were decoded under a policy other than off; 0 stops
// and frees. Changing the capacity drops what is kept.
PYSKIP_API enum pyskip_status pyskip_set_trace(struct llama_context * ctx, size_t capacity);

// Take up to n traced tokens, oldest first, and drop them. Returns how many. For token i and layer il,
// skipped[i*n_layer + il] is 1 if the block was skipped, and sim[i*n_layer + il] is cos(x, z) if it was tested
// (cosine), or the gate's score (profile, random with a profile), else NaN. skipped and sim may be NULL.
PYSKIP_API size_t pyskip_take_trace(struct llama_context * ctx, size_t n, struct pyskip_trace_token * tokens,
                                    uint8_t * skipped, float * sim);

// The same for the tokens of one sequence, the others are kept; seq_id < 0: of all. attention and attention_sim, if they are
// not NULL, hold the same of the layers' attention.
PYSKIP_API size_t pyskip_seq_take_trace(struct llama_context * ctx, int32_t seq_id, size_t n,
                                        struct pyskip_trace_token * tokens, uint8_t * skipped, float * sim,
                                        uint8_t * attention, float * attention_sim);

// Make the llama_decode() of this context that is under way, and those to come, stop as soon as they can and return 2;
// abort = false lets them run again. The only function here that another thread may call during a llama_decode(), once
// it was called with false before.
PYSKIP_API enum pyskip_status pyskip_set_abort(struct llama_context * ctx, bool abort);

// Between (ctx, true) and (ctx, false) SIGINT makes the llama_decode() of this context stop, as pyskip_set_abort() does, and
// nothing else; the second call tells whether it came, for the caller to raise it again. For one context at a time, once
// pyskip_set_abort(ctx, false) was called.
PYSKIP_API bool pyskip_watch_interrupt(struct llama_context * ctx, bool begin);

// For models larger than memory, mapped from their file: under a policy other than off, from the next llama_decode() on,
// nothing is read around a page that is missing, and the weights of a block are asked for when it was decided to run.
PYSKIP_API enum pyskip_status pyskip_set_streaming(struct llama_context * ctx, bool on);

// What a pace did since its statistics were reset. Rates are nominal: the operating points that it asked for.
struct pyskip_pace_stats {
    double target_tps;
    double tps;       // measured last, tokens/s; 0 if nothing was measured
    double rate;      // now
    double mean_rate; // over the time that was measured
    double floor;
    double max_skip;
    double held;     // share of the time in which the rate was at least 0.9 of the target
    double seconds;  // measured
    bool   is_short; // max_skip is not enough, for now
};

// A pace to keep: which skip rate, from `floor` to `max_skip`, decodes target_tps tokens/s. It knows no context and no clock:
// who decodes a sequence has a pace for it, says what its tokens took, and sets the sequence's policy to the operating point
// of stats.rate, with `hold` off. INVALID for a target that is no rate and for bounds that leave nothing to move.
PYSKIP_API enum pyskip_status pyskip_pace_new(double target_tps, double max_skip, double floor,
                                              struct pyskip_pace ** pace, char * error, size_t n_error);
PYSKIP_API void               pyskip_pace_free(struct pyskip_pace * pace);

// n_tokens took `seconds`: such that the rate had a say in, neither prompt nor warm-up. True if the rate has changed.
PYSKIP_API bool pyskip_pace_add(struct pyskip_pace * pace, double seconds, int32_t n_tokens);

// Another answer begins: the time since the last look at the rate does not count.
PYSKIP_API void pyskip_pace_restart(struct pyskip_pace * pace);
PYSKIP_API void pyskip_pace_get(const struct pyskip_pace * pace, struct pyskip_pace_stats * stats);
PYSKIP_API void pyskip_pace_reset_stats(struct pyskip_pace * pace);

// A model that drafts for itself: with sublayers skipped, in the same context and KV cache. Who decodes verifies a draft in one
// batch with the token before it, as those of any draft model; the text is what it would be without.
//
// The context must be empty: for about thirty tokens it is measured what a batch and a draft cost and how often drafts are
// right. Where nothing can be gained none is made, unless `always`. UNSUPPORTED with the reason in error for a model whose
// memory cannot be cut or nothing of which can be skipped.
PYSKIP_API enum pyskip_status pyskip_lossless_new(struct llama_context * ctx, bool always,
                                                  struct pyskip_lossless ** lossless, char * error, size_t n_error);
PYSKIP_API void               pyskip_lossless_free(struct pyskip_lossless * lossless);

// Whether drafts are made, and in line the reason, with what was measured.
PYSKIP_API bool pyskip_lossless_pays(const struct pyskip_lossless * lossless, char * line, size_t n_line);

// A draft of up to n_max tokens behind `token`, which was sampled for position `pos` of the sequence and is not decoded yet.
// Returns how many, at most PYSKIP_N_DRAFT; 0 if a step is better. Memory, counters, trace and policies are as before, the
// logits are gone. One sequence at a time: the batch that is decoded next, and `pos` in the next call, tell what came of it.
#define PYSKIP_N_DRAFT 7
PYSKIP_API int32_t pyskip_lossless_draft(struct pyskip_lossless * lossless, int32_t seq_id, int32_t pos, int32_t token,
                                         int32_t n_max, int32_t * tokens);

// Until pyskip_catch_aborts(false), what makes llama.cpp abort in this thread is thrown as an exception instead. For
// calls that catch, log and return NULL: llama_model_load_from_file() and llama_init_from_model().
PYSKIP_API void pyskip_catch_aborts(bool begin);

// llama_tokenize() and llama_token_to_piece() with their arguments, and UNSUPPORTED with the reason in error for a
// vocabulary that they throw or abort on. n_out: what they return; if it is negative, its magnitude is the room needed.
PYSKIP_API enum pyskip_status pyskip_tokenize(const struct llama_vocab * vocab, const char * text, int32_t n_text,
                                              int32_t * tokens, int32_t n_tokens, bool add_special, bool parse_special,
                                              int32_t * n_out, char * error, size_t n_error);
PYSKIP_API enum pyskip_status pyskip_token_to_piece(const struct llama_vocab * vocab, int32_t token, char * piece,
                                                    int32_t n_piece, bool special, int32_t * n_out, char * error,
                                                    size_t n_error);

// llama_sampler_init_dry() with its arguments, whose breakers are split into tokens: UNSUPPORTED with the reason in error for a
// vocabulary that cannot.
PYSKIP_API enum pyskip_status pyskip_sampler_init_dry(const struct llama_vocab * vocab, float multiplier, float base,
                                                      int32_t allowed_length, int32_t penalty_last_n,
                                                      const char ** breakers, size_t n_breakers,
                                                      struct llama_sampler ** sampler, char * error, size_t n_error);

// A grammar (GBNF) for the JSON documents of a schema, by llama.cpp's own converter. n_needed: bytes that it takes, with its
// NUL; what does not fit into n_grammar is cut off. INVALID for keywords that the grammar would not hold, and for schemas
// whose grammars have no end, UNSUPPORTED for what the converter refuses, with the reason in error.
PYSKIP_API enum pyskip_status pyskip_json_schema_grammar(const char * schema, char * grammar, size_t n_grammar,
                                                         size_t * n_needed, char * error, size_t n_error);

// How many ways to go on a grammar may have at a time before llama.cpp's samplers throw std::runtime_error, instead of
// computing without end; 0, the default: any number. For programs that catch it.
PYSKIP_API void pyskip_grammar_limit(int32_t n);

// Drop llama.cpp's log from now on: whoever receives it is about to go.
PYSKIP_API void pyskip_log_drop(void);

// For command lines: from now on a crash in native code (SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT; what Windows calls
// exceptions) ends the process with exit code 1 and one line on the file descriptor fd, on Windows on that handle. A stack that ran over is heard of in the thread that called this, and
// in those that decode or tokenize.
PYSKIP_API void pyskip_exit_on_crash(int32_t fd);

// What a GGUF file says of its model, read by upstream's own reader without loading weights.
struct pyskip_gguf_info {
    char    architecture[64];
    char    name[128]; // general.name, else ""
    int64_t n_tensors;
    int64_t n_params;       // all weights
    int64_t bytes;          // all weights, as stored
    int64_t ffn_bytes;      // of blk.N.ffn_{up,gate,down} and their expert, bias and scale tensors, or of RWKV's
                            // blk.N.channel_mix_*; of an encoder-decoder the decoder's
    int64_t read_bytes;     // that decoding a token reads: of experts those that are used, of the embeddings one row
                            // unless the output shares them
    int64_t read_ffn_bytes; // of the FFN weights
    int64_t n_layer;        // 0 if the file does not say, here and below
    int64_t n_ctx_train;
    int64_t n_positions; // learned ones, at which a context ends; 0 if positions are computed
    int64_t n_embd;
    int64_t n_ff;               // of the widest layer
    int64_t kv_bytes_per_token; // of an f16 KV cache
    bool    has_chat_template;
    char    fingerprint[32]; // of the tensors' names, types, shapes and a sample of the FFN weights' bytes
};

PYSKIP_API enum pyskip_status pyskip_gguf_inspect(const char * path, struct pyskip_gguf_info * info, char * error,
                                                  size_t n_error);

// Bytes of one layer's FFN weights that a token reads, for n layers: of the experts, those that are used. Layers that the
// file does not have get 0.
PYSKIP_API enum pyskip_status pyskip_gguf_ffn_bytes(const char * path, int64_t * bytes, size_t n, char * error,
                                                    size_t n_error);

// Read a profile. It is checked whole: fields, shapes, finite values. FILE with the field in error if it is not
// sound. The caller tells by the fingerprint whether it belongs to a model. Freed only after every context has
// another policy or is gone.
PYSKIP_API enum pyskip_status pyskip_profile_load(const char * path, struct pyskip_profile ** profile, char * error,
                                                  size_t n_error);
PYSKIP_API void               pyskip_profile_free(struct pyskip_profile * profile);

// points holds info.n_points entries, or of attention info.n_attention_points; stand_in_bytes and gate_bytes info.n_layer:
// what one skipped sublayer, and one token's gate, read there; gate_bytes is 0 if it is never skipped.
PYSKIP_API void pyskip_profile_get(const struct pyskip_profile * profile, struct pyskip_profile_info * info);
PYSKIP_API void pyskip_profile_get_points(const struct pyskip_profile * profile, enum pyskip_sublayer sublayer,
                                          struct pyskip_profile_point * points);

// The curve at a rate, straight between its points; below the first the threshold falls without bound. INVALID beyond the
// last one, and if there is none.
PYSKIP_API enum pyskip_status pyskip_profile_get_point_at(const struct pyskip_profile * profile,
                                                          enum pyskip_sublayer sublayer, double rate,
                                                          struct pyskip_profile_point * point, char * error,
                                                          size_t n_error);
PYSKIP_API void pyskip_profile_get_bytes(const struct pyskip_profile * profile, enum pyskip_sublayer sublayer,
                                         int64_t * stand_in_bytes, int64_t * gate_bytes);

// Up to n sublayers, those that the model misses least first, into steps. Returns how many the profile has; 0 if such sets were
// not looked for.
PYSKIP_API int32_t pyskip_profile_get_static(const struct pyskip_profile * profile, enum pyskip_static_by by,
                                             struct pyskip_static_step * steps, int32_t n);

// What a calibration gathers: sums over tokens of f f' and of f t', by layer. x is the stream that enters a block, xn
// that stream normed, y the block's output.
enum pyskip_gather_kind {
    PYSKIP_GATHER_OUTPUTS = 0, // f = (xn, log(|x|), 1), t = y: for linear stand-ins
    PYSKIP_GATHER_NEURONS = 1, // f = 1, t = (h^2, xn^2), h being what ffn_down reads if that is act(gate) * up
    PYSKIP_GATHER_HIDDEN  = 2, // f = (the h of the gated stand-in, 1), t = y, times 1 / |y - stand-in|
    PYSKIP_GATHER_ERRORS  = 3, // f = (xn, log(|x|), 1), t = log(|y - stand-in|)
    PYSKIP_GATHER_GIVEN   = 4, // f = (xn, log(|x|), 1), t = pyskip_gather_set_targets()'s
    PYSKIP_GATHER_STEPS   = 5, // f = 1, t = (cos(x, x + y), |y| / |x|)
};

struct pyskip_gather_sums {
    const float * gram;  // [n_row, n_row]; NULL for neurons and steps
    const float * cross; // [n_cross, n_row]
    int64_t       n_row;
    int64_t       n_cross;
    int32_t       activation; // enum pyskip_activation, for the neurons
    double        energy;     // sum of |t|^2; 0 for neurons and steps
    int64_t       n_tokens;   // 0 if the layer lacks the gathered quantity
};

// What a gated block does to its gate before the product with `up`.
enum pyskip_activation {
    PYSKIP_ACTIVATION_NONE = 0, // the block is no such product
    PYSKIP_ACTIVATION_SILU = 1,
    PYSKIP_ACTIVATION_GELU = 2, // the tanh approximation, as ggml's GEGLU
    PYSKIP_ACTIVATION_RELU = 3,
};

// From the next llama_decode() the context runs dense, and sums are gathered over its generated tokens at index >=
// warmup. `profile` belongs to HIDDEN and ERRORS, NULL to the others; attention has neither NEURONS nor HIDDEN. Ends with
// pyskip_gather_free().
PYSKIP_API enum pyskip_status pyskip_gather_start(struct llama_context * ctx, enum pyskip_gather_kind kind,
                                                  enum pyskip_sublayer sublayer, const struct pyskip_profile * profile,
                                                  int32_t warmup, struct pyskip_gather ** gather, char * error,
                                                  size_t n_error);

// GIVEN: what belongs to the tokens at positions 0 to n - 1 of the batches to come, copied; NaN: it does not count.
PYSKIP_API void pyskip_gather_set_targets(struct pyskip_gather * gather, const float * targets, int32_t n);

// Layer il's sums so far; the pointers hold until pyskip_gather_free().
PYSKIP_API void pyskip_gather_get(const struct pyskip_gather * gather, int32_t il, struct pyskip_gather_sums * sums);
PYSKIP_API void pyskip_gather_free(struct llama_context * ctx, struct pyskip_gather * gather);

#ifdef __cplusplus
}
#endif
