// A conditional block of the graph in use: its nodes, which of them are set to be computed, and in a batch the shapes that
// they are given. Made by attach.cpp; the operators (gate.cpp, join.cpp) are handed its address. Knows no rule.

#pragma once

#include "graph-pass.h"

#include <cstdint>
#include <vector>

struct ggml_tensor;
struct pyskip_stand_in;
struct pyskip_state;

// Weights in the order in which the graph reads them.
using pyskip_weights = std::vector<const ggml_tensor *>;

struct pyskip_slot {
    pyskip_block   block;
    pyskip_state * state    = nullptr;
    int32_t        k        = 0;    // its place among the slots
    int64_t        n_rows   = 0;    // rows of the join: all tokens of the batch, or only those with an output
    bool           is_armed = true; // whether the region's nodes are set to be computed

    // What is computed only if the block runs: the region, without its prelude if there is a gate.
    std::vector<ggml_tensor *> governed;

    // With a model larger than memory, set by stream-in.cpp:
    pyskip_weights region_weights; // read if the block runs
    pyskip_weights next_weights;   // read after the join, before the next region

    // With a profile that has a stand-in for the layer, set by gate.cpp:
    const pyskip_stand_in *    own        = nullptr;
    ggml_tensor *              gate       = nullptr;
    ggml_tensor *              y_stand_in = nullptr;      // its output
    std::vector<ggml_tensor *> stand_in;                  // its nodes
    bool                       is_standing    = true;     // whether they are set to be computed
    ggml_tensor *              packed         = nullptr;  // in a batch: the input, rows that run first
    ggml_tensor *              packed_skipped = nullptr;  // its rest
    std::vector<int64_t>       place;                     // of a row among the packed
    bool                       is_packed_at_once = false; // few rows: the gate packs them itself
    int64_t                    n_run             = 0;     // how many run

    // Set whether the region's nodes, and those of the stand-in, are computed.
    void arm(bool run, bool stand_in_runs);

    // Of the packed rows the first n_run_now go through the region, the next n_skip through the stand-in.
    void shape(int64_t n_run_now, int64_t n_skip);

    // Before each batch: the shapes that the graph was built with.
    void restore();
};
