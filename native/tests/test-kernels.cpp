// pyskip's kernels against the dequantised weights, beside upstream's own: random weights and blocks at the ends of what
// a type can hold, odd shapes, 1 to 33 columns, experts, a node that was shortened; nothing is written beyond the result.

#include "check.h"
#include "kernels-common.h"
#include "pyskip.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <string>

static const ggml_type TYPES[] = { GGML_TYPE_Q4_0, GGML_TYPE_Q4_1,   GGML_TYPE_Q5_0, GGML_TYPE_Q5_1,
                                   GGML_TYPE_Q8_0, GGML_TYPE_IQ4_NL, GGML_TYPE_Q2_K, GGML_TYPE_Q3_K,
                                   GGML_TYPE_Q4_K, GGML_TYPE_Q5_K,   GGML_TYPE_Q6_K, GGML_TYPE_IQ4_XS };

// upstream's own bound for products, tests/test-backend-ops.cpp
static constexpr double MAX_NMSE = 5e-4;

enum content { NORMAL, ANY_BITS, ZEROS, LARGEST };

static std::mt19937 generator(7);

static float uniform(float lo, float hi) {
    return std::uniform_real_distribution<float>(lo, hi)(generator);
}

// Where a block of the type holds f16 numbers, in bytes; -1: no second one.
static void scales_of(ggml_type type, int & d, int & m) {
    const int size = (int) ggml_type_size(type);
    d              = 0;
    m              = -1;
    switch (type) {
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_Q5_1:
        case GGML_TYPE_Q4_K:
        case GGML_TYPE_Q5_K: m = 2; break;
        case GGML_TYPE_Q2_K:
            d = size - 4;
            m = size - 2;
            break;
        case GGML_TYPE_Q3_K:
        case GGML_TYPE_Q6_K: d = size - 2; break;
        default: break;
    }
}

static std::vector<uint8_t> make_weights(ggml_type type, content content, int64_t n_embd, int64_t n_row) {
    std::vector<uint8_t> data(ggml_row_size(type, n_embd) * n_row);
    if (content == NORMAL) {
        std::vector<float>              x(n_embd * n_row);
        std::normal_distribution<float> normal;
        for (size_t i = 0; i < x.size(); ++i) {
            x[i] = normal(generator) * (i / 32 % 5 == 0 ? 4.0f : 0.5f); // blocks of different size
        }
        const std::vector<float> importance(n_embd, 1.0f);
        ggml_quantize_chunk(type, x.data(), data.data(), 0, n_row, n_embd, importance.data());
        return data;
    }
    for (uint8_t & byte : data) {
        byte = content == ZEROS ? 0 : content == LARGEST ? 0xff : (uint8_t) generator();
    }
    int d, m;
    scales_of(type, d, m);
    for (size_t block = 0; block < data.size(); block += ggml_type_size(type)) {
        const float scale = content == ZEROS     ? 0.0f
                            : content == LARGEST ? 1.0f
                                                 : uniform(-1.0f, 1.0f) * std::pow(10.0f, uniform(-4.0f, 0.0f));
        for (int at : { d, m }) {
            if (at >= 0) {
                const ggml_fp16_t half = ggml_fp32_to_fp16(at == d ? scale : uniform(-1.0f, 1.0f) * scale);
                memcpy(&data[block + at], &half, sizeof(half));
            }
        }
    }
    return data;
}

static std::vector<float> make_activations(content content, int64_t n_embd, int64_t n) {
    std::vector<float> x(n_embd * n);
    for (size_t i = 0; i < x.size(); ++i) {
        x[i] = content == LARGEST                  ? (i % 3 ? 1.0f : -1.0f)
               : content == ZEROS && i % 512 < 256 ? 0.0f
                                                   : uniform(-1.0f, 1.0f);
        if (content == ANY_BITS && i % 97 == 0) {
            x[i] *= 30.0f; // an outlier, as real activations have
        }
    }
    return x;
}

static double nmse(const std::vector<float> & y, const std::vector<double> & expected) {
    double error = 0.0;
    double size  = 0.0;
    for (size_t i = 0; i < y.size(); ++i) {
        if (!std::isfinite(y[i])) {
            return INFINITY;
        }
        error += (y[i] - expected[i]) * (y[i] - expected[i]);
        size += expected[i] * expected[i];
    }
    return size > 0.0 ? error / size : error;
}

// The product's result, computed into memory with a guard on both sides of it.
static std::vector<float> compute(const cpu & cpu, product & p, const std::vector<uint8_t> & weights,
                                  const std::vector<float> & x, const std::vector<int32_t> & ids,
                                  int64_t shortened_to = 0) {
    ggml_backend_tensor_set(p.weights, weights.data(), 0, weights.size());
    memcpy(p.x->data, x.data(), ggml_nbytes(p.x));
    if (p.ids) {
        memcpy(p.ids->data, ids.data(), ggml_nbytes(p.ids));
    }
    constexpr size_t   N_GUARD = 64;
    constexpr float    GUARD   = -12345.0f;
    std::vector<float> room(ggml_nelements(p.y) + 2 * N_GUARD, GUARD);
    p.y->data = room.data() + N_GUARD;

    const int64_t n_column = p.x->ne[1];
    if (shortened_to > 0) {
        p.x->ne[1] = p.y->ne[1] = shortened_to;
    }
    CHECK(ggml_backend_graph_compute(cpu.backend.get(), p.graph) == GGML_STATUS_SUCCESS);
    const size_t n = ggml_nelements(p.y);
    p.x->ne[1]     = n_column;

    bool is_intact = true;
    for (size_t i = 0; i < room.size(); ++i) {
        is_intact = is_intact && ((i >= N_GUARD && i < N_GUARD + n) || room[i] == GUARD);
    }
    CHECK(is_intact);
    return std::vector<float>(room.begin() + N_GUARD, room.begin() + N_GUARD + n);
}

struct shape {
    int64_t n_row;
    int64_t n_embd;
    int64_t n_column;
    int64_t n_expert     = 0;
    int64_t n_used       = 0;
    int64_t shortened_to = 0;
};

static void test(const cpu & cpu, ggml_type type, content content, const shape & s) {
    const int64_t n_matrix = std::max<int64_t>(1, s.n_expert);
    product       fast(cpu, cpu.buffer_type("CPU_PYSKIP"), type, s.n_embd, s.n_row, s.n_column, s.n_expert, s.n_used);
    product       upstream(cpu, ggml_backend_dev_buffer_type(cpu.dev), type, s.n_embd, s.n_row, s.n_column, s.n_expert,
                           s.n_used);
    CHECK(fast.is_supported);
    if (!fast.is_supported) {
        return;
    }
    const std::vector<uint8_t> weights = make_weights(type, content, s.n_embd, s.n_row * n_matrix);
    const std::vector<float>   x       = make_activations(content, s.n_embd, s.n_column);

    std::vector<int32_t> ids;
    for (int64_t c = 0; c < s.n_column && s.n_expert; ++c) {
        for (int64_t i = 0; i < s.n_used; ++i) {
            ids.push_back((int32_t) ((c * 5 + i * 3 + 1) % s.n_expert));
        }
    }
    std::vector<float> w(s.n_embd * s.n_row * n_matrix);
    ggml_get_type_traits(type)->to_float(weights.data(), w.data(), w.size());

    const int64_t       n_column = s.shortened_to ? s.shortened_to : s.n_column;
    const int64_t       n_used   = std::max<int64_t>(1, s.n_used);
    std::vector<double> expected;
    for (int64_t c = 0; c < n_column; ++c) {
        for (int64_t i = 0; i < n_used; ++i) {
            const float * matrix = w.data() + (s.n_expert ? ids[c * n_used + i] : 0) * s.n_embd * s.n_row;
            for (int64_t row = 0; row < s.n_row; ++row) {
                double sum = 0.0;
                for (int64_t k = 0; k < s.n_embd; ++k) {
                    sum += (double) matrix[row * s.n_embd + k] * x[c * s.n_embd + k];
                }
                expected.push_back(sum);
            }
        }
    }
    const double error          = nmse(compute(cpu, fast, weights, x, ids, s.shortened_to), expected);
    const double upstream_error = nmse(compute(cpu, upstream, weights, x, ids, s.shortened_to), expected);
    // where terms cancel, upstream itself is beyond its bound
    if (!(error <= std::max(MAX_NMSE, 1.5 * upstream_error))) {
        printf("%s, content %d, %d x %d by %d columns, %d experts: NMSE %g, upstream's %g\n", ggml_type_name(type),
               content, (int) s.n_row, (int) s.n_embd, (int) s.n_column, (int) s.n_expert, error, upstream_error);
        CHECK(error <= std::max(MAX_NMSE, 1.5 * upstream_error));
    }
}

// The result for a column is the same, bit by bit, whatever is computed beside it.
static void test_columns_are_independent(const cpu & cpu, ggml_type type) {
    const int64_t              n_embd  = 768;
    const int64_t              n_row   = 40;
    const std::vector<uint8_t> weights = make_weights(type, NORMAL, n_embd, n_row);
    const std::vector<float>   x       = make_activations(NORMAL, n_embd, 33);

    product all(cpu, cpu.buffer_type("CPU_PYSKIP"), type, n_embd, n_row, 33);
    CHECK(all.is_supported);
    if (!all.is_supported) {
        return;
    }
    const std::vector<float> y = compute(cpu, all, weights, x, {});
    for (int64_t n : { 1, 2, 3, 4, 5, 7, 8, 13, 32 }) {
        product                  some(cpu, cpu.buffer_type("CPU_PYSKIP"), type, n_embd, n_row, n);
        const std::vector<float> part = compute(cpu, some, weights, x, {});
        CHECK(std::equal(part.begin(), part.end(), y.begin()));
    }
}

static void test_switch(const cpu & cpu) {
    ggml_backend_buffer_type_t buft = cpu.buffer_type("CPU_PYSKIP");

    product before(cpu, buft, GGML_TYPE_Q4_K, 256, 32, 3);
    CHECK(pyskip_kernels_set((enum pyskip_kernels) 7) == PYSKIP_STATUS_INVALID);
    CHECK(pyskip_kernels_get() == PYSKIP_KERNELS_FAST);
    CHECK(pyskip_kernels_set(PYSKIP_KERNELS_UPSTREAM) == PYSKIP_STATUS_OK);
    product after(cpu, buft, GGML_TYPE_Q4_K, 256, 32, 3);
    CHECK(!after.is_supported);
    CHECK(before.is_supported && ggml_backend_dev_supports_op(cpu.dev, before.y)); // what is loaded stays
    CHECK(pyskip_kernels_set(PYSKIP_KERNELS_FAST) == PYSKIP_STATUS_OK);
    product again(cpu, buft, GGML_TYPE_Q4_K, 256, 32, 3);
    CHECK(again.is_supported);
}

int main() {
    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    for (int n_threads : { 1, 2 }) {
        const cpu cpu(n_threads);
        if (cpu.buffer_type("CPU_PYSKIP") == nullptr) {
            printf("test-kernels: this CPU back end has no kernels, nothing to test\n");
            return 0;
        }
        for (ggml_type type : TYPES) {
            const int64_t unit = ggml_blck_size(type);
            for (content content : { NORMAL, ANY_BITS, ZEROS, LARGEST }) {
                for (int64_t n_row : { 1, 8, 16, 33, 64 }) {
                    test(cpu, type, content, { n_row, 768, 1 });
                    test(cpu, type, content, { n_row, unit, 9 });
                }
                test(cpu, type, content, { 24, 2048, 5 });
            }
            for (int64_t n_embd : { 256, 576, 896, 960, 2048 }) {
                if (n_embd % unit == 0) {
                    test(cpu, type, NORMAL, { 40, n_embd, 1 });
                    test(cpu, type, NORMAL, { 17, n_embd, 33 });
                }
            }
            for (int64_t n_column = 1; n_column <= 33; ++n_column) {
                test(cpu, type, n_column % 2 ? NORMAL : ANY_BITS, { 50, 512, n_column });
            }
            test(cpu, type, NORMAL, { 300, 256, 70 });
            test(cpu, type, NORMAL, { 48, 512, 12, 0, 0, 5 });
            test(cpu, type, NORMAL, { 48, 512, 12, 0, 0, 1 });
            for (int64_t n_column : { 1, 3, 20 }) {
                test(cpu, type, NORMAL, { 40, 256, n_column, 6, 2 });
            }
            test_columns_are_independent(cpu, type);
        }
        test_switch(cpu);
    }
    return check_result("kernels");
}
