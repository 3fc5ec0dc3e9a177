// decode_n MODEL N: prompt, then N single-token decodes on one thread, for an instruction counter to watch.
//
// Built and called by off_instructions.py. It runs on whichever libllama the loader finds and prints which one that was
// ("pyskip" or "unpatched") and a checksum of the last logits. On pyskip's it makes, before every decode, the calls that
// pyskip.Llama makes under `off`.

#include "llama.h"
#include "pyskip.h"

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

static void quiet(ggml_log_level, const char *, void *) {}

[[noreturn]] static void fail(const char * what) {
    fprintf(stderr, "decode_n: %s\n", what);
    exit(1);
}

int main(int argc, char ** argv) {
    if (argc != 3) {
        fail("usage: decode_n MODEL N");
    }
    const int n_gen = atoi(argv[2]);
    const auto set_policy = (decltype(&pyskip_set_policy)) dlsym(RTLD_DEFAULT, "pyskip_set_policy");
    const auto set_generated_from =
        (decltype(&pyskip_set_generated_from)) dlsym(RTLD_DEFAULT, "pyskip_set_generated_from");

    llama_log_set(quiet, nullptr);
    llama_backend_init();
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) {
        fail("cannot load the model");
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx           = 256;
    params.n_threads       = 1;
    params.n_threads_batch = 1;
    llama_context * ctx = llama_init_from_model(model, params);
    if (!ctx) {
        fail("cannot make a context");
    }
    if (set_policy) {
        pyskip_policy off = {};
        char error[256] = "";
        if (set_policy(ctx, &off, error, sizeof(error)) != PYSKIP_STATUS_OK) {
            fail(error);
        }
    }

    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    for (int i = -4; i < n_gen; i++) {
        if (set_generated_from) {
            set_generated_from(ctx, 0, 4);
        }
        llama_token token = 100 + (i + 4) % (n_vocab - 100);
        if (llama_decode(ctx, llama_batch_get_one(&token, 1)) != 0) {
            fail("cannot decode");
        }
    }
    const float * logits = llama_get_logits_ith(ctx, -1);
    uint64_t sum = 14695981039346656037u; // FNV-1a
    for (int32_t i = 0; i < n_vocab; i++) {
        uint32_t bits;
        memcpy(&bits, &logits[i], sizeof(bits));
        sum = (sum ^ bits) * 1099511628211u;
    }
    printf("%s %016llx\n", set_policy ? "pyskip" : "unpatched", (unsigned long long) sum);

    llama_free(ctx);
    llama_model_free(model);
    llama_backend_free();
    return 0;
}
