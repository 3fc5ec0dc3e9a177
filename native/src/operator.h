// What pyskip's operators (gate, join, gather) share: llama.cpp's custom operator, and access to rows.

#pragma once

#include "ggml.h"

#include <cstdint>
#include <vector>

// Row i of a matrix of floats.
inline const float * pyskip_row(const ggml_tensor * t, int64_t i) {
    return (const float *) ((const char *) t->data + i * t->nb[1]);
}

// An operator of ours that makes a matrix [ne0, ne1] of floats from `sources`, on every thread.
inline ggml_tensor * pyskip_operator(ggml_context * ctx, int64_t ne0, int64_t ne1, std::vector<ggml_tensor *> sources,
                                     ggml_custom_op_t compute, void * userdata) {
    return ggml_custom_4d(ctx, GGML_TYPE_F32, ne0, ne1, 1, 1, sources.data(), (int) sources.size(), compute, GGML_N_TASKS_MAX, userdata);
}
