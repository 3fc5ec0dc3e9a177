// How long attention of few rows takes with pyskip's kernels and with upstream's, in turns, on this machine:
//
//   bench-attention [THREADS [MODEL]]
//
// For shapes of heads, rows, and keys in the cache: the median time of one layer's attention, what that reads of the cache
// in GB/s, and upstream's time over pyskip's.

#include "kernels-common.h"

#include <algorithm>
#include <chrono>
#include <cmath>

struct shape {
    const char * name;
    int64_t      n_embd, n_head, n_head_kv; // of a head; heads
};

// Layers whose queries are products of weights in a buffer type: pyskip's kernels take those that are packed.
struct layers {
    ggml_context_ptr        weights_ctx, ctx;
    ggml_backend_buffer_ptr weights_buffer, buffer;
    ggml_cgraph *           graph;
    std::vector<double>     samples;

    layers(const cpu & cpu, const char * buffer_type, const shape & s, int64_t n_key, int64_t n_row, int n_layer) {
        const ggml_init_params params = { (size_t) (16 * n_layer + 16) * ggml_tensor_overhead() + ggml_graph_overhead(),
                                          nullptr, true };
        weights_ctx.reset(ggml_init(params));
        ctx.reset(ggml_init(params));
        graph              = ggml_new_graph(ctx.get());
        ggml_tensor * w    = ggml_new_tensor_2d(weights_ctx.get(), GGML_TYPE_Q8_0, 32, s.n_embd * s.n_head);
        ggml_tensor * x    = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 32, n_row);
        ggml_tensor * mask = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F16, n_key, n_row);
        ggml_tensor * q    = ggml_permute(
            ctx.get(), ggml_reshape_3d(ctx.get(), ggml_mul_mat(ctx.get(), w, x), s.n_embd, s.n_head, n_row), 0, 2, 1,
            3);
        const auto cache = [&] { // as a model's: a key's heads side by side
            return ggml_permute(ctx.get(), ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F16, s.n_embd, s.n_head_kv, n_key),
                                0, 2, 1, 3);
        };
        for (int il = 0; il < n_layer; ++il) {
            ggml_build_forward_expand(graph, ggml_flash_attn_ext(ctx.get(), q, cache(), cache(), mask,
                                                                 1.0f / std::sqrt((float) s.n_embd), 0.0f, 0.0f));
        }
        ggml_backend_buffer_type_t buft = cpu.buffer_type(buffer_type);
        weights_buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(weights_ctx.get(), buft));
        buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), ggml_backend_dev_buffer_type(cpu.dev)));
        ggml_backend_buffer_clear(buffer.get(), 0);
        const std::vector<char> zeros(ggml_nbytes(w));
        ggml_backend_tensor_set(w, zeros.data(), 0, zeros.size());
    }

    void run(const cpu & cpu, int n_layer) {
        const auto begin = std::chrono::steady_clock::now();
        ggml_backend_graph_compute(cpu.backend.get(), graph);
        samples.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / n_layer);
    }

    double median() const { return median_of(samples); }
};

int main(int argc, char ** argv) {
    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    const int n_threads = argc > 1 ? atoi(argv[1]) : 2;
    const cpu cpu(n_threads);
    if (!cpu.buffer_type("CPU_PYSKIP")) {
        printf("bench-attention: no kernels on this processor\n");
        return 0;
    }
    const shape shapes[] = {
        { "SmolLM2 135M", 64, 9, 3 },  { "Qwen2.5 1.5B", 128, 12, 2 },      { "LLaMA 3 8B", 128, 32, 8 },
        { "Gemma 3 270M", 256, 4, 1 }, { "Phi 2 (no groups)", 80, 32, 32 },
    };
    printf("%-18s %5s %4s %12s %12s %8s %8s\n", "heads of", "keys", "rows", "upstream us", "fast us", "GB/s", "ratio");
    for (const shape & s : shapes) {
        if (argc > 2 && !strstr(s.name, argv[2])) {
            continue;
        }
        for (int64_t n_key : { 256, 2048, 8192 }) {
            for (int64_t n_row : { 1, 4 }) {
                const double bytes   = 2.0 * sizeof(ggml_fp16_t) * s.n_embd * s.n_head_kv * n_key;
                const int    n_layer = std::clamp((int) (256e6 / bytes), 2, 32);
                layers       upstream(cpu, "CPU", s, n_key, n_row, n_layer);
                layers       fast(cpu, "CPU_PYSKIP", s, n_key, n_row, n_layer);
                for (int round = 0; round < 7; ++round) {
                    upstream.run(cpu, n_layer);
                    fast.run(cpu, n_layer);
                }
                printf("%-18s %5d %4d %12.0f %12.0f %8.1f %8.2f\n", s.name, (int) n_key, (int) n_row,
                       1e6 * upstream.median(), 1e6 * fast.median(), bytes / fast.median() / 1e9,
                       upstream.median() / fast.median());
                fflush(stdout);
            }
        }
    }
    return 0;
}
