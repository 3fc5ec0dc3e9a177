#include "attention.h"

#include "simd-mappings.h"

#include <cmath>

#if defined(__AVX2__) && defined(__F16C__)

#    include <immintrin.h>

static __m256 load(const ggml_fp16_t * p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p));
}

// Columns of 8 by 8 numbers to rows.
static void transpose(__m256 (&x)[8]) {
    __m256 pairs[8];
    for (int i = 0; i < 8; i += 2) {
        pairs[i]     = _mm256_unpacklo_ps(x[i], x[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
    }
    __m256 fours[8];
    for (int i = 0; i < 8; i += 4) {
        fours[i]     = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
        fours[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
        fours[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
        fours[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        x[i]     = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
        x[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
    }
}

#    define PYSKIP_ATTENTION_VECTOR 8
#else
#    define PYSKIP_ATTENTION_VECTOR 1
#endif

bool pyskip_attention_mask(float * out, const ggml_fp16_t * in, int n, float slope) {
    bool is_seen = false;
    int  i       = 0;
#if PYSKIP_ATTENTION_VECTOR == 8
    const __m256 none = _mm256_set1_ps(-INFINITY);
    __m256       seen = _mm256_setzero_ps();
    for (; i + 8 <= n; i += 8) {
        const __m256 x = _mm256_mul_ps(_mm256_set1_ps(slope), load(in + i));
        seen           = _mm256_or_ps(seen, _mm256_cmp_ps(x, none, _CMP_NEQ_UQ));
        _mm256_storeu_ps(out + i, x);
    }
    is_seen = _mm256_movemask_ps(seen) != 0;
#endif
    for (; i < n; ++i) {
        out[i]  = slope * GGML_CPU_FP16_TO_FP32(in[i]);
        is_seen = is_seen || out[i] != -INFINITY;
    }
    return is_seen;
}

void pyskip_attention_keys(float * out, int n_out, const char * rows, size_t stride, int n_row, int n_embd) {
    constexpr int V     = PYSKIP_ATTENTION_VECTOR;
    const int     n_vec = n_row / V * V;
    for (int row = 0; row < n_row; row += row < n_vec ? V : 1) {
        int i = 0;
#if PYSKIP_ATTENTION_VECTOR == 8
        for (; row < n_vec && i + 8 <= n_embd; i += 8) {
            __m256 x[8];
            for (int r = 0; r < 8; ++r) {
                x[r] = load((const ggml_fp16_t *) (rows + (row + r) * stride) + i);
            }
            transpose(x);
            for (int e = 0; e < 8; ++e) {
                _mm256_storeu_ps(out + (i + e) * n_out + row, x[e]);
            }
        }
#endif
        for (int r = row; r < row + (row < n_vec ? V : 1); ++r) {
            const ggml_fp16_t * in = (const ggml_fp16_t *) (rows + r * stride);
            for (int e = i; e < n_embd; ++e) {
                out[e * n_out + r] = GGML_CPU_FP16_TO_FP32(in[e]);
            }
        }
    }
}
