// Attention of one row over a piece of its keys, for all heads that share these: included by attention-rows.cpp.

#pragma once

#include "attention.h"
#include "ggml-impl.h"
#include "lanes.h"
#include "simd-mappings.h"
#include "vec.h"

#include <algorithm>
#include <cmath>

namespace pyskip_cpu {

constexpr int N_KEYS    = 512;             // seen keys that are weighed at a time
constexpr int N_ABREAST = 4;               // of which the products are computed together
constexpr int N_SLICE   = 4;               // registers of an output at a time
constexpr int N_HEADS   = L == 16 ? 6 : 2; // that read a key together: with N_ABREAST keys each, what registers hold
constexpr int N_AHEAD   = 16;              // keys, or values, that memory is asked for ahead

inline f32v exponential(f32v x) {
#if PYSKIP_LANES == 16
    return (f32v) ggml_v_expf((__m512) x);
#else
    return (f32v) ggml_v_expf((__m256) x);
#endif
}

// The sums of four registers' lanes: halves, then their halves, and so on.
inline __m128 sums_of(f32v a, f32v b, f32v c, f32v d) {
#if PYSKIP_LANES == 16
    const auto fold = [](__m512 x, __m512 y) {
        return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xee));
    };
    const __m512 ab   = fold((__m512) a, (__m512) b);
    const __m512 cd   = fold((__m512) c, (__m512) d);
    __m512       each = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    each              = _mm512_add_ps(each, _mm512_permute_ps(each, 0x4e));
    each              = _mm512_add_ps(each, _mm512_permute_ps(each, 0xb1));
    return _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, each));
#else
    const auto fold = [](__m256 x, __m256 y) {
        __m256 each = _mm256_add_ps(_mm256_permute2f128_ps(x, y, 0x20), _mm256_permute2f128_ps(x, y, 0x31));
        each        = _mm256_add_ps(each, _mm256_permute_ps(each, 0x4e));
        return _mm256_add_ps(each, _mm256_permute_ps(each, 0xb1));
    };
    const __m256 ab = fold((__m256) a, (__m256) b); // the same sum four times in each half
    const __m256 cd = fold((__m256) c, (__m256) d);
    return _mm_unpacklo_ps(_mm_unpacklo_ps(_mm256_castps256_ps128(ab), _mm256_castps256_ps128(cd)),
                           _mm_unpacklo_ps(_mm256_extractf128_ps(ab, 1), _mm256_extractf128_ps(cd, 1)));
#endif
}

// Heads of one query row that have their keys and values in common.
struct row_task {
    int64_t             first, n_head;
    const char *        query; // of the first head
    size_t              query_stride;
    int64_t             n_embd_k, n_embd_v;
    const char *        keys;
    const char *        values;
    size_t              key_stride, value_stride;
    const ggml_fp16_t * mask; // or nullptr
    float               scale, softcap, max_bias;
    int64_t             n_head_all;
    const float *       sinks; // of the first head and on, or nullptr
    float *             out;   // [n_head][n_embd_v]

    const float * query_of(int64_t head) const { return (const float *) (query + head * query_stride); }
    const char *  key(int64_t i) const { return keys + i * key_stride; }
    const char *  value(int64_t i) const { return values + i * value_stride; }
};

// The softmax of one head over a piece, or over the pieces so far: the largest score, the sum of the weights, and that of the
// values.
struct partial {
    float * data;

    static size_t size(int64_t n_embd) {
        return (size_t) n_embd + 16;
    } // in floats: the sums begin on a cache line of their own

    float & max() const { return data[0]; }
    float & sum() const { return data[1]; }
    float * out() const { return data + 16; }

    void clear(int64_t n_embd) const {
        max() = -INFINITY;
        sum() = 0.0f;
        std::fill(out(), out() + n_embd, 0.0f);
    }

    // Raising the maximum scales what was summed.
    void raise(int64_t n_embd, float score) const {
        if (score > max()) {
            const float factor = std::exp(max() - score);
            max()              = score;
            sum() *= factor;
            for (int64_t e = 0; e < n_embd; ++e) {
                out()[e] *= factor;
            }
        }
    }

    void add(int64_t n_embd, const partial & other) const {
        if (other.sum() == 0.0f) {
            return;
        }
        raise(n_embd, other.max());
        const float factor = std::exp(other.max() - max());
        sum() += factor * other.sum();
        for (int64_t e = 0; e < n_embd; ++e) {
            out()[e] += factor * other.out()[e];
        }
    }
};

// A share of the keys: those that are not masked. Of each list the next N_AHEAD are the last one again.
struct share {
    int     n = 0;
    int32_t key[N_KEYS + N_AHEAD];
    float   mask[N_KEYS + N_AHEAD];
    float   weight[N_HEADS][N_KEYS + L]; // first the products
};

// The next keys that are seen, from `at` on. Returns where to go on.
inline int64_t look(const row_task & task, int64_t at, int64_t end, share & s) {
    for (s.n = 0; at < end && s.n < N_KEYS; ++at) {
        const float add = task.mask ? GGML_CPU_FP16_TO_FP32(task.mask[at]) : 0.0f;
        if (add != -INFINITY) {
            s.key[s.n]    = (int32_t) at;
            s.mask[s.n++] = add;
        }
    }
    if (s.n > 0) {
        std::fill(s.key + s.n, s.key + s.n + N_AHEAD, s.key[s.n - 1]);
        std::fill(s.mask + s.n, s.mask + s.n + N_AHEAD, s.mask[s.n - 1]);
    }
    return at;
}

inline void ask_for(const char * row, int64_t n_element) {
    for (int64_t i = 0; i < n_element * (int64_t) sizeof(uint16_t); i += 64) {
        _mm_prefetch(row + i, _MM_HINT_T0);
    }
}

// Products of N_ABREAST keys from the i-th on, for H heads from the first-th on.
template <int H> void multiply_keys(const row_task & task, int64_t first, share & s, int i) {
    const uint16_t * k[N_ABREAST];
    const float *    q[H];
    for (int j = 0; j < N_ABREAST; ++j) {
        k[j] = (const uint16_t *) task.key(s.key[i + j]);
        ask_for(task.key(s.key[i + j + N_AHEAD - N_ABREAST]), task.n_embd_k);
    }
    for (int h = 0; h < H; ++h) {
        q[h] = task.query_of(first + h);
    }
    f32v acc[H][N_ABREAST] = {};
    for (int64_t e = 0; e < task.n_embd_k; e += L) {
        f32v key[N_ABREAST];
        for (int j = 0; j < N_ABREAST; ++j) {
            key[j] = load_f16(k[j] + e);
        }
        for (int h = 0; h < H; ++h) {
            const f32v query = load<f32v>(q[h] + e);
            for (int j = 0; j < N_ABREAST; ++j) {
                acc[h][j] = multiply_add(key[j], query, acc[h][j]);
            }
        }
    }
    for (int h = 0; h < H; ++h) {
        _mm_storeu_ps(s.weight[h] + i, sums_of(acc[h][0], acc[h][1], acc[h][2], acc[h][3]));
    }
}

// The weighted sum of values, N registers of each of H heads from element `at` on, added to what is there.
template <int H, int N> void add_values(const row_task & task, const share & s, const partial * of, int64_t at) {
    f32v acc[H][N];
    for (int h = 0; h < H; ++h) {
        for (int i = 0; i < N; ++i) {
            acc[h][i] = load<f32v>(of[h].out() + at + i * L);
        }
    }
    for (int j = 0; j < s.n; ++j) {
        const uint16_t * v = (const uint16_t *) task.value(s.key[j]) + at;
        if (at == 0) { // and what comes after it stays near until its turn
            ask_for(task.value(s.key[j + N_AHEAD - 1]), task.n_embd_v);
        }
        f32v value[N];
        for (int i = 0; i < N; ++i) {
            value[i] = load_f16(v + i * L);
        }
        for (int h = 0; h < H; ++h) {
            const f32v w = broadcast(s.weight[h][j]);
            for (int i = 0; i < N; ++i) {
                acc[h][i] = multiply_add(w, value[i], acc[h][i]);
            }
        }
    }
    for (int h = 0; h < H; ++h) {
        for (int i = 0; i < N; ++i) {
            store(of[h].out() + at + i * L, acc[h][i]);
        }
    }
}

// From products to weights of the softmax, of the h-th of these heads.
inline void weigh(const row_task & task, share & s, int h, float head_slope, const partial & total) {
    float *    weight = s.weight[h];
    const f32v slope  = broadcast(head_slope);
    const f32v scale  = broadcast(task.scale);
    if (task.softcap != 0.0f) {
        for (int i = 0; i < s.n; ++i) {
            weight[i] = task.softcap * std::tanh(weight[i] * task.scale) + head_slope * s.mask[i];
        }
    } else {
        for (int i = 0; i < s.n; i += L) {
            store(weight + i, multiply_add(slope, load<f32v>(s.mask + i), load<f32v>(weight + i) * scale));
        }
    }
    std::fill(weight + s.n, weight + s.n + L, -INFINITY);
    f32v largest = load<f32v>(weight);
    for (int i = L; i < s.n; i += L) {
        const f32v w = load<f32v>(weight + i);
        largest      = w > largest ? w : largest;
    }
    float max[L];
    store(max, largest);
    total.raise(task.n_embd_v, *std::max_element(max, max + L));
    f32v sum = {};
    for (int i = 0; i < s.n; i += L) {
        const f32v w = exponential(load<f32v>(weight + i) - total.max());
        store(weight + i, w);
        sum += w;
    }
    total.sum() += _mm_cvtss_f32(sums_of(sum, sum, sum, sum));
}

inline float slope_of(float max_bias, int64_t head, int64_t n_head) {
    if (max_bias <= 0.0f) {
        return 1.0f;
    }
    const int64_t n_head_log2 = (int64_t) 1 << (int) std::floor(std::log2(n_head));
    return head < n_head_log2
               ? std::pow(std::pow(2.0f, -max_bias / n_head_log2), (float) (head + 1))
               : std::pow(std::pow(2.0f, -max_bias / 2.0f / n_head_log2), (float) (2 * (head - n_head_log2) + 1));
}

// One share of the keys, for H heads from the first-th on; `of` their sums.
template <int H> void attend(const row_task & task, int64_t first, share & s, const partial * of) {
    for (int i = 0; i < s.n; i += N_ABREAST) {
        multiply_keys<H>(task, first, s, i);
    }
    for (int h = 0; h < H; ++h) {
        weigh(task, s, h, slope_of(task.max_bias, task.first + first + h, task.n_head_all), of[h]);
    }
    int64_t e = 0;
    for (; e + N_SLICE * L <= task.n_embd_v; e += N_SLICE * L) {
        add_values<H, N_SLICE>(task, s, of, e);
    }
    for (; e < task.n_embd_v; e += L) {
        add_values<H, 1>(task, s, of, e);
    }
}

template <int H = N_HEADS> void attend_any(const row_task & task, int64_t first, int n, share & s, const partial * of) {
    if (n == H) {
        attend<H>(task, first, s, of);
    } else if constexpr (H > 1) {
        attend_any<H - 1>(task, first, n, s, of);
    }
}

// A piece of the keys for all heads of a task: a share after the other, so that the heads find its keys near. Head h's sums
// go to found + h * partial::size.
inline void attend_piece(const row_task & task, int64_t begin, int64_t end, float * found) {
    const size_t size = partial::size(task.n_embd_v);
    for (int64_t h = 0; h < task.n_head; ++h) {
        partial{ found + h * size }.clear(task.n_embd_v);
    }
    share s;
    for (int64_t at = look(task, begin, end, s); s.n > 0; at = look(task, at, end, s)) {
        for (int64_t first = 0, n = 0; first < task.n_head; first += n) {
            const int64_t n_left = task.n_head - first;
            n                    = n_left / ((n_left + N_HEADS - 1) / N_HEADS);
            partial of[N_HEADS];
            for (int64_t h = 0; h < n; ++h) {
                of[h] = { found + (first + h) * size };
            }
            attend_any(task, first, (int) n, s, of);
        }
    }
}

// The output of the task's h-th head, all pieces being summed.
inline void finish(const row_task & task, int64_t h, const partial & total) {
    if (task.sinks) {
        total.raise(task.n_embd_v, task.sinks[h]);
        total.sum() += std::exp(task.sinks[h] - total.max());
    }
    const float factor = total.sum() == 0.0f ? 0.0f : 1.0f / total.sum();
    for (int64_t e = 0; e < task.n_embd_v; ++e) {
        task.out[h * task.n_embd_v + e] = total.out()[e] * factor;
    }
}

} // namespace pyskip_cpu
