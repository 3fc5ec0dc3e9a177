#include "gather.h"

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"
#include "graph-pass.h"
#include "operator.h"
#include "row.h"
#include "slot.h"
#include "stand-in.h"
#include "state.h"
#include "sums.h"

#include <algorithm>
#include <cmath>
#include <new>

// Of a block's output: who misses less is believed no more than that.
static constexpr double LEAST_MISS = 1e-2;

static bool has_totals(pyskip_gather_kind kind) {
    return kind == PYSKIP_GATHER_NEURONS || kind == PYSKIP_GATHER_STEPS;
}

pyskip_gather::pyskip_gather(pyskip_gather_kind kind, pyskip_sublayer sublayer, int32_t n_layer, int64_t n_embd,
                             int32_t warmup, std::shared_ptr<const pyskip_profile> profile)
    : kind(kind), sublayer(sublayer), n_embd(n_embd), warmup(warmup), profile(std::move(profile)), layers(n_layer) {
    const ggml_init_params params = { 2 * (size_t) n_layer * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true };
    tensors.reset(ggml_init(params));
    for (int32_t il = 0; il < n_layer; ++il) {
        pyskip_gather_layer & layer = layers[il];
        layer.gather                = this;
        if (has_totals(kind) || (this->profile && !find(il))) {
            continue;
        }
        const int64_t n_row   = kind == PYSKIP_GATHER_HIDDEN ? find(il)->rank + 1 : n_embd + 2;
        const int64_t n_cross = kind == PYSKIP_GATHER_ERRORS || kind == PYSKIP_GATHER_GIVEN ? 1 : n_embd;
        layer.gram            = ggml_new_tensor_2d(tensors.get(), GGML_TYPE_F32, n_row, n_row);
        layer.cross           = ggml_new_tensor_2d(tensors.get(), GGML_TYPE_F32, n_row, n_cross);
    }
    if (has_totals(kind)) {
        return;
    }
    sums.reset(ggml_backend_alloc_ctx_tensors_from_buft(tensors.get(), ggml_backend_cpu_buffer_type()));
    if (!sums) {
        throw std::bad_alloc();
    }
    ggml_backend_buffer_clear(sums.get(), 0);
}

namespace {

const pyskip_token & token_of(const pyskip_gather_layer & layer, int64_t row) {
    const pyskip_state & state = *layer.slot->state;
    return state.tokens[state.token_of_row(*layer.slot, row)];
}

float given(const pyskip_gather & gather, const pyskip_token & token) {
    return (size_t) token.pos < gather.targets.size() ? gather.targets[token.pos] : NAN;
}

bool counts(const pyskip_gather_layer & layer, int64_t row) {
    const pyskip_token & token = token_of(layer, row);
    return token.index >= 0 && token.index >= layer.gather->warmup &&
           (layer.gather->kind != PYSKIP_GATHER_GIVEN || std::isfinite(given(*layer.gather, token)));
}

double norm(const float * v, int64_t n) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; ++i) {
        sum += (double) v[i] * v[i];
    }
    return std::sqrt(sum);
}

// How far the stand-in misses y, without its bias if it has none yet.
double miss(const float * y, const float * y_, const float * bias, int64_t n) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; ++i) {
        const double d = y[i] - bias[i] - (y_ ? y_[i] : 0.0f);
        sum += d * d;
    }
    return std::sqrt(sum);
}

// What a row's features and targets are multiplied with, which is the root of its weight: 0 if its token does not count,
// else 1, or one over the error of the stand-in so far, since it is to serve where it misses little.
void weights_compute(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const pyskip_gather_layer & layer = *(const pyskip_gather_layer *) userdata;
    const ggml_tensor *         y     = dst->src[0];
    const ggml_tensor *         y_    = dst->src[1];
    float *                     out   = (float *) dst->data;
    const pyskip_share          share(dst->ne[0], ith, nth);
    for (int64_t row = share.begin; row < share.end; ++row) {
        out[row] = counts(layer, row) ? 1.0f : 0.0f;
        if (y_ && out[row] > 0.0f) {
            const float * bias = layer.gather->find(layer.slot->block.il)->bias;
            const double  size = norm(pyskip_row(y, row), y->ne[0]);
            const double  e    = miss(pyskip_row(y, row), pyskip_row(y_, row), bias, y->ne[0]);
            out[row]           = (float) (1.0 / std::max({ e, LEAST_MISS * size, 1e-12 }));
        }
    }
}

// dst is in panels (sums.h): the first source's values, log(|x|) if there is an x, and 1, times the row's weight.
void features_compute(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const int64_t       n_rows = dst->ne[0];
    const int64_t       n_all  = ((const pyskip_gather_layer *) userdata)->gram->ne[0];
    const int64_t       n      = dst->src[0]->ne[0];
    const float *       weight = (const float *) dst->src[1]->data;
    const ggml_tensor * x      = dst->src[2];
    float *             out    = (float *) dst->data;
    const pyskip_share  share(n_rows, ith, nth);
    for (int64_t row = share.begin; row < share.end; ++row) {
        const float   w = weight[row];
        const float * f = pyskip_row(dst->src[0], row);
        for (int64_t i = 0; i < n; ++i) {
            out[pyskip_panel_at(i, row, n_rows)] = w > 0.0f ? w * f[i] : 0.0f; // not even a NaN where it does not count
        }
        if (x) {
            const double size                    = norm(pyskip_row(x, row), x->ne[0]);
            out[pyskip_panel_at(n, row, n_rows)] = w > 0.0f ? w * (float) std::log(std::max(size, 1e-19)) : 0.0f;
        }
        out[pyskip_panel_at(n_all - 1, row, n_rows)] = w;
        for (int64_t i = n_all; i < dst->ne[1]; ++i) {
            out[pyskip_panel_at(i, row, n_rows)] = 0.0f;
        }
    }
}

void count(pyskip_gather_layer & layer, double energy, int64_t n_tokens) {
    const std::lock_guard<std::mutex> lock(layer.gather->mutex);
    layer.energy += energy;
    layer.n_tokens += n_tokens;
}

// dst is in panels: the outputs y of the batch's rows, times their weights.
void outputs_compute(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const int64_t      n_rows   = dst->ne[0];
    const int64_t      n        = dst->src[0]->ne[0];
    const float *      weight   = (const float *) dst->src[1]->data;
    float *            out      = (float *) dst->data;
    double             energy   = 0.0;
    int64_t            n_tokens = 0;
    const pyskip_share share(n_rows, ith, nth);
    for (int64_t row = share.begin; row < share.end; ++row) {
        const float   w = weight[row];
        const float * y = pyskip_row(dst->src[0], row);
        n_tokens += w > 0.0f;
        for (int64_t i = 0; i < dst->ne[1]; ++i) {
            const float target                   = i < n && w > 0.0f ? w * y[i] : 0.0f;
            out[pyskip_panel_at(i, row, n_rows)] = target;
            energy += (double) target * target;
        }
    }
    count(*(pyskip_gather_layer *) userdata, energy, n_tokens);
}

// dst is a panel with one target a row: what was given, or the log of the stand-in's error.
void target_compute(ggml_tensor * dst, int ith, int nth, void * userdata) {
    pyskip_gather_layer &   layer = *(pyskip_gather_layer *) userdata;
    const pyskip_stand_in * own   = layer.gather->find(layer.slot->block.il);

    double             energy   = 0.0;
    int64_t            n_tokens = 0;
    const pyskip_share share(dst->ne[0], ith, nth);
    for (int64_t row = share.begin; row < share.end; ++row) {
        float * out = (float *) dst->data + pyskip_panel_at(0, row, dst->ne[0]);
        std::fill(out, out + PYSKIP_PANEL, 0.0f);
        if (!counts(layer, row)) {
            continue;
        }
        const float * y  = pyskip_row(dst->src[0], row);
        const float * y_ = dst->src[1] ? pyskip_row(dst->src[1], row) : nullptr;
        out[0]           = own ? (float) std::log(std::max(miss(y, y_, own->bias, dst->src[0]->ne[0]), 1e-19))
                               : given(*layer.gather, token_of(layer, row));
        energy += (double) out[0] * out[0];
        ++n_tokens;
    }
    count(layer, energy, n_tokens);
}

// Adds the batch's products to the layer's sums: of its features with themselves and with the targets. dst is not used.
void products_compute(ggml_tensor * dst, int ith, int nth, void * userdata) {
    pyskip_gather_layer & layer    = *(pyskip_gather_layer *) userdata;
    const float *         features = (const float *) dst->src[0]->data;
    const float *         targets  = (const float *) dst->src[1]->data;
    const int64_t         n_rows   = dst->src[0]->ne[0];
    const int64_t         n        = layer.gram->ne[0];
    pyskip_sums_add((float *) layer.gram->data, features, n, features, n, n_rows, true, ith, nth);
    pyskip_sums_add((float *) layer.cross->data, targets, layer.cross->ne[1], features, n, n_rows, false, ith, nth);
}

// Adds squares, of the share of a row that is this thread's.
void add_squares(const float * row, const pyskip_share & share, float * sums) {
    for (int64_t i = share.begin; i < share.end; ++i) {
        sums[i] += row[i] * row[i];
    }
}

// Adds the squares of the block's neurons and, behind them, of its input. dst is not used.
void neurons_compute(ggml_tensor * dst, int ith, int nth, void * userdata) {
    pyskip_gather_layer & layer  = *(pyskip_gather_layer *) userdata;
    const ggml_tensor *   hidden = dst->src[0];
    const ggml_tensor *   input  = dst->src[1];
    const pyskip_share    neurons(hidden->ne[0], ith, nth);
    const pyskip_share    inputs(input->ne[0], ith, nth);
    for (int64_t row = 0; row < hidden->ne[1]; ++row) {
        if (!counts(layer, row)) {
            continue;
        }
        add_squares(pyskip_row(hidden, row), neurons, layer.totals.data());
        add_squares(pyskip_row(input, row), inputs, layer.totals.data() + hidden->ne[0]);
        if (ith == 0) { // of all threads one counts
            ++layer.n_tokens;
        }
    }
}

// Adds how far the block turns the stream and how much it adds to it: cos(x, x + y) and |y| / |x|. dst is not used. One thread, so
// that sums do not depend on how many there are.
void steps_compute(ggml_tensor * dst, int ith, int, void * userdata) {
    pyskip_gather_layer & layer = *(pyskip_gather_layer *) userdata;
    if (ith > 0) {
        return;
    }
    const int64_t n = dst->src[0]->ne[0];
    for (int64_t row = 0; row < dst->src[0]->ne[1]; ++row) {
        if (!counts(layer, row)) {
            continue;
        }
        const float * x = pyskip_row(dst->src[0], row);
        const float * y = pyskip_row(dst->src[1], row);
        layer.totals[0] += pyskip_compare(x, y, n).cosine;
        layer.totals[1] += (float) (norm(y, n) / std::max(norm(x, n), 1e-19));
        ++layer.n_tokens;
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
        layer.totals.resize(hidden->ne[0] + xn->ne[0]);
        return { pyskip_operator(ctx, 1, 1, { hidden, xn }, neurons_compute, &layer) };
    }
    if (gather.kind == PYSKIP_GATHER_STEPS) {
        layer.totals.resize(2);
        return { pyskip_operator(ctx, 1, 1, { slot.block.x, slot.block.y }, steps_compute, &layer) };
    }
    if (layer.gram == nullptr) {
        return {};
    }
    const pyskip_stand_in *    own     = gather.find(slot.block.il);
    std::vector<ggml_tensor *> outputs = { slot.block.y }; // and the stand-in's, of those kinds that have one
    std::vector<ggml_tensor *> sources = { xn, nullptr, slot.block.x };
    if (gather.kind == PYSKIP_GATHER_HIDDEN) {
        sources = { pyskip_stand_in_hidden(ctx, *own, xn), nullptr };
        outputs.push_back(ggml_mul_mat(ctx, own->down, sources[0]));
    }
    ggml_tensor * weights   = pyskip_operator(ctx, slot.n_rows, 1, outputs, weights_compute, &layer);
    sources[1]              = weights;
    const int64_t n_feature = pyskip_panel_rows(layer.gram->ne[0]);
    const int64_t n_target  = pyskip_panel_rows(layer.cross->ne[1]);
    ggml_tensor * features  = pyskip_operator(ctx, slot.n_rows, n_feature, sources, features_compute, &layer);
    ggml_tensor * targets   = nullptr;
    if (layer.cross->ne[1] == 1) {
        if (ggml_tensor * y_ = own ? pyskip_stand_in_build(ctx, *own, xn) : nullptr) {
            outputs.push_back(y_);
        }
        targets = pyskip_operator(ctx, slot.n_rows, n_target, outputs, target_compute, &layer);
    } else {
        targets = pyskip_operator(ctx, slot.n_rows, n_target, { slot.block.y, weights }, outputs_compute, &layer);
    }
    return { pyskip_operator(ctx, 1, 1, { features, targets }, products_compute, &layer) };
}
