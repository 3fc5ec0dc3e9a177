// pyskip: conditional feed-forward blocks for llama.cpp contexts.
//
// Plain C. Handles are llama.cpp's own (`struct llama_context *`); nothing throws across this line. Every function
// that can fail returns a status and, where it takes `error`, writes one line there that says what was found, what was
// expected and what to do.
//
// A context is not thread-safe, as in llama.cpp: call these between two llama_decode() of the same context.

#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#    define PYSKIP_API __declspec(dllexport)
#else
#    define PYSKIP_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

struct llama_context;

enum pyskip_status {
    PYSKIP_STATUS_OK          = 0,
    PYSKIP_STATUS_INVALID     = 1, // an argument is out of range or contradicts another
    PYSKIP_STATUS_UNSUPPORTED = 2, // this model, context or back end cannot skip
    PYSKIP_STATUS_NO_MEMORY   = 3,
    PYSKIP_STATUS_FILE        = 4, // a file cannot be read, or is not what it should be
};

enum pyskip_policy_type {
    PYSKIP_POLICY_OFF    = 0,
    PYSKIP_POLICY_STATIC = 1,
    PYSKIP_POLICY_COSINE = 2,
};

enum pyskip_phase {
    PYSKIP_PHASE_PROMPT    = 0,
    PYSKIP_PHASE_GENERATED = 1,
};

// The rule that a context decides by. Fields that the type does not use are ignored.
struct pyskip_policy {
    int32_t         type;       // enum pyskip_policy_type
    float           threshold;  // cosine: skip the next blocks when cos(x, z) >= threshold
    int32_t         run;        // cosine: how many blocks one positive test skips; 0 means up to the cold end
    int32_t         cold_start; // cosine: the first layers that always run
    int32_t         cold_end;   // cosine: the last layers that always run
    int32_t         warmup;     // cosine: the first generated tokens of a sequence that run dense
    const int32_t * layers;     // static: the layers whose FFN is skipped for every token
    size_t          n_layers;
};

// One traced token: what was decided for it in each layer.
struct pyskip_trace_token {
    int32_t seq_id; // its (first) sequence
    int32_t pos;    // its position there
};

// The release of llama-cpp-python and the hash of the patch series that this library was built from, for instance
// "llama-cpp-python 0.3.36, llama.cpp 0c1e57098, patches 1f0c...". Static storage.
PYSKIP_API const char * pyskip_build(void);

// Number of layers of the context's model.
PYSKIP_API int32_t pyskip_n_layer(const struct llama_context * ctx);

// Which layers have an FFN that can be skipped, found by building the context's decode graph once: skippable[il] = 1,
// else 0. n is the length of skippable, at least pyskip_n_layer(). UNSUPPORTED with the reason in error where there is
// none (encoders, models without an FFN, layers on another back end than the CPU).
PYSKIP_API enum pyskip_status pyskip_skippable(struct llama_context * ctx, uint8_t * skippable, size_t n,
                                               char * error, size_t n_error);

// Decide by this policy from the next token on. The policy is copied. The context keeps its KV cache, its counters and
// what it knows of its sequences. After a failure the old policy is still in force.
PYSKIP_API enum pyskip_status pyskip_set_policy(struct llama_context * ctx, const struct pyskip_policy * policy,
                                                char * error, size_t n_error);

// Tokens of seq_id at positions >= pos count as generated from now on, those before as prompt. The first `warmup` of
// the generated ones run dense. pos < 0: all of the sequence is prompt (as in a new context). seq_id < 0: every
// sequence, also those not seen yet. The mark is the caller's word: llama_memory_seq_rm leaves it alone, _seq_cp, _add
// and _div carry it along, _seq_keep drops those of the other sequences, llama_memory_clear drops all.
PYSKIP_API enum pyskip_status pyskip_set_generated_from(struct llama_context * ctx, int32_t seq_id, int32_t pos);

// Blocks evaluated and skipped, per layer, for tokens of a phase that were decoded under a policy other than off since
// the context was made or the counters were reset. evaluated and skipped hold pyskip_n_layer() entries each. Layers
// that cannot be skipped count as evaluated. In the last layer only tokens with an output count, since llama.cpp
// computes no others there.
PYSKIP_API enum pyskip_status pyskip_get_counters(const struct llama_context * ctx, enum pyskip_phase phase,
                                                  int64_t * n_tokens, int64_t * evaluated, int64_t * skipped);
PYSKIP_API void               pyskip_reset_counters(struct llama_context * ctx);

// Keep the decisions of the last `capacity` generated tokens that were decoded under a policy other than off; 0 stops
// and frees. Changing the capacity drops what is kept.
PYSKIP_API enum pyskip_status pyskip_set_trace(struct llama_context * ctx, size_t capacity);

// Take up to n traced tokens, oldest first, and drop them. Returns how many. For token i and layer il,
// skipped[i*n_layer + il] is 1 where the block was skipped, and sim[i*n_layer + il] is cos(x, z) where it was tested,
// else NaN. skipped and sim may be NULL.
PYSKIP_API size_t pyskip_take_trace(struct llama_context * ctx, size_t n, struct pyskip_trace_token * tokens,
                                    uint8_t * skipped, float * sim);

// Make the llama_decode() of this context that is under way, and those to come, stop as soon as they can and return 2;
// abort = false lets them run again. The only function here that another thread may call during a llama_decode(), once
// it was called with false before.
PYSKIP_API enum pyskip_status pyskip_set_abort(struct llama_context * ctx, bool abort);

// What a GGUF file says of its model, read by upstream's own reader without loading weights.
struct pyskip_gguf_info {
    char    architecture[64];
    char    name[128];          // general.name, else ""
    int64_t n_tensors;
    int64_t n_params;           // all weights
    int64_t bytes;              // all weights, as stored
    int64_t ffn_bytes;          // of blk.N.ffn_{up,gate,down} and their expert, bias and scale tensors
    int64_t n_layer;            // 0 where the file does not say, here and below
    int64_t n_ctx_train;
    int64_t n_embd;
    int64_t n_ff;               // of the widest layer
    int64_t kv_bytes_per_token; // of an f16 KV cache
    bool    has_chat_template;
};

PYSKIP_API enum pyskip_status pyskip_gguf_inspect(const char * path, struct pyskip_gguf_info * info,
                                                  char * error, size_t n_error);

#ifdef __cplusplus
}
#endif
