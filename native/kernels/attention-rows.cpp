#include "attention.h"
#include "lanes.h"

#if defined(PYSKIP_LANES) && (PYSKIP_LANES == 16 || !defined(__AVX512F__))

#    include "attention-piece.h"
#    include "buffer.h"
#    include "common.h"
#    include "ggml-cpu-impl.h"
#    include "kernels.h"

#    include <algorithm>
#    include <cmath>

namespace pyskip_cpu {

namespace {

constexpr int MAX_PIECE       = 16; // pieces of a row's keys, of N_KEYS or a multiple, that threads can take
constexpr int MAX_PARTED_ROWS = 16; // of which threads take them
constexpr int MAX_CHAIN       = 32; // nodes from an attention's query back to the product that it comes from

// Where the pieces of a row's keys begin, and the last one ends. They are of as many keys that the row sees, however these lie
// in the cache: each is summed by itself, and the sums are added in their order, whoever computes them.
struct pieces {
    int     n = 0;
    int64_t begin[MAX_PIECE + 1];
};

int n_seen(const ggml_fp16_t * mask, int64_t n) {
    int found = 0;
    for (int64_t i = 0; i < n; ++i) {
        found += mask[i] != 0xfc00; // minus infinity
    }
    return found;
}

pieces pieces_of(const ggml_fp16_t * mask, int64_t n_key) {
    constexpr int64_t N_BLOCK = 128;

    const int64_t n_all  = mask ? n_seen(mask, n_key) : n_key;
    const int64_t n_each = (n_all + MAX_PIECE * N_KEYS - 1) / (MAX_PIECE * N_KEYS) * N_KEYS;
    pieces        found;
    found.begin[0] = 0;
    if (n_all == 0) {
        return found;
    }
    int64_t at = 0;
    for (int64_t n_left = n_all; n_left > n_each; n_left -= n_each) {
        if (!mask) {
            at += n_each;
        } else {
            int64_t n = n_each;
            for (int n_now; at + N_BLOCK <= n_key && (n_now = n_seen(mask + at, N_BLOCK)) < n; at += N_BLOCK) {
                n -= n_now;
            }
            for (; n > 0; ++at) {
                n -= mask[at] != 0xfc00;
            }
        }
        found.begin[++found.n] = at;
    }
    found.begin[++found.n] = n_key;
    return found;
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

bool is_supported(const ggml_tensor * op) {
    const ggml_tensor * q = op->src[0];
    const ggml_tensor * k = op->src[1];
    const ggml_tensor * v = op->src[2];
    return q->type == GGML_TYPE_F32 && k->type == GGML_TYPE_F16 && v->type == GGML_TYPE_F16 &&
           q->ne[1] < (int64_t) ggml_fa_tile_config::Q && k->ne[0] % L == 0 && v->ne[0] % L == 0 &&
           is_of_packed_weights(q);
}

// An attention of few rows: its rows, each of all heads, and the heads that have their keys in common.
struct attention {
    const ggml_tensor * op;
    int64_t             n_head, n_row, n_shared;

    explicit attention(const ggml_tensor * op) : op(op) {
        const ggml_tensor * q    = op->src[0];
        const ggml_tensor * mask = op->src[3];
        n_head                   = q->ne[2];
        n_row                    = q->ne[1] * q->ne[3];
        n_shared = mask && mask->ne[2] > 1 ? 1 : n_head / std::max(op->src[1]->ne[2], op->src[2]->ne[2]);
    }

    const ggml_fp16_t * mask_of(int64_t row, int64_t head) const {
        const ggml_tensor * mask = op->src[3];
        const int64_t       i1   = row % op->src[0]->ne[1];
        const int64_t       i3   = row / op->src[0]->ne[1];
        return !mask ? nullptr
                     : (const ggml_fp16_t *) ((const char *) mask->data + i1 * mask->nb[1] +
                                              head % mask->ne[2] * mask->nb[2] + i3 % mask->ne[3] * mask->nb[3]);
    }

    pieces pieces_of(int64_t row, int64_t head) const {
        return pyskip_cpu::pieces_of(mask_of(row, head), op->src[1]->ne[1]);
    }

    row_task task(int64_t row, int64_t head, int64_t n) const {
        const ggml_tensor * q  = op->src[0];
        const ggml_tensor * k  = op->src[1];
        const ggml_tensor * v  = op->src[2];
        const int64_t       i1 = row % q->ne[1];
        const int64_t       i3 = row / q->ne[1];
        const int64_t       k2 = head / (n_head / k->ne[2]);
        const int64_t       k3 = i3 / (q->ne[3] / k->ne[3]);
        const int64_t       v2 = head / (n_head / v->ne[2]);
        const int64_t       v3 = i3 / (q->ne[3] / v->ne[3]);
        float               param[3]; // scale, the largest bias, soft cap
        memcpy(param, op->op_params, sizeof(param));
        row_task task;
        task.first        = head;
        task.n_head       = n;
        task.query        = (const char *) q->data + i1 * q->nb[1] + head * q->nb[2] + i3 * q->nb[3];
        task.query_stride = q->nb[2];
        task.n_embd_k     = k->ne[0];
        task.n_embd_v     = v->ne[0];
        task.keys         = (const char *) k->data + k2 * k->nb[2] + k3 * k->nb[3];
        task.values       = (const char *) v->data + v2 * v->nb[2] + v3 * v->nb[3];
        task.key_stride   = k->nb[1];
        task.value_stride = v->nb[1];
        task.mask         = mask_of(row, head);
        task.scale        = param[2] != 0.0f ? param[0] / param[2] : param[0];
        task.softcap      = param[2];
        task.max_bias     = param[1];
        task.n_head_all   = n_head;
        task.sinks        = op->src[4] ? (const float *) op->src[4]->data + head : nullptr;
        task.out = (float *) ((char *) op->data + (i3 * op->ne[2] * op->ne[1] + head + i1 * op->ne[1]) * op->nb[1]);
        return task;
    }
};

// Each thread takes heads, with all their keys. `own` is room for the sums of n_shared heads, twice.
void attend_heads(const attention & a, int ith, int nth, float * own) {
    const int64_t n_embd = a.op->src[2]->ne[0];
    const size_t  size   = partial::size(n_embd);
    float *       total  = own + a.n_shared * size;
    const int64_t n      = a.n_head * a.n_row;
    const int64_t end    = n * (ith + 1) / nth;
    int64_t       n_now  = 0;
    for (int64_t i = n * ith / nth; i < end; i += n_now) {
        const int64_t head = i % a.n_head;
        const pieces  keys = a.pieces_of(i / a.n_head, head);

        n_now               = std::min(end - i, a.n_shared - head % a.n_shared);
        const row_task task = a.task(i / a.n_head, head, n_now);
        for (int64_t h = 0; h < n_now; ++h) {
            partial{ total + h * size }.clear(n_embd);
        }
        for (int p = 0; p < keys.n; ++p) {
            attend_piece(task, keys.begin[p], keys.begin[p + 1], own);
            for (int64_t h = 0; h < n_now; ++h) {
                partial{ total + h * size }.add(n_embd, { own + h * size });
            }
        }
        for (int64_t h = 0; h < n_now; ++h) {
            finish(task, h, { total + h * size });
        }
    }
}

// Threads take pieces of the keys, where heads that share theirs are too few to go round.
void attend_pieces(const attention & a, const ggml_compute_params * params, float * own, float * shared) {
    const int64_t n_embd  = a.op->src[2]->ne[0];
    const size_t  size    = partial::size(n_embd);
    const int64_t n_group = a.n_head / a.n_shared;
    pieces        keys[MAX_PARTED_ROWS];
    int64_t       n = 0;
    for (int64_t row = 0; row < a.n_row; ++row) {
        keys[row] = a.pieces_of(row, 0);
        n += keys[row].n * n_group;
    }
    const int64_t begin = n * params->ith / params->nth;
    const int64_t end   = n * (params->ith + 1) / params->nth;
    int64_t       i     = 0; // pieces lie one after the other, by row and group
    for (int64_t row = 0; row < a.n_row; ++row) {
        for (int64_t group = 0; group < n_group; ++group) {
            const row_task task = a.task(row, group * a.n_shared, a.n_shared);
            for (int p = 0; p < keys[row].n; ++p, ++i) {
                if (i >= begin && i < end) {
                    attend_piece(task, keys[row].begin[p], keys[row].begin[p + 1], shared + i * a.n_shared * size);
                }
            }
        }
    }
    ggml_barrier(params->threadpool);
    const float * found = shared;
    for (int64_t row = 0; row < a.n_row; ++row) {
        for (int64_t group = 0; group < n_group; ++group) {
            const row_task task = a.task(row, group * a.n_shared, a.n_shared);
            for (int64_t h = 0; h < a.n_shared; ++h) {
                if ((row * a.n_head + group * a.n_shared + h) % params->nth != params->ith) {
                    continue;
                }
                const partial total = { own };
                total.clear(n_embd);
                for (int p = 0; p < keys[row].n; ++p) {
                    total.add(n_embd, { (float *) found + (p * a.n_shared + h) * size });
                }
                finish(task, h, total);
            }
            found += keys[row].n * a.n_shared * size;
        }
    }
}

} // namespace

} // namespace pyskip_cpu

using namespace pyskip_cpu;

bool pyskip_attention_rows(const ggml_compute_params * params, ggml_tensor * op) {
    if (!is_supported(op)) {
        return false;
    }
    const attention a(op);
    const size_t    size   = partial::size(op->src[2]->ne[0]);
    const size_t    n_own  = 2 * a.n_shared * size;
    const size_t    n_room = params->wsize / sizeof(float);
    if (n_room < params->nth * n_own) {
        return false;
    }
    float *       own       = (float *) params->wdata + params->ith * n_own;
    float *       shared    = (float *) params->wdata + params->nth * n_own;
    const int64_t n_group   = a.n_head / a.n_shared * a.n_row;
    const bool    is_even   = n_group % params->nth == 0 || n_group >= 4 * params->nth;
    const size_t  n_parts   = (size_t) a.n_head * a.n_row * MAX_PIECE;
    const bool    is_parted = !is_even && op->src[1]->ne[1] > N_KEYS && a.n_row <= MAX_PARTED_ROWS &&
                              (!op->src[3] || op->src[3]->ne[2] == 1) && n_room >= params->nth * n_own + n_parts * size;
    if (is_parted) {
        attend_pieces(a, params, own, shared);
    } else {
        attend_heads(a, params->ith, params->nth, own);
    }
    return true;
}

#else

bool pyskip_attention_rows(const ggml_compute_params *, ggml_tensor *) {
    return false;
}

#endif
