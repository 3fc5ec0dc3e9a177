#include "activations.h"

#include "lanes.h"

#ifdef PYSKIP_LANES

#    include <cfloat>

namespace pyskip_cpu {

namespace {

// Below it 127 / x overflows.
constexpr float SMALLEST = 127.0f * FLT_MIN;

float largest(const float * x, int n) {
    __m256 largest = _mm256_setzero_ps();
    for (int i = 0; i < n; i += 8) {
        largest = _mm256_max_ps(largest, _mm256_andnot_ps(_mm256_set1_ps(-0.0f), _mm256_loadu_ps(x + i)));
    }
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(largest), _mm256_extractf128_ps(largest, 1));
    m        = _mm_max_ps(m, _mm_movehl_ps(m, m));
    m        = _mm_max_ss(m, _mm_movehdup_ps(m));
    return _mm_cvtss_f32(m);
}

// 16 numbers, rounded to the nearest; returns their sum
int32_t round_16(const float * x, float scale, int8_t * q) {
    const __m256  s  = _mm256_set1_ps(scale);
    const __m256i lo = _mm256_cvtps_epi32(_mm256_mul_ps(s, _mm256_loadu_ps(x)));
    const __m256i hi = _mm256_cvtps_epi32(_mm256_mul_ps(s, _mm256_loadu_ps(x + 8)));
    const __m256i w  = _mm256_permute4x64_epi64(_mm256_packs_epi32(lo, hi), 0xd8);
    const __m128i b  = _mm_packs_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
    _mm_storeu_si128((__m128i *) q, b);

    const __m256i pairs = _mm256_madd_epi16(_mm256_cvtepi8_epi16(b), _mm256_set1_epi16(1));
    __m128i       sum   = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    sum                 = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    sum                 = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
    return _mm_cvtsi128_si32(sum);
}

} // namespace

void quantize(const float * x, activations_256 * block) {
    const float max   = largest(x, 256);
    const float scale = max > SMALLEST ? 127.0f / max : 0.0f;
    block->d          = max > SMALLEST ? max / 127.0f : 0.0f;
    for (int i = 0; i < 16; ++i) {
        block->sum_16[i] = (int16_t) round_16(x + 16 * i, scale, block->q + 16 * i);
    }
    block->minus_sum = 0;
    for (int i = 0; i < 8; ++i) {
        block->sum_32[i] = (int16_t) (block->sum_16[2 * i] + block->sum_16[2 * i + 1]);
        block->minus_sum -= block->sum_32[i];
    }
}

void quantize(const float * x, activations_32 * block) {
    const float   max   = largest(x, 32);
    const float   scale = max > SMALLEST ? 127.0f / max : 0.0f;
    const int32_t sum   = round_16(x, scale, block->q) + round_16(x + 16, scale, block->q + 16);
    block->d            = max > SMALLEST ? max / 127.0f : 0.0f;
    block->d_sum        = block->d * (float) sum;
    block->minus_sum    = -sum;
}

} // namespace pyskip_cpu

#endif // PYSKIP_LANES
