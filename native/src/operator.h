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
    return ggml_custom_4d(ctx, GGML_TYPE_F32, ne0, ne1, 1, 1, sources.data(), (int) sources.size(), compute,
                          GGML_N_TASKS_MAX, userdata);
}

// Thread ith's rows [begin, end), and how many threads have any share: a single row is thread 0's alone.
struct pyskip_share {
    pyskip_share(int64_t n_rows, int ith, int nth)
        : n_thread(n_rows == 1 ? 1 : nth),
          begin(ith < n_thread ? n_rows * ith / n_thread : n_rows),
          end(ith < n_thread ? n_rows * (ith + 1) / n_thread : n_rows) {}

    const int     n_thread;
    const int64_t begin;
    const int64_t end;
    bool          is_any(int ith) const { return ith < n_thread; }
};
