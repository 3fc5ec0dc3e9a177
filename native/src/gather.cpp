#include "gather.h"

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"
#include "graph-pass.h"
#include "operator.h"
#include "slot.h"
#include "stand-in.h"
#include "state.h"

#include <algorithm>
#include <cmath>
#include <new>

pyskip_gather::pyskip_gather(pyskip_gather_kind kind, pyskip_sublayer sublayer, int32_t n_layer, int64_t n_embd,
                             int32_t warmup, std::shared_ptr<const pyskip_profile> profile)
    : kind(kind), sublayer(sublayer), n_embd(n_embd), warmup(warmup), profile(std::move(profile)), layers(n_layer) {
    const ggml_init_params params = { 2 * (size_t) n_layer * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true };
    tensors.reset(ggml_init(params));
    for (int32_t il = 0; il < n_layer; ++il) {
        pyskip_gather_layer & layer = layers[il];
        layer.gather                = this;
        if (kind == PYSKIP_GATHER_NEURONS || (this->profile && !find(il))) {
            continue;
        }
        const int64_t n_row   = kind == PYSKIP_GATHER_HIDDEN ? find(il)->rank + 1 : n_embd + 2;
        const int64_t n_cross = kind == PYSKIP_GATHER_ERRORS ? 1 : n_embd;
        layer.gram            = ggml_new_tensor_2d(tensors.get(), GGML_TYPE_F32, n_row, n_row);
        layer.cross           = ggml_new_tensor_2d(tensors.get(), GGML_TYPE_F32, n_row, n_cross);
    }
    if (kind == PYSKIP_GATHER_NEURONS) {
        return;
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

// Columns of dst are the batch's rows: the first source's values, log(|x|) if there is an x, and 1; zeros if a
// token does not count.
void features_compute(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const pyskip_gather_layer & layer  = *(const pyskip_gather_layer *) userdata;
    const int64_t               n_rows = dst->ne[0];
    const int64_t               n      = dst->src[0]->ne[0];
    float *                     out    = (float *) dst->data;
    const pyskip_share          share(n_rows, ith, nth);
    for (int64_t row = share.begin; row < share.end; ++row) {
        const bool    is_in = counts(layer, row);
        const float * f     = pyskip_row(dst->src[0], row);
        for (int64_t i = 0; i < n; ++i) {
            out[i * n_rows + row] = is_in ? f[i] : 0.0f;
        }
        if (dst->src[1]) {
            const double size     = norm(pyskip_row(dst->src[1], row), dst->src[1]->ne[0]);
            out[n * n_rows + row] = is_in ? (float) std::log(std::max(size, 1e-19)) : 0.0f;
        }
        out[(dst->ne[1] - 1) * n_rows + row] = is_in ? 1.0f : 0.0f;
    }
}

// Columns of dst are the outputs y of the batch's rows.
void outputs_compute(ggml_tensor * dst, int ith, int nth, void * userdata) {
    pyskip_gather_layer & layer    = *(pyskip_gather_layer *) userdata;
    const int64_t         n_rows   = dst->ne[0];
    float *               out      = (float *) dst->data;
    double                energy   = 0.0;
    int64_t               n_tokens = 0;
    const pyskip_share    share(n_rows, ith, nth);
    for (int64_t row = share.begin; row < share.end; ++row) {
        const bool    is_in = counts(layer, row);
        const float * y     = pyskip_row(dst->src[0], row);
        n_tokens += is_in;
        for (int64_t i = 0; i < dst->ne[1]; ++i) {
            out[i * n_rows + row] = is_in ? y[i] : 0.0f;
            energy += is_in ? (double) y[i] * y[i] : 0.0;
        }
    }
    const std::lock_guard<std::mutex> lock(layer.gather->mutex);
    layer.energy += energy;
    layer.n_tokens += n_tokens;
}

// Into `layer`, one target a row: the log of the stand-in's error.
void errors_compute(ggml_tensor * dst, int ith, int nth, void * userdata) {
    pyskip_gather_layer & layer  = *(pyskip_gather_layer *) userdata;
    const pyskip_gather & gather = *layer.gather;
    const float *         bias   = gather.find(layer.slot->block.il)->bias;
    float *               out    = (float *) dst->data;

    std::vector<float> miss(gather.n_embd);
    double             energy   = 0.0;
    int64_t            n_tokens = 0;
    const pyskip_share share(dst->ne[0], ith, nth);
    for (int64_t row = share.begin; row < share.end; ++row) {
        out[row] = 0.0f;
        if (!counts(layer, row)) {
            continue;
        }
        const float * y  = pyskip_row(dst->src[0], row);
        const float * y_ = dst->src[1] ? pyskip_row(dst->src[1], row) : nullptr;
        for (int64_t i = 0; i < gather.n_embd; ++i) {
            miss[i] = y[i] - bias[i] - (y_ ? y_[i] : 0.0f);
        }
        out[row] = (float) std::log(std::max(norm(miss.data(), gather.n_embd), 1e-19));
        energy += (double) out[row] * out[row];
        ++n_tokens;
    }
    const std::lock_guard<std::mutex> lock(layer.gather->mutex);
    layer.energy += energy;
    layer.n_tokens += n_tokens;
}

// Adds the squares of the block's neurons, each thread those of its own share of them. dst is not used.
void neurons_compute(ggml_tensor * dst, int ith, int nth, void * userdata) {
    pyskip_gather_layer & layer  = *(pyskip_gather_layer *) userdata;
    const ggml_tensor *   hidden = dst->src[0];
    const pyskip_share    share(hidden->ne[0], ith, nth);
    for (int64_t row = 0; row < hidden->ne[1]; ++row) {
        if (!counts(layer, row)) {
            continue;
        }
        const float * h = pyskip_row(hidden, row);
        for (int64_t j = share.begin; j < share.end; ++j) {
            layer.neurons[j] += h[j] * h[j];
        }
        if (ith == 0) { // of all threads one counts
            ++layer.n_tokens;
        }
    }
}

pyskip_activation activation_of(const ggml_tensor * h) {
    if (h->op != GGML_OP_GLU || h->op_params[1] != 0 /* swapped */) {
        return PYSKIP_ACTIVATION_NONE;
    }
    switch (ggml_get_glu_op(h)) {
        case GGML_GLU_OP_SWIGLU: return PYSKIP_ACTIVATION_SILU;
        case GGML_GLU_OP_GEGLU: return PYSKIP_ACTIVATION_GELU;
        case GGML_GLU_OP_REGLU: return PYSKIP_ACTIVATION_RELU;
        default: return PYSKIP_ACTIVATION_NONE;
    }
}

// What the block's ffn_down reads if that is activation(gate) * up of the block's input, and nothing more; else nullptr.
ggml_tensor * glu_of(const pyskip_block & block) {
    const auto is_projection = [&](const ggml_tensor * t) {
        return t == nullptr || (t->op == GGML_OP_MUL_MAT && t->src[1] == block.input);
    };
    for (const ggml_tensor * node : block.region) {
        if (node->op == GGML_OP_MUL_MAT && pyskip_ffn_down_layer(node->src[0]->name) == block.il) {
            ggml_tensor * h = node->src[1];
            return activation_of(h) != PYSKIP_ACTIVATION_NONE && is_projection(h->src[0]) && is_projection(h->src[1])
                       ? h
                       : nullptr;
        }
    }
    return nullptr;
}

} // namespace

std::vector<ggml_tensor *> pyskip_gather_build(ggml_context * ctx, pyskip_gather & gather, const pyskip_slot & slot) {
    pyskip_gather_layer & layer = gather.layers[slot.block.il];
    ggml_tensor *         xn    = slot.block.input;
    layer.slot                  = &slot;

    if (gather.kind == PYSKIP_GATHER_NEURONS) {
        ggml_tensor * hidden = glu_of(slot.block);
        if (hidden == nullptr) {
            return {};
        }
        layer.activation = activation_of(hidden);
        layer.neurons.resize(hidden->ne[0]);
        return { pyskip_operator(ctx, 1, 1, { hidden }, neurons_compute, &layer) };
    }
    if (layer.gram == nullptr) {
        return {};
    }
    ggml_tensor * features = nullptr;
    ggml_tensor * targets  = nullptr;
    if (gather.kind == PYSKIP_GATHER_HIDDEN) {
        ggml_tensor * hidden = pyskip_stand_in_hidden(ctx, *gather.find(slot.block.il), xn);
        features = pyskip_operator(ctx, slot.n_rows, layer.gram->ne[0], { hidden }, features_compute, &layer);
    } else {
        features = pyskip_operator(ctx, slot.n_rows, layer.gram->ne[0], { xn, slot.block.x }, features_compute, &layer);
    }
    if (layer.cross->ne[1] == gather.n_embd) {
        targets = pyskip_operator(ctx, slot.n_rows, gather.n_embd, { slot.block.y }, outputs_compute, &layer);
    } else {
        std::vector<ggml_tensor *> sources = { slot.block.y };
        if (ggml_tensor * y_ = pyskip_stand_in_build(ctx, *gather.find(slot.block.il), xn)) {
            sources.push_back(y_);
        }
        targets = pyskip_operator(ctx, slot.n_rows, 1, sources, errors_compute, &layer);
    }
    return {
        ggml_add_inplace(ctx, layer.gram, ggml_mul_mat(ctx, features, features)),
        ggml_add_inplace(ctx, layer.cross, ggml_mul_mat(ctx, features, targets)),
    };
}
