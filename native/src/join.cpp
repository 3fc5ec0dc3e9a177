#include "join.h"

#include "ggml-impl.h"
#include "ggml.h"
#include "operator.h"
#include "profile.h"
#include "row.h"
#include "slot.h"
#include "state.h"

#include <cstring>
#include <vector>

// From x to z of a row, where x is the whole stream without the block.
static pyskip_step row_step(const pyskip_slot & slot, int64_t row, const float * x, const float * y, int64_t n_embd) {
    if (slot.block.rest.empty()) {
        return pyskip_compare(x, y, n_embd);
    }
    thread_local std::vector<float> whole;
    whole.assign(x, x + n_embd);
    for (const ggml_tensor * part : slot.block.rest) {
        const float * p = pyskip_row(part, row);
        for (int64_t i = 0; i < n_embd; ++i) {
            whole[i] += p[i];
        }
    }
    return pyskip_compare(whole.data(), y, n_embd);
}

// x, such that the whole stream becomes `scale` times what it is.
static void pass_scaled(const pyskip_slot & slot, int64_t row, float scale, const float * x, float * z,
                        int64_t n_embd) {
    for (int64_t i = 0; i < n_embd; ++i) {
        z[i] = scale * x[i];
    }
    for (const ggml_tensor * part : slot.block.rest) {
        const float * p = pyskip_row(part, row);
        for (int64_t i = 0; i < n_embd; ++i) {
            z[i] += (scale - 1.0f) * p[i];
        }
    }
}

// z of a row that skipped: x, or x and the stand-in with its bias. y was not computed: not even a NaN of it may be touched.
static void pass_on(const pyskip_slot & slot, int64_t row, const pyskip_token & token, const float * x, float * z,
                    int64_t n_embd) {
    if (slot.own == nullptr || !token.rule->has_gates()) {
        const float scale = token.choice ? token.choice->scale[pyskip_place(slot.block.sublayer, slot.block.il)] : 1.0f;
        if (scale != 1.0f) {
            pass_scaled(slot, row, scale, x, z, n_embd);
        } else if (z != x) {
            std::memcpy(z, x, n_embd * sizeof(float));
        }
        return;
    }
    const float * bias = slot.own->bias;
    if (slot.y_stand_in == nullptr) {
        for (int64_t i = 0; i < n_embd; ++i) {
            z[i] = x[i] + bias[i];
        }
        return;
    }
    const int64_t place = slot.packed ? slot.place[row] - slot.n_run : row;
    const float * y     = pyskip_row(slot.y_stand_in, place);
    for (int64_t i = 0; i < n_embd; ++i) {
        z[i] = x[i] + (y[i] + bias[i]);
    }
}

// One row. Returns whether its token runs the next block.
static bool join_row(pyskip_slot & slot, ggml_tensor * dst, int64_t row) {
    pyskip_state & state  = *slot.state;
    const int64_t  n_embd = dst->ne[0];
    const int32_t  t      = state.token_of_row(slot, row);
    pyskip_token & token  = state.tokens[t];
    const bool     skip   = state.skips(slot.k, t);

    const float * x = pyskip_row(dst->src[0], row);
    float *       z = (float *) ((char *) dst->data + row * dst->nb[1]);

    bool  tested = false;
    float sim    = 0.0f;
    if (skip) {
        pass_on(slot, row, token, x, z, n_embd);
    } else {
        const int64_t place = slot.packed ? slot.place[row] : row;
        const float * y     = pyskip_row(dst->src[1], place);
        tested              = pyskip_rule_tests(*token.rule, slot.block.sublayer, slot.block.il, token);
        if (tested) {
            // before z is written: it may lie over x or y
            const pyskip_step step = row_step(slot, row, x, y, n_embd);
            sim                    = step.cosine;
            state.sim(slot.k, t)   = step.cosine;
            state.scale(slot.k, t) = step.scale;
        }
        for (int64_t i = 0; i < n_embd; ++i) {
            z[i] = x[i] + y[i];
        }
    }
    const int32_t next = slot.k + 1;
    if (next == (int32_t) state.slots.size()) {
        return false;
    }
    if (slot.block.sublayer == PYSKIP_SUBLAYER_FFN) {
        pyskip_rule_advance(*token.rule, slot.block.il, skip, tested, sim, token);
    }
    const bool skip_next = state.skips_unasked(next, t);
    state.skips(next, t) = skip_next;
    return !skip_next && state.has_token(state.slots[next], t);
}

static void join_compute(ggml_tensor * dst, int ith, int nth, void * userdata) {
    pyskip_slot &      slot  = *(pyskip_slot *) userdata;
    pyskip_state &     state = *slot.state;
    const pyskip_share share(slot.n_rows, ith, nth);
    if (!share.is_any(ith)) {
        return;
    }
    int64_t n_run = 0;
    for (int64_t i = share.begin; i < share.end; ++i) {
        n_run += join_row(slot, dst, i);
    }
    const size_t next = (size_t) slot.k + 1;
    if (next < state.slots.size() && !state.slots[next].gate && state.all_done(n_run, share.n_thread)) {
        state.arm(state.slots[next], n_run > 0, false);
    }
}

void pyskip_join_install(pyskip_slot & slot) {
    ggml_tensor * join = slot.block.join;

    const ggml_custom_op_params params = { join_compute, GGML_N_TASKS_MAX, &slot };
    std::memset(join->op_params, 0, sizeof(join->op_params));
    std::memcpy(join->op_params, &params, sizeof(params));

    join->op     = GGML_OP_CUSTOM;
    join->src[0] = slot.block.x;
    join->src[1] = slot.block.y;
    join->src[2] = slot.y_stand_in;
    for (size_t i = 0; i < slot.block.rest.size(); ++i) {
        join->src[3 + i] = slot.block.rest[i]; // keeps their memory until the join has read it
    }
}
