#include "gather.h"

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"
#include "operator.h"
#include "profile.h"
#include "stand-in.h"
#include "state.h"

#include <algorithm>
#include <cmath>
#include <new>

pyskip_gather::pyskip_gather(int32_t n_layer, int64_t n_embd, int32_t warmup, std::shared_ptr<const pyskip_profile> profile)
    : n_embd(n_embd), warmup(warmup), profile(std::move(profile)), layers(n_layer) {
    const int64_t          n_row  = n_embd + 2;
    const ggml_init_params params = { 2 * (size_t) n_layer * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/ true };
    tensors.reset(ggml_init(params));
    for (pyskip_gather_layer & layer : layers) {
        layer.gather = this;
        layer.gram   = ggml_new_tensor_2d(tensors.get(), GGML_TYPE_F32, n_row, n_row);
        layer.cross  = ggml_new_tensor_2d(tensors.get(), GGML_TYPE_F32, n_row, this->profile ? 1 : n_embd);
    }
    sums.reset(ggml_backend_alloc_ctx_tensors_from_buft(tensors.get(), ggml_backend_cpu_buffer_type()));
    if (!sums) {
        throw std::bad_alloc();
    }
    ggml_backend_buffer_clear(sums.get(), 0);
}

namespace {

bool counts(const pyskip_gather_layer & layer, int64_t row) {
    const pyskip_state & state = *layer.slot->state;
    const int32_t        index = state.tokens[state.token_of_row(*layer.slot, row)].index;
    return index >= 0 && index >= layer.gather->warmup;
}

double norm(const float * v, int64_t n) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; ++i) {
        sum += (double) v[i] * v[i];
    }
    return std::sqrt(sum);
}

// Columns of dst are the batch's rows: the normed input, log(|x|), 1; zeros where a token does not count.
void features_compute(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const pyskip_gather_layer & layer  = *(const pyskip_gather_layer *) userdata;
    const int64_t               n_rows = dst->ne[0];
    const int64_t               n_embd = dst->ne[1] - 2;
    float *                     out    = (float *) dst->data;
    const pyskip_share share(n_rows, ith, nth);
    for (int64_t row = share.begin; row < share.end; ++row) {
        const bool    is_in = counts(layer, row);
        const float * xn    = pyskip_row(dst->src[0], row);
        for (int64_t i = 0; i < n_embd; ++i) {
            out[i * n_rows + row] = is_in ? xn[i] : 0.0f;
        }
        const double size = norm(pyskip_row(dst->src[1], row), n_embd);
        out[n_embd * n_rows + row]       = is_in ? (float) std::log(std::max(size, 1e-19)) : 0.0f;
        out[(n_embd + 1) * n_rows + row] = is_in ? 1.0f : 0.0f;
    }
}

// How much an error of token t's stream counts.
double weigh(const pyskip_gather & gather, const std::vector<float> & miss, int32_t t) {
    if (gather.probes == nullptr || t >= gather.n_tokens) {
        return norm(miss.data(), (int64_t) miss.size());
    }
    const float * probe = gather.probes + (size_t) t * gather.n_probe * miss.size();
    double        sum   = 0.0;
    for (int32_t k = 0; k < gather.n_probe; ++k, probe += miss.size()) {
        double dot = 0.0;
        for (size_t i = 0; i < miss.size(); ++i) {
            dot += (double) probe[i] * miss[i];
        }
        sum += dot * dot;
    }
    return std::sqrt(sum / gather.n_probe);
}

// Columns of dst are the targets of the batch's rows: y, or with a stand-in the log of its relative error.
void targets_compute(ggml_tensor * dst, int ith, int nth, void * userdata) {
    pyskip_gather_layer & layer  = *(pyskip_gather_layer *) userdata;
    const pyskip_profile * profile = layer.gather->profile.get();
    const int64_t         n_rows = dst->ne[0];
    const int64_t         n_embd = layer.gather->n_embd;
    float *               out    = (float *) dst->data;

    std::vector<float> miss(profile ? n_embd : 0);
    double             energy   = 0.0;
    int64_t            n_tokens = 0;
    const pyskip_share share(n_rows, ith, nth);
    for (int64_t row = share.begin; row < share.end; ++row) {
        const bool    is_in = counts(layer, row);
        const float * y     = pyskip_row(dst->src[0], row);
        n_tokens += is_in;
        if (!profile) {
            for (int64_t i = 0; i < n_embd; ++i) {
                out[i * n_rows + row] = is_in ? y[i] : 0.0f;
                energy += is_in ? (double) y[i] * y[i] : 0.0;
            }
            continue;
        }
        const float * bias = profile->layers[layer.slot->block.il].bias;
        const float * y_   = layer.y_stand_in ? pyskip_row(layer.y_stand_in, row) : nullptr;
        for (int64_t i = 0; i < n_embd; ++i) {
            miss[i] = y[i] - bias[i] - (y_ ? y_[i] : 0.0f);
        }
        const double size  = std::max(norm(pyskip_row(dst->src[1], row), n_embd), 1e-19);
        const double error = std::log(std::max(weigh(*layer.gather, miss, layer.slot->state->token_of_row(*layer.slot, row)) / size, 1e-19));
        out[row] = is_in ? (float) error : 0.0f;
        energy += is_in ? error * error : 0.0;
    }
    const std::lock_guard<std::mutex> lock(layer.gather->mutex);
    layer.energy += energy;
    layer.n_tokens += n_tokens;
}

} // namespace

std::vector<ggml_tensor *> pyskip_gather_build(ggml_context * ctx, pyskip_gather & gather, const pyskip_slot & slot) {
    pyskip_gather_layer & layer = gather.layers[slot.block.il];
    ggml_tensor *         xn    = slot.block.input;
    layer.slot                  = &slot;
    layer.y_stand_in            = nullptr;

    std::vector<ggml_tensor *> sources = { slot.block.y, slot.block.x };
    if (gather.profile) {
        const pyskip_stand_in & own = gather.profile->layers[slot.block.il];
        if (own.gate == nullptr) {
            return {};
        }
        layer.y_stand_in = pyskip_stand_in_build(ctx, own, xn);
        if (layer.y_stand_in) {
            sources.push_back(layer.y_stand_in);
        }
    }
    ggml_tensor * features = pyskip_operator(ctx, slot.n_rows, gather.n_embd + 2, { xn, slot.block.x }, features_compute, &layer);
    ggml_tensor * targets  = pyskip_operator(ctx, slot.n_rows, layer.cross->ne[1], sources, targets_compute, &layer);
    return {
        ggml_add_inplace(ctx, layer.gram, ggml_mul_mat(ctx, features, features)),
        ggml_add_inplace(ctx, layer.cross, ggml_mul_mat(ctx, features, targets)),
    };
}
