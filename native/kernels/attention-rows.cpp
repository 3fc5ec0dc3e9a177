#include "attention.h"
#include "lanes.h"

#if defined(PYSKIP_LANES) && (PYSKIP_LANES == 16 || !defined(__AVX512F__))

#    include "buffer.h"
#    include "common.h"
#    include "ggml-cpu-impl.h"
#    include "ggml-impl.h"
#    include "kernels.h"
#    include "vec.h"

#    include <algorithm>
#    include <cmath>

namespace pyskip_cpu {

namespace {

constexpr int N_KEYS    = 512;             // seen keys that are weighed at a time
constexpr int N_ABREAST = 4;               // of which the products are computed together
constexpr int N_SLICE   = 4;               // registers of an output at a time
constexpr int N_HEADS   = L == 16 ? 6 : 2; // that read a key together: with N_ABREAST keys each, what registers hold
constexpr int N_AHEAD   = 16;              // keys, or values, that memory is asked for ahead
constexpr int MAX_CHAIN = 32;              // nodes from an attention's query back to the product that it comes from

f32v exponential(f32v x) {
#    if PYSKIP_LANES == 16
    return (f32v) ggml_v_expf((__m512) x);
#    else
    return (f32v) ggml_v_expf((__m256) x);
#    endif
}

// The sums of four registers' lanes: halves, then their halves, and so on.
__m128 sums_of(f32v a, f32v b, f32v c, f32v d) {
#    if PYSKIP_LANES == 16
    const auto fold = [](__m512 x, __m512 y) {
        return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xee));
    };
    const __m512 ab   = fold((__m512) a, (__m512) b);
    const __m512 cd   = fold((__m512) c, (__m512) d);
    __m512       each = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    each              = _mm512_add_ps(each, _mm512_permute_ps(each, 0x4e));
    each              = _mm512_add_ps(each, _mm512_permute_ps(each, 0xb1));
    return _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, each));
#    else
    const auto fold = [](__m256 x, __m256 y) {
        __m256 each = _mm256_add_ps(_mm256_permute2f128_ps(x, y, 0x20), _mm256_permute2f128_ps(x, y, 0x31));
        each        = _mm256_add_ps(each, _mm256_permute_ps(each, 0x4e));
        return _mm256_add_ps(each, _mm256_permute_ps(each, 0xb1));
    };
    const __m256 ab = fold((__m256) a, (__m256) b); // the same sum four times in each half
    const __m256 cd = fold((__m256) c, (__m256) d);
    return _mm_unpacklo_ps(_mm_unpacklo_ps(_mm256_castps256_ps128(ab), _mm256_castps256_ps128(cd)),
                           _mm_unpacklo_ps(_mm256_extractf128_ps(ab, 1), _mm256_extractf128_ps(cd, 1)));
#    endif
}

// Heads of one query row that have their keys and values in common.
struct row_task {
    int                 n_head; // at most N_HEADS
    const char *        query;  // of the first
    size_t              query_stride;
    int64_t             n_embd_k, n_embd_v;
    const char *        keys;
    const char *        values;
    size_t              key_stride, value_stride;
    int64_t             n_key;
    const ggml_fp16_t * mask; // or nullptr
    float               slope[N_HEADS];
    float               scale, softcap;
    const float *       sinks; // of the first and on, or nullptr
    float *             out;   // [n_head][n_embd_v]

    const float * query_of(int head) const { return (const float *) (query + head * query_stride); }
    const char *  key(int64_t i) const { return keys + i * key_stride; }
    const char *  value(int64_t i) const { return values + i * value_stride; }
};

// A share of the keys: those that are not masked. Of each list the next N_AHEAD are the last one again.
struct share {
    int     n = 0;
    int32_t key[N_KEYS + N_AHEAD];
    float   mask[N_KEYS + N_AHEAD];
    float   weight[N_HEADS][N_KEYS + L]; // first the products
};

// The next keys that are seen, from `at` on. Returns where to go on.
int64_t look(const row_task & task, int64_t at, share & s) {
    for (s.n = 0; at < task.n_key && s.n < N_KEYS; ++at) {
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

void ask_for(const char * row, int64_t n_element) {
    for (int64_t i = 0; i < n_element * (int64_t) sizeof(uint16_t); i += 64) {
        _mm_prefetch(row + i, _MM_HINT_T0);
    }
}

// Weights of N_ABREAST keys from the i-th on, for H heads.
template <int H> void multiply_keys(const row_task & task, share & s, int i) {
    const uint16_t * k[N_ABREAST];
    const float *    q[H];
    for (int j = 0; j < N_ABREAST; ++j) {
        k[j] = (const uint16_t *) task.key(s.key[i + j]);
        ask_for(task.key(s.key[i + j + N_AHEAD - N_ABREAST]), task.n_embd_k);
    }
    for (int h = 0; h < H; ++h) {
        q[h] = task.query_of(h);
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

// out += the weighted sum of values, N registers of each of H heads from element `at` on
template <int H, int N> void add_values(const row_task & task, const share & s, int64_t at) {
    f32v acc[H][N];
    for (int h = 0; h < H; ++h) {
        for (int i = 0; i < N; ++i) {
            acc[h][i] = load<f32v>(task.out + h * task.n_embd_v + at + i * L);
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
            store(task.out + h * task.n_embd_v + at + i * L, acc[h][i]);
        }
    }
}

// The maximum and the sum of a head's softmax so far; raising the maximum scales what was summed.
struct softmax {
    float max = -INFINITY;
    float sum = 0.0f;

    void raise(float * out, int64_t n_embd, float score) {
        if (score > max) {
            const float factor = std::exp(max - score);
            max                = score;
            sum *= factor;
            scale(out, n_embd, factor);
        }
    }

    static void scale(float * out, int64_t n_embd, float factor) {
        for (int64_t e = 0; e < n_embd; ++e) {
            out[e] *= factor;
        }
    }
};

// From products to weights of the softmax, of one head.
void weigh(const row_task & task, share & s, int head, softmax & total) {
    float *    weight = s.weight[head];
    const f32v slope  = broadcast(task.slope[head]);
    const f32v scale  = broadcast(task.scale);
    if (task.softcap != 0.0f) {
        for (int i = 0; i < s.n; ++i) {
            weight[i] = task.softcap * std::tanh(weight[i] * task.scale) + task.slope[head] * s.mask[i];
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
    total.raise(task.out + head * task.n_embd_v, task.n_embd_v, *std::max_element(max, max + L));
    f32v sum = {};
    for (int i = 0; i < s.n; i += L) {
        const f32v w = exponential(load<f32v>(weight + i) - total.max);
        store(weight + i, w);
        sum += w;
    }
    total.sum += _mm_cvtss_f32(sums_of(sum, sum, sum, sum));
}

template <int H> void attend(const row_task & task) {
    std::fill(task.out, task.out + H * task.n_embd_v, 0.0f);
    softmax total[H];
    share   s;
    for (int64_t at = look(task, 0, s); s.n > 0; at = look(task, at, s)) {
        for (int i = 0; i < s.n; i += N_ABREAST) {
            multiply_keys<H>(task, s, i);
        }
        for (int h = 0; h < H; ++h) {
            weigh(task, s, h, total[h]);
        }
        int64_t e = 0;
        for (; e + N_SLICE * L <= task.n_embd_v; e += N_SLICE * L) {
            add_values<H, N_SLICE>(task, s, e);
        }
        for (; e < task.n_embd_v; e += L) {
            add_values<H, 1>(task, s, e);
        }
    }
    for (int h = 0; h < H; ++h) {
        float * out = task.out + h * task.n_embd_v;
        if (task.sinks) {
            total[h].raise(out, task.n_embd_v, task.sinks[h]);
            total[h].sum += std::exp(task.sinks[h] - total[h].max);
        }
        softmax::scale(out, task.n_embd_v, total[h].sum == 0.0f ? 0.0f : 1.0f / total[h].sum);
    }
}

template <int H = N_HEADS> void attend_any(const row_task & task) {
    if (task.n_head == H) {
        attend<H>(task);
    } else if constexpr (H > 1) {
        attend_any<H - 1>(task);
    }
}

// Whether the model's weights are pyskip's kernels' own: those that the query is a product of.
bool is_of_packed_weights(const ggml_tensor * query) {
    const ggml_tensor * node = query;
    for (int i = 0; node && i < MAX_CHAIN; ++i, node = node->src[0]) {
        if (node->op == GGML_OP_MUL_MAT) {
            const ggml_tensor * weights = node->src[0]->view_src ? node->src[0]->view_src : node->src[0];
            return weights->buffer && weights->buffer->buft == pyskip_kernels_buffer_type();
        }
    }
    return false;
}

bool is_supported(const ggml_tensor * op, int nth) {
    const ggml_tensor * q = op->src[0];
    const ggml_tensor * k = op->src[1];
    const ggml_tensor * v = op->src[2];
    if (q->type != GGML_TYPE_F32 || k->type != GGML_TYPE_F16 || v->type != GGML_TYPE_F16 ||
        q->ne[1] >= (int64_t) ggml_fa_tile_config::Q || k->ne[0] % L != 0 || v->ne[0] % L != 0) {
        return false;
    }
    // upstream parts a row's keys among the threads, so that none idles where these are more than heads
    const bool is_parted = q->ne[1] == 1 && q->ne[3] == 1 && k->ne[1] >= 512;
    return (!is_parted || q->ne[2] >= nth) && is_of_packed_weights(q);
}

float slope_of(float max_bias, int64_t head, int64_t n_head) {
    if (max_bias <= 0.0f) {
        return 1.0f;
    }
    const int64_t n_head_log2 = (int64_t) 1 << (int) std::floor(std::log2(n_head));
    return head < n_head_log2
               ? std::pow(std::pow(2.0f, -max_bias / n_head_log2), (float) (head + 1))
               : std::pow(std::pow(2.0f, -max_bias / 2.0f / n_head_log2), (float) (2 * (head - n_head_log2) + 1));
}

} // namespace

} // namespace pyskip_cpu

using namespace pyskip_cpu;

bool pyskip_attention_rows(const ggml_compute_params * params, ggml_tensor * op) {
    const ggml_tensor * q    = op->src[0];
    const ggml_tensor * k    = op->src[1];
    const ggml_tensor * v    = op->src[2];
    const ggml_tensor * mask = op->src[3];
    if (!is_supported(op, params->nth)) {
        return false;
    }
    float param[3]; // scale, the largest bias, soft cap
    memcpy(param, op->op_params, sizeof(param));
    const bool    is_capped = param[2] != 0.0f;
    const int64_t n_head    = q->ne[2];
    const int64_t n_shared  = mask && mask->ne[2] > 1 ? 1 : n_head / std::max(k->ne[2], v->ne[2]); // heads, in a row
    const int64_t n         = n_head * q->ne[1] * q->ne[3];
    const int64_t end       = n * (params->ith + 1) / params->nth;

    int64_t n_now = 0;
    for (int64_t i = n * params->ith / params->nth; i < end; i += n_now) {
        const int64_t head = i % n_head;
        const int64_t i1   = i / n_head % q->ne[1];
        const int64_t i3   = i / n_head / q->ne[1];

        const int64_t n_left = std::min(end - i, n_shared - head % n_shared); // that have their keys in common
        n_now                = n_left / ((n_left + N_HEADS - 1) / N_HEADS);

        const int64_t k2 = head / (n_head / k->ne[2]);
        const int64_t k3 = i3 / (q->ne[3] / k->ne[3]);
        const int64_t v2 = head / (n_head / v->ne[2]);
        const int64_t v3 = i3 / (q->ne[3] / v->ne[3]);

        row_task task;
        task.n_head       = (int) n_now;
        task.query        = (const char *) q->data + i1 * q->nb[1] + head * q->nb[2] + i3 * q->nb[3];
        task.query_stride = q->nb[2];
        task.n_embd_k     = k->ne[0];
        task.n_embd_v     = v->ne[0];
        task.keys         = (const char *) k->data + k2 * k->nb[2] + k3 * k->nb[3];
        task.values       = (const char *) v->data + v2 * v->nb[2] + v3 * v->nb[3];
        task.key_stride   = k->nb[1];
        task.value_stride = v->nb[1];
        task.n_key        = k->ne[1];
        task.mask    = mask ? (const ggml_fp16_t *) ((const char *) mask->data + i1 * mask->nb[1] +
                                                     head % mask->ne[2] * mask->nb[2] + i3 % mask->ne[3] * mask->nb[3])
                            : nullptr;
        task.scale   = is_capped ? param[0] / param[2] : param[0];
        task.softcap = param[2];
        task.sinks   = op->src[4] ? (const float *) op->src[4]->data + head : nullptr;
        task.out     = (float *) ((char *) op->data + (i3 * op->ne[2] * op->ne[1] + head + i1 * op->ne[1]) * op->nb[1]);
        for (int h = 0; h < task.n_head; ++h) {
            task.slope[h] = slope_of(param[1], head + h, n_head);
        }
        attend_any(task);
    }
    return true;
}

#else

bool pyskip_attention_rows(const ggml_compute_params *, ggml_tensor *) {
    return false;
}

#endif
