// The pass over a built decode graph: finds, for each layer, the residual ADDs that join its attention and its FFN to the
// stream, and the nodes that only these need. It reads the graph, whichever model file built it, and changes nothing.
//
// Called by state.cpp when llama.cpp has built a graph under a policy, and to tell which layers of a model can be
// skipped. Without a policy nobody calls it.

#pragma once

#include "pyskip.h"

#include <cstdint>
#include <vector>

struct ggml_cgraph;
struct ggml_tensor;

// One conditional FFN or attention. z = x + y, where y is its contribution and x all the rest of the stream.
struct pyskip_block {
    int32_t         il       = -1;
    pyskip_sublayer sublayer = PYSKIP_SUBLAYER_FFN;

    ggml_tensor * join = nullptr; // the ADD
    ggml_tensor * x    = nullptr; // its operand that is there without the block
    ggml_tensor * y    = nullptr; // its operand that is the block

    // Where attention and FFN run in parallel the stream is completed by further ADDs after the join: their operands.
    std::vector<ggml_tensor *> rest;

    // Every node that is computed for y alone, in graph order; y is among them. Passing over all of them leaves the
    // rest of the graph as it is: of attention Q, the scores, the mix and what follows; K and V are needed by the cache, too.
    std::vector<ggml_tensor *> region;

    // What the block's first matrix reads: the stream, normed, one row per row of the join. A gate predicts from it and
    // a stand-in computes from it. nullptr if there is no such tensor, as in a last layer that drops rows behind it.
    ggml_tensor * input = nullptr;

    // The nodes of the region that compute the input, itself included; empty if it is shared: by an FFN with the attention,
    // by attention with K and V.
    std::vector<ggml_tensor *> prelude;

    // Whether every other node of the region maps each row by itself, so that some rows may be left out. Not of attention.
    bool is_rowwise = false;

    // Whether every weight of the region lies where the CPU back end computes.
    bool on_cpu = true;
};

// The layer of the weight that an FFN ends in, else -1: "blk.N.ffn_down*", T5's "dec.blk.N.ffn_down*" or RWKV's
// "blk.N.channel_mix_value*". Exact: "blk.N.attn_output.weight" is not one.
int32_t pyskip_ffn_down_layer(const char * name);

// The layer of the weight that attention ends in, else -1: "blk.N.attn_output*", or "dec.blk.N.attn_o*" of T5, whose attention
// to the encoder's output is not meant. Neither are norms ("blk.N.attn_output_norm").
int32_t pyskip_attn_output_layer(const char * name);

// The blocks of `gf` in graph order: no node of a block lies before the join of another that precedes it. What cannot be told
// from the rest of the graph is left out, and so is attention beside an FFN, both added to the stream at once.
std::vector<pyskip_block> pyskip_graph_find(const ggml_cgraph * gf);

// Put `group`, nodes of the graph, right before `join`, in this order. ggml_build_forward_expand() has appended the new
// ones among them.
void pyskip_graph_place(ggml_cgraph * gf, const ggml_tensor * join, const std::vector<ggml_tensor *> & group);
