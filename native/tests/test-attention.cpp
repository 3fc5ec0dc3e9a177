// The preparation of attention's tiles, against numbers converted one by one: the same bits for every shape.

#include "attention.h"
#include "check.h"
#include "ggml-cpu.h"

#include <cmath>
#include <random>
#include <vector>

static void test_keys() {
    std::mt19937 random(1);
    for (int n_row : { 1, 7, 8, 9, 16, 31, 64 }) {
        for (int n_embd : { 1, 8, 13, 40, 64 }) {
            const size_t             stride = n_embd + 3;
            std::vector<ggml_fp16_t> rows(stride * n_row);
            for (ggml_fp16_t & x : rows) {
                x = ggml_fp32_to_fp16((float) random() / 1e9f - 2.0f);
            }
            const int          n_out = 64;
            std::vector<float> out(n_out * n_embd, 7.0f);
            pyskip_attention_keys(out.data(), n_out, (const char *) rows.data(), stride * sizeof(ggml_fp16_t), n_row,
                                  n_embd);
            for (int i = 0; i < n_embd; ++i) {
                for (int row = 0; row < n_out; ++row) {
                    const float expected = row < n_row ? ggml_fp16_to_fp32(rows[row * stride + i]) : 7.0f;
                    CHECK(out[i * n_out + row] == expected);
                }
            }
        }
    }
}

static void test_mask() {
    for (int n = 1; n <= 64; ++n) {
        for (int n_seen : { 0, 1, n }) {
            std::vector<ggml_fp16_t> in(n, ggml_fp32_to_fp16(-INFINITY));
            for (int i = 0; i < n_seen; ++i) {
                in[n - 1 - i] = ggml_fp32_to_fp16(-0.5f * i);
            }
            std::vector<float> out(n + 1, 7.0f);
            CHECK(pyskip_attention_mask(out.data(), in.data(), n, 0.25f) == (n_seen > 0));
            for (int i = 0; i < n; ++i) {
                CHECK(out[i] == 0.25f * ggml_fp16_to_fp32(in[i]));
            }
            CHECK(out[n] == 7.0f);
        }
    }
}

int main() {
    ggml_cpu_init();
    test_keys();
    test_mask();
    return check_result("attention");
}
