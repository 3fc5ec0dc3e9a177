#include "attach.h"

#include "gate.h"
#include "gather.h"
#include "ggml-impl.h"
#include "ggml.h"
#include "graph-pass.h"
#include "join.h"
#include "llama-batch.h"
#include "profile.h"
#include "state.h"
#include "stream-in.h"

#include <algorithm>

// Tensors and leafs that a slot adds to a graph, at most: gate, packed rows, a view of them, three of a stand-in, and its
// three weights; a gather as many.
static constexpr size_t MAX_EXTRA = 12;

// Whether the rows of the join are the batch's tokens, or those of them that have an output.
static bool rows_are_tokens(const pyskip_block & block, const llama_ubatch & ubatch) {
    const int64_t n_rows    = ggml_nrows(block.join);
    const int64_t n_outputs = ubatch.output ? std::count_if(ubatch.output, ubatch.output + ubatch.n_tokens,
                                                            [](int8_t output) { return output != 0; })
                                            : 0;
    return n_rows == (int64_t) ubatch.n_tokens || n_rows == n_outputs;
}

// Room in the graph for what a slot adds to it. llama.cpp sizes graphs for 8 nodes a tensor and uses about 3.
static bool has_room(const ggml_cgraph * gf) {
    return gf->n_nodes + gf->n_leafs + (int) MAX_EXTRA <= gf->size;
}

// The block's gate and stand-in, if this graph has gates and the profile one for it.
static const pyskip_stand_in * find_stand_in(const pyskip_state & state, const pyskip_block & block) {
    return state.graph == PYSKIP_GRAPH_GATES && state.profile ? state.profile->find(block.sublayer, block.il) : nullptr;
}

// Whether anybody asks for the block.
static bool is_wanted(const pyskip_state & state, const pyskip_block & block) {
    if (state.graph == PYSKIP_GRAPH_GATHER) {
        return block.sublayer == state.gather->sublayer;
    }
    return block.sublayer == PYSKIP_SUBLAYER_FFN || state.has_attention;
}

// Whether rows of the block may differ, decided by joins, and each side's can be computed alone.
static bool has_rows_to_pack(const pyskip_slot & slot) {
    return slot.block.sublayer == PYSKIP_SUBLAYER_FFN && slot.block.is_rowwise && slot.n_rows > 1;
}

// Of a model that lies on other back ends, too: whether the probe left the block out. The one that hands the stream over is
// not told from what carries it.
static bool is_left_out(const pyskip_state & state, const pyskip_block & block) {
    const bool is_ffn = block.sublayer == PYSKIP_SUBLAYER_FFN;
    return state.is_shared && !(is_ffn ? state.skippable : state.skippable_attention)[block.il];
}

static void attach_slot(pyskip_state & state, ggml_cgraph * gf, pyskip_slot & slot) {
    const bool              has_input = slot.block.input && slot.n_rows > 0 && has_room(gf);
    const pyskip_stand_in * own       = find_stand_in(state, slot.block);

    std::vector<ggml_tensor *> group;
    const auto                 expand = [&](const std::vector<ggml_tensor *> & made) {
        const int n_old = gf->n_nodes;
        for (ggml_tensor * t : made) {
            ggml_build_forward_expand(gf, t);
        }
        group.insert(group.end(), gf->nodes + n_old, gf->nodes + gf->n_nodes);
    };
    if (state.graph == PYSKIP_GRAPH_DENSE) {
        return;
    }
    if (state.graph == PYSKIP_GRAPH_GATHER) {
        if (has_input) {
            expand(pyskip_gather_build(state.extra.get(), *state.gather, slot));
            pyskip_graph_place(gf, slot.block.join, group);
        }
    } else if (has_input && (own || has_rows_to_pack(slot))) {
        slot.own = own;
        for (ggml_tensor * node : slot.block.prelude) {
            slot.governed.erase(std::find(slot.governed.begin(), slot.governed.end(), node));
        }
        expand(pyskip_gate_build(state.extra.get(), slot));
        group.insert(group.end(), slot.governed.begin(), slot.governed.end());
        pyskip_graph_place(gf, slot.block.join, group);
    }
    pyskip_join_install(slot);
}

void pyskip_attach(pyskip_state & state, ggml_cgraph * gf, const llama_ubatch & ubatch) {
    state.slots.clear();
    state.extra.reset();
    state.must_rebuild  = false;
    state.graph         = state.wanted;
    state.has_attention = state.wants_attention;
    if (state.graph == PYSKIP_GRAPH_OFF) {
        if (!state.first_weights.empty()) {
            state.first_weights.clear();
            pyskip_stream_end(gf);
        }
        return;
    }
    std::vector<pyskip_block> blocks = pyskip_graph_find(gf);
    if (state.graph != PYSKIP_GRAPH_DENSE) {
        const ggml_init_params params = { blocks.size() * MAX_EXTRA * ggml_tensor_overhead(), nullptr,
                                          /*.no_alloc =*/true };
        state.extra.reset(ggml_init(params));
    }
    state.slots.reserve(blocks.size()); // the operators point into it
    for (pyskip_block & block : blocks) {
        if (block.il >= state.n_layer || !rows_are_tokens(block, ubatch)) {
            continue; // a layer past the model's own (multi-token prediction), or a stream of another shape: dense
        }
        if (!is_wanted(state, block)) {
            continue;
        }
        if (!block.on_cpu || is_left_out(state, block)) {
            continue; // another machine's, or the last one before it
        }
        pyskip_slot & slot = state.slots.emplace_back();
        slot.k             = (int32_t) state.slots.size() - 1;
        slot.n_rows        = ggml_nrows(block.join);
        slot.state         = &state;
        slot.governed      = block.region;
        slot.block         = std::move(block);
        attach_slot(state, gf, slot);
    }
    if (state.is_streaming) {
        pyskip_stream_plan(gf, state.slots, state.first_weights);
    }
}
