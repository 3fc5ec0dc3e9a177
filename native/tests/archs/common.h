// What upstream's test-llama-archs.cpp asks of llama.cpp's common library, which pyskip does not build. make-archs.cpp
// uses that file's model descriptions only; the rest of it has to compile, and stops if it is ever called.

#pragma once

#include "ggml.h"
#include "llama-cpp.h"
#include "llama.h"

#include <algorithm>
#include <string>
#include <vector>

struct llama_batch_ext; // of releases from 0.3.36 on; those before have common_batch_add()

struct common_batch {
    explicit common_batch(llama_context *) { GGML_ABORT("not built"); }
    void              add(llama_token, llama_pos, llama_seq_id, bool) {}
    void              clear() {}
    llama_batch_ext * get() { return nullptr; }
};

inline void common_batch_add(llama_batch &, llama_token, llama_pos, const std::vector<llama_seq_id> &, bool) {
    GGML_ABORT("not built");
}

inline void common_init() {}
