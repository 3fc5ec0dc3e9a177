#include "gate.h"

#include "ggml.h"
#include "operator.h"
#include "profile.h"
#include "row.h"
#include "slot.h"
#include "stand-in.h"
#include "state.h"

#include <cstring>

namespace {

// So few rows are packed by the thread that gives them their places: the others would wait longer for one more operator.
constexpr int64_t FEW_ROWS = 16;

bool is_run(const pyskip_slot & slot, int32_t t) {
    return !slot.state->skips(slot.k, t);
}

bool has_stand_in(const pyskip_slot & slot, int32_t t) {
    return slot.own && !is_run(slot, t) && slot.state->tokens[t].rule->has_gates();
}

void pack_rows(const pyskip_slot & slot, const ggml_tensor * input, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        std::memcpy((char *) slot.packed->data + slot.place[row] * slot.packed->nb[1], pyskip_row(input, row),
                    input->ne[0] * sizeof(float));
    }
}

// The last thread, after all rows are decided: give each its place, and the region and the stand-in their rows.
void share_out(pyskip_slot & slot, int64_t n_run, int64_t n_stand_in) {
    slot.state->arm(slot, n_run > 0, n_stand_in > 0);
    slot.n_run = n_run;
    if (!slot.packed) {
        return;
    }
    int64_t next_run      = 0;
    int64_t next_stand_in = n_run;
    int64_t next_rest     = n_run + n_stand_in;
    for (int64_t row = 0; row < slot.n_rows; ++row) {
        const int32_t t = slot.state->token_of_row(slot, row);
        slot.place[row] = is_run(slot, t) ? next_run++ : has_stand_in(slot, t) ? next_stand_in++ : next_rest++;
    }
    slot.shape(n_run, n_stand_in);
    if (slot.is_packed_at_once) {
        pack_rows(slot, slot.gate->src[0], 0, slot.n_rows);
    }
}

void decide(pyskip_slot & slot, int32_t t, const float * x, const float * xn, int64_t n_embd) {
    pyskip_state &       state    = *slot.state;
    const pyskip_token & token    = state.tokens[t];
    const auto           sublayer = slot.block.sublayer;
    if (slot.own == nullptr || !token.rule->asks_gates() ||
        pyskip_rule_needs(*token.rule, token) != PYSKIP_NEED_GATES ||
        !pyskip_rule_covers(*token.rule, sublayer, slot.block.il)) {
        return;
    }
    const float score      = pyskip_gate_score(slot.own->gate, x, xn, n_embd);
    state.sim(slot.k, t)   = score;
    state.skips(slot.k, t) = pyskip_rule_gates(*token.rule, sublayer, slot.block.il, score, token);
}

void gate_compute(ggml_tensor * dst, int ith, int nth, void * userdata) {
    pyskip_slot &      slot = *(pyskip_slot *) userdata;
    const pyskip_share share(slot.n_rows, ith, nth);
    if (!share.is_any(ith)) {
        return;
    }
    int64_t counts = 0; // rows that run, and in the upper half those that the stand-in computes
    for (int64_t i = share.begin; i < share.end; ++i) {
        const int32_t t = slot.state->token_of_row(slot, i);
        decide(slot, t, pyskip_row(dst->src[1], i), pyskip_row(dst->src[0], i), dst->src[0]->ne[0]);
        counts += is_run(slot, t) ? 1 : has_stand_in(slot, t) ? (int64_t) 1 << 32 : 0;
    }
    if (slot.state->all_done(counts, share.n_thread)) {
        share_out(slot, counts & 0xffffffff, counts >> 32);
    }
}

void pack_compute(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const pyskip_slot & slot = *(const pyskip_slot *) userdata;
    const pyskip_share  share(slot.n_rows, ith, nth);
    pack_rows(slot, dst->src[0], share.begin, share.end);
}

void read_instead(const std::vector<ggml_tensor *> & nodes, const ggml_tensor * old, ggml_tensor * now) {
    for (ggml_tensor * node : nodes) {
        for (ggml_tensor *& src : node->src) {
            src = src == old ? now : src;
        }
    }
}

// The nodes from which `out` is computed, down to `input`.
void collect(ggml_tensor * out, const ggml_tensor * input, std::vector<ggml_tensor *> & nodes) {
    if (out == nullptr || out == input || out->op == GGML_OP_NONE) {
        return;
    }
    collect(out->src[0], input, nodes);
    collect(out->src[1], input, nodes);
    nodes.push_back(out);
}

} // namespace

std::vector<ggml_tensor *> pyskip_gate_build(ggml_context * ctx, pyskip_slot & slot) {
    ggml_tensor * xn = slot.block.input;
    ggml_tensor * x  = slot.block.x;

    slot.gate = pyskip_operator(ctx, 1, 1, { xn, x }, gate_compute, &slot);
    ggml_format_name(slot.gate, slot.block.sublayer == PYSKIP_SUBLAYER_FFN ? "pyskip_gate-%d" : "pyskip_attn_gate-%d",
                     slot.block.il);
    std::vector<ggml_tensor *> made  = { slot.gate };
    ggml_tensor *              input = xn;
    if (slot.n_rows > 1 && slot.block.is_rowwise) {
        slot.packed = pyskip_operator(ctx, xn->ne[0], slot.n_rows, { xn, slot.gate }, pack_compute, &slot);
        ggml_format_name(slot.packed, "pyskip_packed-%d", slot.block.il);
        slot.packed_skipped = ggml_view_2d(ctx, slot.packed, xn->ne[0], slot.n_rows, slot.packed->nb[1], 0);
        slot.place.assign(slot.n_rows, 0);
        slot.is_packed_at_once = slot.n_rows <= FEW_ROWS;
        read_instead(slot.governed, xn, slot.packed);
        made.push_back(slot.packed);
        input = slot.packed_skipped;
    }
    slot.y_stand_in = slot.own ? pyskip_stand_in_build(ctx, *slot.own, input) : nullptr;
    if (slot.y_stand_in) {
        ggml_format_name(slot.y_stand_in, "pyskip_stand_in-%d", slot.block.il);
        collect(slot.y_stand_in, input, slot.stand_in);
        made.push_back(slot.y_stand_in);
    } else if (slot.packed_skipped) {
        made.push_back(slot.packed_skipped);
    }
    return made;
}
