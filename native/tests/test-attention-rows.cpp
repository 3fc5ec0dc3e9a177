// Attention of few rows by pyskip's kernels: against sums in double precision, more precisely than upstream's own comes; and
// the same bits for a row alone and in a batch, for any number of threads, and for keys that lie apart.

#include "check.h"
#include "kernels-common.h"

#include <cmath>
#include <memory>

struct shape {
    int   n_embd; // of a head
    int   n_head;
    int   n_head_kv;
    int   n_key;
    int   n_row;
    float max_bias  = 0.0f;
    float softcap   = 0.0f;
    bool  has_sinks = false;
    int   n_apart   = 1; // cells of the cache a key: the others are masked
};

static constexpr int N_IN = 64; // what queries are a product of

// The same numbers for a key, a head and an element wherever they lie.
static float number(int what, int a, int b, int c) {
    uint64_t x = ((uint64_t) what << 56) ^ ((uint64_t) a << 32) ^ ((uint64_t) b << 16) ^ (uint64_t) c;
    for (int i = 0; i < 2; ++i) {
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u + 0x9e3779b97f4a7c15u;
    }
    return (float) (x >> 40) / 8388608.0f - 1.0f;
}

// How many keys a row sees.
static int n_seen(const shape & s, int row) {
    return s.n_key - (s.n_row - 1 - row) % s.n_key;
}

struct attention {
    std::vector<float> queries; // [n_row][n_head][n_embd]
    std::vector<float> out;     // likewise
};

static std::vector<ggml_fp16_t> cells(const shape & s, int what) {
    const int                n_cell = s.n_key * s.n_apart;
    std::vector<ggml_fp16_t> data((size_t) s.n_head_kv * n_cell * s.n_embd, ggml_fp32_to_fp16(7.0f));
    for (int head = 0; head < s.n_head_kv; ++head) {
        for (int key = 0; key < s.n_key; ++key) {
            for (int e = 0; e < s.n_embd; ++e) {
                data[((size_t) head * n_cell + key * s.n_apart) * s.n_embd + e] =
                    ggml_fp32_to_fp16(number(what, key, head, e));
            }
        }
    }
    return data;
}

// Rows [first, first + n) of the batch.
static attention compute(int n_threads, const shape & s, int first, int n) {
    const cpu               cpu(n_threads);
    const int               n_cell = s.n_key * s.n_apart;
    const ggml_init_params  params = { 32 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true };
    const ggml_context_ptr  weights_ctx(ggml_init(params));
    const ggml_context_ptr  ctx(ggml_init(params));
    ggml_backend_buffer_ptr buffers[2];

    ggml_tensor * w     = ggml_new_tensor_2d(weights_ctx.get(), GGML_TYPE_Q8_0, N_IN, s.n_embd * s.n_head);
    ggml_tensor * x     = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, N_IN, n);
    ggml_tensor * k     = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F16, s.n_embd, n_cell, s.n_head_kv);
    ggml_tensor * v     = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F16, s.n_embd, n_cell, s.n_head_kv);
    ggml_tensor * mask  = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F16, n_cell, n);
    ggml_tensor * sinks = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, s.n_head);
    ggml_tensor * all   = ggml_mul_mat(ctx.get(), w, x);
    ggml_tensor * q     = ggml_permute(ctx.get(), ggml_reshape_3d(ctx.get(), all, s.n_embd, s.n_head, n), 0, 2, 1, 3);
    ggml_tensor * y =
        ggml_flash_attn_ext(ctx.get(), q, k, v, mask, 1.0f / std::sqrt((float) s.n_embd), s.max_bias, s.softcap);
    if (s.has_sinks) {
        ggml_flash_attn_ext_add_sinks(y, sinks);
    }
    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph, y);
    buffers[0].reset(ggml_backend_alloc_ctx_tensors_from_buft(weights_ctx.get(), cpu.buffer_type("CPU_PYSKIP")));
    buffers[1].reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), ggml_backend_dev_buffer_type(cpu.dev)));

    std::vector<float> rows((size_t) N_IN * s.n_embd * s.n_head);
    for (size_t i = 0; i < rows.size(); ++i) {
        rows[i] = number(1, (int) i, 0, 0) / 4.0f;
    }
    std::vector<char> packed(ggml_nbytes(w));
    ggml_quantize_chunk(w->type, rows.data(), packed.data(), 0, w->ne[1], N_IN, nullptr);
    ggml_backend_tensor_set(w, packed.data(), 0, packed.size());
    std::vector<float>       inputs, sink;
    std::vector<ggml_fp16_t> seen((size_t) n_cell * n, ggml_fp32_to_fp16(-INFINITY));
    for (int row = 0; row < n; ++row) {
        for (int e = 0; e < N_IN; ++e) {
            inputs.push_back(number(2, first + row, e, 0));
        }
        for (int key = 0; key < n_seen(s, first + row); ++key) {
            seen[(size_t) row * n_cell + key * s.n_apart] = ggml_fp32_to_fp16(s.max_bias > 0.0f ? -0.25f * key : 0.0f);
        }
    }
    for (int head = 0; head < s.n_head; ++head) {
        sink.push_back(number(3, head, 0, 0));
    }
    ggml_backend_tensor_set(x, inputs.data(), 0, ggml_nbytes(x));
    ggml_backend_tensor_set(k, cells(s, 4).data(), 0, ggml_nbytes(k));
    ggml_backend_tensor_set(v, cells(s, 5).data(), 0, ggml_nbytes(v));
    ggml_backend_tensor_set(mask, seen.data(), 0, ggml_nbytes(mask));
    ggml_backend_tensor_set(sinks, sink.data(), 0, ggml_nbytes(sinks));
    ggml_backend_graph_compute(cpu.backend.get(), graph);

    attention found;
    found.queries.resize(ggml_nelements(all));
    found.out.resize(ggml_nelements(y));
    ggml_backend_tensor_get(all, found.queries.data(), 0, ggml_nbytes(all));
    ggml_backend_tensor_get(y, found.out.data(), 0, ggml_nbytes(y));
    return found;
}

static double score_of(const shape & s, const float * query, int head, int key) {
    double dot = 0.0;
    for (int e = 0; e < s.n_embd; ++e) {
        dot += (double) query[e] *
               ggml_fp16_to_fp32(ggml_fp32_to_fp16(number(4, key, head / (s.n_head / s.n_head_kv), e)));
    }
    dot /= std::sqrt((double) s.n_embd);
    if (s.softcap != 0.0f) {
        dot = s.softcap * std::tanh(dot / s.softcap);
    }
    const double slope = s.max_bias > 0.0f ? std::pow(2.0, -s.max_bias * (head + 1) / s.n_head) : 1.0; // n_head 2^n
    return dot + (s.max_bias > 0.0f ? slope * -0.25 * key : 0.0);
}

// The error of a row of a head, and what it is measured by.
static void compare(const shape & s, const attention & found, int row, int head, double & error, double & norm) {
    const size_t        at = ((size_t) row * s.n_head + head) * s.n_embd;
    std::vector<double> out(s.n_embd);
    double              sum = s.has_sinks ? std::exp(number(3, head, 0, 0)) : 0.0;
    for (int key = 0; key < n_seen(s, row); ++key) {
        const double weight = std::exp(score_of(s, found.queries.data() + at, head, key));
        sum += weight;
        for (int e = 0; e < s.n_embd; ++e) {
            out[e] += weight * ggml_fp16_to_fp32(ggml_fp32_to_fp16(number(5, key, head / (s.n_head / s.n_head_kv), e)));
        }
    }
    for (int e = 0; e < s.n_embd; ++e) {
        const double expected = out[e] / sum;
        error += (expected - found.out[at + e]) * (expected - found.out[at + e]);
        norm += expected * expected;
    }
}

static void test_shape(const shape & s) {
    const attention found = compute(1, s, 0, s.n_row);
    double          error = 0.0;
    double          norm  = 0.0;
    for (int row = 0; row < s.n_row; ++row) {
        for (int head = 0; head < s.n_head; ++head) {
            compare(s, found, row, head, error, norm);
        }
    }
    CHECK(norm > 0.0);
    CHECK(error / norm < 1e-11); // sums in half precision, as upstream's are, come to 1e-8 and more
    for (int n_threads : { 2, 3, 8 }) {
        CHECK(compute(n_threads, s, 0, s.n_row).out == found.out);
    }
    shape apart   = s;
    apart.n_apart = 3;
    CHECK(compute(2, apart, 0, s.n_row).out == found.out);
    const size_t row_size = (size_t) s.n_head * s.n_embd;
    for (int row : { 0, s.n_row - 1 }) {
        const attention alone = compute(2, s, row, 1);
        CHECK(std::equal(alone.out.begin(), alone.out.end(), found.out.begin() + row * row_size));
    }
}

int main() {
    const cpu cpu(1);
    if (!cpu.buffer_type("CPU_PYSKIP")) {
        return check_result("attention-rows: no kernels on this processor");
    }
    test_shape({ 64, 6, 2, 33, 4 });
    test_shape({ 80, 4, 4, 1, 1 });
    test_shape({ 128, 4, 1, 300, 2 });
    test_shape({ 64, 4, 2, 1200, 3 });
    test_shape({ 256, 4, 2, 40, 3, 0.0f, 5.0f });
    test_shape({ 64, 4, 4, 50, 2, 8.0f });
    test_shape({ 64, 8, 2, 50, 2, 8.0f });
    test_shape({ 64, 14, 2, 70, 2 }); // heads that share keys: more than registers hold, on any processor
    test_shape({ 128, 12, 2, 2100, 1 });
    test_shape({ 64, 4, 1, 8700, 1 });                   // pieces of more keys than are weighed at a time
    test_shape({ 64, 6, 3, 1300, 5, 0.0f, 0.0f, true }); // groups that do not go round
    test_shape({ 96, 8, 1, 45, 5, 0.0f, 5.0f, true });
    test_shape({ 64, 4, 2, 600, 2, 0.0f, 0.0f, true });
    return check_result("attention-rows");
}
