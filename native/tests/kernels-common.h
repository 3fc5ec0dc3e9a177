// What tests and benchmarks of kernels share: the CPU back end; a product of weights, as the buffer type says how they are
// stored, with activations; the median of times.

#pragma once

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

struct cpu {
    ggml_backend_dev_t dev;
    ggml_backend_ptr   backend;

    explicit cpu(int n_threads) {
        ggml_backend_load_all();
        dev = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
        backend.reset(ggml_backend_dev_init(dev, nullptr));
        auto set_n_threads = (ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(
            ggml_backend_dev_backend_reg(dev), "ggml_backend_set_n_threads");
        set_n_threads(backend.get(), n_threads);
    }

    // the buffer types that weights may have, in the order in which a model asks them
    std::vector<ggml_backend_buffer_type_t> buffer_types() const {
        std::vector<ggml_backend_buffer_type_t> types;
        auto get = (ggml_backend_dev_get_extra_bufts_t) ggml_backend_reg_get_proc_address(
            ggml_backend_dev_backend_reg(dev), "ggml_backend_dev_get_extra_bufts");
        for (ggml_backend_buffer_type_t * type = get(dev); *type; ++type) {
            types.push_back(*type);
        }
        types.push_back(ggml_backend_dev_buffer_type(dev));
        return types;
    }

    ggml_backend_buffer_type_t buffer_type(const char * name) const {
        for (ggml_backend_buffer_type_t type : buffer_types()) {
            if (strcmp(ggml_backend_buft_name(type), name) == 0) {
                return type;
            }
        }
        return nullptr;
    }
};

struct product {
    ggml_context_ptr        weights_ctx;
    ggml_context_ptr        ctx;
    ggml_backend_buffer_ptr weights_buffer;
    ggml_backend_buffer_ptr buffer;
    ggml_tensor *           weights;
    ggml_tensor *           x;
    ggml_tensor *           ids = nullptr;
    ggml_tensor *           y;
    ggml_cgraph *           graph;

    // n_expert > 0: so many matrices, n_used of them for each column
    product(const cpu & cpu, ggml_backend_buffer_type_t type_of_buffer, ggml_type type, int64_t n_embd, int64_t n_row,
            int64_t n_column, int64_t n_expert = 0, int64_t n_used = 0) {
        const ggml_init_params params = { 16 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true };
        weights_ctx.reset(ggml_init(params));
        ctx.reset(ggml_init(params));
        weights = n_expert ? ggml_new_tensor_3d(weights_ctx.get(), type, n_embd, n_row, n_expert)
                           : ggml_new_tensor_2d(weights_ctx.get(), type, n_embd, n_row);
        if (n_expert) {
            x   = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, n_embd, 1, n_column);
            ids = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_I32, n_used, n_column);
            y   = ggml_mul_mat_id(ctx.get(), weights, x, ids);
        } else {
            x = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_embd, n_column);
            y = ggml_mul_mat(ctx.get(), weights, x);
        }
        graph = ggml_new_graph(ctx.get());
        ggml_build_forward_expand(graph, y);

        weights->buffer = ggml_backend_buft_alloc_buffer(type_of_buffer, 0);
        is_supported    = ggml_backend_dev_supports_op(cpu.dev, y);
        ggml_backend_buffer_free(weights->buffer);
        weights->buffer = nullptr;
        if (is_supported) {
            weights_buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(weights_ctx.get(), type_of_buffer));
            buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), ggml_backend_dev_buffer_type(cpu.dev)));
        }
    }

    bool is_supported = false;
};

inline double median_of(std::vector<double> samples) {
    std::sort(samples.begin(), samples.end());
    return samples[samples.size() / 2];
}
