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

constexpr int N_KEYS    = 512;  // seen keys that are weighed at a time
constexpr int N_ABREAST = 4;    // of which the products are computed together
constexpr int N_SLICE   = 4;    // registers of an output at a time
constexpr int N_LONG    = 2048; // keys from which on upstream's way of a single row is faster
constexpr int MAX_CHAIN = 32;   // nodes from an attention's query back to the product that it comes from

f32v exponential(f32v x) {
#    if PYSKIP_LANES == 16
    return (f32v) ggml_v_expf((__m512) x);
#    else
    return (f32v) ggml_v_expf((__m256) x);
#    endif
}

// Halves, then their halves, and so on.
float sum_of(f32v x) {
#    if PYSKIP_LANES == 16
    const __m256 half =
        _mm256_add_ps(_mm512_castps512_ps256((__m512) x), (__m256) _mm512_extractf64x4_pd((__m512d) x, 1));
#    else
    const __m256 half = (__m256) x;
#    endif
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    sum        = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_shuffle_ps(sum, sum, 1)));
}

// One query row of one head, and its keys.
struct row_task {
    const float *       query;
    int64_t             n_embd_k, n_embd_v;
    const char *        keys;
    const char *        values;
    size_t              key_stride, value_stride;
    int64_t             n_key;
    const ggml_fp16_t * mask; // or nullptr
    float               slope, scale, softcap;
    float *             out; // [n_embd_v]
};

// A share of the keys: those that are not masked.
struct share {
    int     n = 0;
    int32_t key[N_KEYS];
    float   weight[N_KEYS + L]; // first what the mask adds
};

// The next keys that are seen, from `at` on. Returns where to go on.
int64_t look(const row_task & task, int64_t at, share & s) {
    for (s.n = 0; at < task.n_key && s.n < N_KEYS; ++at) {
        const float add = task.mask ? task.slope * GGML_CPU_FP16_TO_FP32(task.mask[at]) : 0.0f;
        if (add != -INFINITY) {
            s.key[s.n]      = (int32_t) at;
            s.weight[s.n++] = add;
        }
    }
    return at;
}

template <int N> void multiply_keys(const row_task & task, const int32_t * key, float * weight) {
    const uint16_t * k[N];
    for (int i = 0; i < N; ++i) {
        k[i] = (const uint16_t *) (task.keys + key[i] * task.key_stride);
    }
    f32v acc[N] = {};
    for (int64_t e = 0; e < task.n_embd_k; e += L) {
        const f32v q = load<f32v>(task.query + e);
        for (int i = 0; i < N; ++i) {
            acc[i] = multiply_add(load_f16(k[i] + e), q, acc[i]);
        }
    }
    for (int i = 0; i < N; ++i) {
        float score = sum_of(acc[i]) * task.scale;
        if (task.softcap != 0.0f) {
            score = task.softcap * std::tanh(score);
        }
        weight[i] += score;
    }
}

// out += the weighted sum of values, N registers of it from element `at` on
template <int N> void add_values(const row_task & task, const share & s, int64_t at) {
    f32v acc[N];
    for (int i = 0; i < N; ++i) {
        acc[i] = load<f32v>(task.out + at + i * L);
    }
    for (int j = 0; j < s.n; ++j) {
        const uint16_t * v = (const uint16_t *) (task.values + s.key[j] * task.value_stride) + at;
        const f32v       w = broadcast(s.weight[j]);
        for (int i = 0; i < N; ++i) {
            acc[i] = multiply_add(w, load_f16(v + i * L), acc[i]);
        }
    }
    for (int i = 0; i < N; ++i) {
        store(task.out + at + i * L, acc[i]);
    }
}

void scale_output(const row_task & task, float factor) {
    for (int64_t e = 0; e < task.n_embd_v; ++e) {
        task.out[e] *= factor;
    }
}

// The maximum and the sum of a softmax so far; raising the maximum scales what was summed.
struct softmax {
    float max = -INFINITY;
    float sum = 0.0f;

    void raise(const row_task & task, float score) {
        if (score > max) {
            const float factor = std::exp(max - score);
            max                = score;
            sum *= factor;
            scale_output(task, factor);
        }
    }
};

void weigh(const row_task & task, share & s, softmax & total) {
    const int n_abreast = s.n / N_ABREAST * N_ABREAST;
    for (int i = 0; i < n_abreast; i += N_ABREAST) {
        multiply_keys<N_ABREAST>(task, s.key + i, s.weight + i);
    }
    for (int i = n_abreast; i < s.n; ++i) {
        multiply_keys<1>(task, s.key + i, s.weight + i);
    }
    total.raise(task, *std::max_element(s.weight, s.weight + s.n));
    std::fill(s.weight + s.n, s.weight + s.n + L, -INFINITY);
    f32v sum = {};
    for (int i = 0; i < s.n; i += L) {
        const f32v w = exponential(load<f32v>(s.weight + i) - total.max);
        store(s.weight + i, w);
        sum += w;
    }
    total.sum += sum_of(sum);
}

void attend(const row_task & task, const float * sink) {
    std::fill(task.out, task.out + task.n_embd_v, 0.0f);
    softmax total;
    share   s;
    for (int64_t at = look(task, 0, s); s.n > 0; at = look(task, at, s)) {
        weigh(task, s, total);
        int64_t e = 0;
        for (; e + N_SLICE * L <= task.n_embd_v; e += N_SLICE * L) {
            add_values<N_SLICE>(task, s, e);
        }
        for (; e < task.n_embd_v; e += L) {
            add_values<1>(task, s, e);
        }
    }
    if (sink) {
        total.raise(task, *sink);
        total.sum += std::exp(*sink - total.max);
    }
    scale_output(task, total.sum == 0.0f ? 0.0f : 1.0f / total.sum);
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
    // in long texts upstream's way, which parts the keys among the threads, is faster, and where these are more than heads
    const bool is_parted = q->ne[1] == 1 && q->ne[3] == 1 && k->ne[1] >= 512;
    return (!is_parted || (k->ne[1] < N_LONG && q->ne[2] >= nth)) && is_of_packed_weights(q);
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
    const int64_t n         = q->ne[1] * q->ne[2] * q->ne[3];

    for (int64_t i = n * params->ith / params->nth; i < n * (params->ith + 1) / params->nth; ++i) {
        const int64_t i3   = i / (q->ne[1] * q->ne[2]);
        const int64_t head = i / q->ne[1] % q->ne[2];
        const int64_t i1   = i % q->ne[1];

        const int64_t k2 = head / (q->ne[2] / k->ne[2]);
        const int64_t k3 = i3 / (q->ne[3] / k->ne[3]);
        const int64_t v2 = head / (q->ne[2] / v->ne[2]);
        const int64_t v3 = i3 / (q->ne[3] / v->ne[3]);

        row_task task;
        task.query        = (const float *) ((const char *) q->data + i1 * q->nb[1] + head * q->nb[2] + i3 * q->nb[3]);
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
        task.slope   = slope_of(param[1], head, q->ne[2]);
        task.scale   = is_capped ? param[0] / param[2] : param[0];
        task.softcap = param[2];
        task.out     = (float *) ((char *) op->data + (i3 * op->ne[2] * op->ne[1] + head + i1 * op->ne[1]) * op->nb[1]);
        attend(task, op->src[4] ? (const float *) op->src[4]->data + head : nullptr);
    }
    return true;
}

#else

bool pyskip_attention_rows(const ggml_compute_params *, ggml_tensor *) {
    return false;
}

#endif
