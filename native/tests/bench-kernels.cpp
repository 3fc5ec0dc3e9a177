// How long products take with pyskip's kernels and with upstream's, in turns, on this machine:
//
//   bench-kernels [THREADS [TYPE ...]]
//
// For each type, for 1 column (decoding) and more (prompts, packed rows): the median time of a product of a matrix out of
// a set that no cache holds, what that reads in GB/s or computes in GMAC/s, and upstream's time over pyskip's.

#include "kernels-common.h"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <random>
#include <string>

// With one thread its own time, which is the same beside other programs; with more the clock's.
static double seconds(bool is_own) {
    if (is_own) {
        return (double) clock() / CLOCKS_PER_SEC;
    }
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct arm {
    std::vector<product> products;
    std::vector<double>  samples;

    void run(const cpu & cpu, int n_threads) {
        const double begin = seconds(n_threads == 1);
        for (product & p : products) {
            ggml_backend_graph_compute(cpu.backend.get(), p.graph);
        }
        samples.push_back((seconds(n_threads == 1) - begin) / products.size());
    }

    double median() const { return median_of(samples); }
};

static bool fill(const cpu & cpu, arm & arm, bool is_ours, ggml_type type, int64_t n_embd, int64_t n_row,
                 int64_t n_column, const std::vector<char> & data) {
    for (ggml_backend_buffer_type_t buft : cpu.buffer_types()) {
        if ((strcmp(ggml_backend_buft_name(buft), "CPU_PYSKIP") == 0) != is_ours) {
            continue;
        }
        const size_t n = std::max<size_t>(1, (n_column > 16 ? 8u << 20 : 128u << 20) / data.size());
        for (size_t i = 0; i < n; ++i) {
            product p(cpu, buft, type, n_embd, n_row, n_column);
            if (!p.is_supported) {
                break;
            }
            ggml_backend_tensor_set(p.weights, data.data(), 0, data.size());
            std::vector<float> x(n_embd * n_column);
            for (size_t j = 0; j < x.size(); ++j) {
                x[j] = (float) ((j * 2654435761u) % 2001) / 1000.0f - 1.0f;
            }
            ggml_backend_tensor_set(p.x, x.data(), 0, ggml_nbytes(p.x));
            arm.products.push_back(std::move(p));
        }
        if (!arm.products.empty()) {
            return true;
        }
    }
    return false;
}

int main(int argc, char ** argv) {
    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    const int     n_threads = argc > 1 ? atoi(argv[1]) : 2;
    const cpu     cpu(n_threads);
    const int64_t n_embd = 1536;
    const int64_t n_row  = 8960;

    const ggml_type types[] = { GGML_TYPE_Q4_K,   GGML_TYPE_Q5_K,   GGML_TYPE_Q6_K, GGML_TYPE_Q8_0,
                                GGML_TYPE_Q4_0,   GGML_TYPE_Q4_1,   GGML_TYPE_Q5_0, GGML_TYPE_Q5_1,
                                GGML_TYPE_IQ4_XS, GGML_TYPE_IQ4_NL, GGML_TYPE_Q3_K, GGML_TYPE_Q2_K };
    printf("%-7s %4s %12s %12s %8s %8s %8s\n", "type", "n", "upstream us", "fast us", "GB/s", "GMAC/s", "ratio");
    for (ggml_type type : types) {
        bool is_wanted = argc <= 2;
        for (int i = 2; i < argc; ++i) {
            is_wanted = is_wanted || strcmp(argv[i], ggml_type_name(type)) == 0;
        }
        if (!is_wanted) {
            continue;
        }
        std::vector<float>              rows(n_embd * 64);
        std::mt19937                    random(1);
        std::normal_distribution<float> normal;
        for (float & w : rows) {
            w = normal(random);
        }
        std::vector<char> data(ggml_row_size(type, n_embd) * n_row);
        ggml_quantize_chunk(type, rows.data(), data.data(), 0, 64, n_embd, std::vector<float>(n_embd, 1.0f).data());
        for (int64_t row = 64; row < n_row; row += 64) {
            memcpy(data.data() + row * ggml_row_size(type, n_embd), data.data(), 64 * ggml_row_size(type, n_embd));
        }
        for (int64_t n_column : { 1, 2, 4, 6, 8, 16, 64, 256 }) {
            arm upstream;
            arm fast;
            if (!fill(cpu, upstream, false, type, n_embd, n_row, n_column, data) ||
                !fill(cpu, fast, true, type, n_embd, n_row, n_column, data)) {
                continue;
            }
            for (int round = 0; round < 7; ++round) {
                upstream.run(cpu, n_threads);
                fast.run(cpu, n_threads);
            }
            printf("%-7s %4d %12.0f %12.0f %8.1f %8.0f %8.2f\n", ggml_type_name(type), (int) n_column,
                   1e6 * upstream.median(), 1e6 * fast.median(), data.size() / fast.median() / 1e9,
                   1e-9 * n_embd * n_row * n_column / fast.median(), upstream.median() / fast.median());
            fflush(stdout);
        }
    }
    return 0;
}
