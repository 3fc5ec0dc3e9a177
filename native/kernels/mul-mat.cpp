#include "mul-mat.h"

#ifdef PYSKIP_LANES

#    include "ggml-cpu-impl.h"
#    include "ggml-impl.h"

#    include <algorithm>

namespace pyskip_cpu {

namespace {

// What thread 0 finds out about a product with experts: the tokens of each.
struct assignment {
    int32_t * columns; // [n_used n_tokens][2], by expert: which of a token's experts it is, the token
    int32_t * begin;   // [n_expert + 1], of an expert's columns
    int32_t * active;  // [n_expert], those that have any
    int32_t * n_active;

    assignment(char * room, const ggml_tensor * ids, int64_t n_expert) {
        columns  = (int32_t *) room;
        begin    = columns + 2 * ids->ne[0] * ids->ne[1];
        active   = begin + n_expert + 1;
        n_active = active + n_expert;
    }

    static size_t size(const ggml_tensor * ids, int64_t n_expert) {
        return sizeof(int32_t) * (2 * ids->ne[0] * ids->ne[1] + 2 * n_expert + 2);
    }

    void fill(const ggml_tensor * ids, int64_t n_expert) {
        const auto expert_of = [ids](int64_t i, int64_t token) {
            return *(const int32_t *) ((const char *) ids->data + token * ids->nb[1] + i * ids->nb[0]);
        };
        std::fill(begin, begin + n_expert + 1, 0);
        for (int64_t token = 0; token < ids->ne[1]; ++token) {
            for (int64_t i = 0; i < ids->ne[0]; ++i) {
                GGML_ASSERT(expert_of(i, token) >= 0 && expert_of(i, token) < n_expert);
                ++begin[expert_of(i, token) + 1];
            }
        }
        *n_active = 0;
        for (int64_t e = 0; e < n_expert; ++e) {
            if (begin[e + 1] > 0) {
                active[(*n_active)++] = (int32_t) e;
            }
            begin[e + 1] += begin[e];
        }
        // begin[e] walks to its expert's end, which is the next one's begin; it is set back below
        for (int64_t token = 0; token < ids->ne[1]; ++token) {
            for (int64_t i = 0; i < ids->ne[0]; ++i) {
                int32_t * column = columns + 2 * begin[expert_of(i, token)]++;
                column[0]        = (int32_t) i;
                column[1]        = (int32_t) token;
            }
        }
        for (int64_t e = n_expert; e > 0; --e) {
            begin[e] = begin[e - 1];
        }
        begin[0] = 0;
    }
};

size_t activations_size(const kernel & k, const ggml_tensor * src1) {
    return src1->ne[0] / k.n_weights * k.activations_size;
}

size_t all_activations_size(const kernel & k, const ggml_tensor * src1) {
    return GGML_PAD(activations_size(k, src1) * ggml_nrows(src1), 64);
}

// This thread's share of the columns' blocks.
void quantize_share(const kernel & k, const ggml_compute_params * params, const ggml_tensor * src1) {
    const int64_t n_block = src1->ne[0] / k.n_weights;
    const int64_t n       = n_block * ggml_nrows(src1);
    char *        out     = (char *) params->wdata;
    for (int64_t i = n * params->ith / params->nth; i < n * (params->ith + 1) / params->nth; ++i) {
        const int64_t row = i / n_block;
        const int64_t i1  = row % src1->ne[1];
        const int64_t i2  = row / src1->ne[1] % src1->ne[2];
        const int64_t i3  = row / (src1->ne[1] * src1->ne[2]);
        const char *  x   = (const char *) src1->data + i1 * src1->nb[1] + i2 * src1->nb[2] + i3 * src1->nb[3];
        k.quantize((const float *) x + i % n_block * k.n_weights, out + i * k.activations_size);
    }
}

// How a product is cut into chunks that threads take one after another: by rows, and by columns where that gives too few
// for the threads to end together.
struct cut {
    int64_t n_strip;
    int64_t n_column;
    int64_t unit; // strips that should stay together
    int64_t by_strip;
    int64_t by_column = 1;

    cut(int64_t n_strip, int64_t n_column, int n_thread)
        : n_strip(n_strip), n_column(n_column), unit(n_column > FEW_COLUMNS ? TILE_STRIPS : 1) {
        constexpr int64_t per_thread = 8;
        const int64_t     pieces     = n_thread == 1 ? 1 : n_thread * per_thread;
        by_strip                     = std::min(pieces, (n_strip + unit - 1) / unit);
        if (by_strip < pieces / 2) {
            by_column =
                std::clamp<int64_t>(pieces / 2 / by_strip, 1, (n_column + 4 * MAX_COLUMNS - 1) / (4 * MAX_COLUMNS));
        }
    }

    int64_t size() const { return by_strip * by_column; }

    // the begin of a piece
    int64_t strip(int64_t i) const {
        const int64_t n_unit = (n_strip + unit - 1) / unit;
        return std::min(n_strip, n_unit * i / by_strip * unit);
    }

    int64_t column(int64_t i) const { return n_column * i / by_column; }
};

void compute_chunk(const kernel & k, const ggml_tensor * weights, const char * matrix, const cut & cut, int64_t chunk,
                   const columns & columns, int64_t c0) {
    const int64_t s     = chunk % cut.by_strip;
    const int64_t c     = chunk / cut.by_strip;
    const int64_t first = cut.strip(s);
    k.multiply(matrix, weights->ne[0] / k.n_weights, first, cut.strip(s + 1) - first, weights->ne[1], columns,
               c0 + cut.column(c), c0 + cut.column(c + 1));
}

columns columns_of(const kernel & k, const ggml_compute_params * params, const ggml_tensor * op) {
    columns c;
    c.activations      = (const char *) params->wdata;
    c.activations_size = activations_size(k, op->src[1]);
    c.dst              = (char *) op->data;
    c.nb1              = op->nb[1];
    c.nb2              = op->nb[2];
    c.nb3              = op->nb[3];
    c.ne1              = op->ne[1];
    c.ne2              = op->ne[2];
    c.experts          = nullptr;
    c.ne11             = op->src[1]->ne[1];
    return c;
}

void forward_matrix(const kernel & k, ggml_compute_params * params, ggml_tensor * op) {
    const ggml_tensor * weights = op->src[0];
    GGML_ASSERT(ggml_nrows(op) == ggml_nrows(op->src[1]));

    quantize_share(k, params, op->src[1]);
    if (params->ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);

    const cut     cut((weights->ne[1] + L - 1) / L, ggml_nrows(op->src[1]), params->nth);
    const columns columns = columns_of(k, params, op);
    for (int64_t chunk = params->ith; chunk < cut.size(); chunk = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        compute_chunk(k, weights, (const char *) weights->data, cut, chunk, columns, 0);
    }
}

void forward_experts(const kernel & k, ggml_compute_params * params, ggml_tensor * op) {
    const ggml_tensor * weights = op->src[0];
    const ggml_tensor * ids     = op->src[2];
    const assignment    assignment((char *) params->wdata + all_activations_size(k, op->src[1]), ids, weights->ne[2]);

    quantize_share(k, params, op->src[1]);
    if (params->ith == 0) {
        const_cast<struct assignment &>(assignment).fill(ids, weights->ne[2]);
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);

    columns columns = columns_of(k, params, op);
    columns.experts = assignment.columns;

    const int64_t n_strip = (weights->ne[1] + L - 1) / L;
    int64_t       before  = 0; // chunks of the experts before
    int64_t       chunk   = params->ith;
    for (int i = 0; i < *assignment.n_active; ++i) {
        const int32_t e  = assignment.active[i];
        const int64_t c0 = assignment.begin[e];
        const cut     cut(n_strip, assignment.begin[e + 1] - c0, params->nth);
        const char *  matrix = (const char *) weights->data + e * matrix_size(k, weights);
        for (; chunk < before + cut.size(); chunk = ggml_threadpool_chunk_add(params->threadpool, 1)) {
            compute_chunk(k, weights, matrix, cut, chunk - before, columns, c0);
        }
        before += cut.size();
    }
}

} // namespace

size_t matrix_size(const kernel & k, const ggml_tensor * weights) {
    return (weights->ne[1] + L - 1) / L * (weights->ne[0] / k.n_weights) * k.block_size;
}

size_t work_size(const kernel & k, const ggml_tensor * op) {
    const size_t size = all_activations_size(k, op->src[1]);
    return op->op == GGML_OP_MUL_MAT_ID ? size + assignment::size(op->src[2], op->src[0]->ne[2]) : size;
}

void forward(const kernel & k, ggml_compute_params * params, ggml_tensor * op) {
    GGML_ASSERT(op->nb[0] == sizeof(float) && op->src[1]->nb[0] == sizeof(float) && op->src[1]->type == GGML_TYPE_F32);
    if (op->op == GGML_OP_MUL_MAT_ID) {
        forward_experts(k, params, op);
    } else {
        forward_matrix(k, params, op);
    }
}

} // namespace pyskip_cpu

#endif // PYSKIP_LANES
