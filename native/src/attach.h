// Makes a graph that llama.cpp has built conditional: finds its blocks, puts a gate before each and a join after it, or
// what a calibration gathers. Stands above every operator. Called by hooks.cpp; a graph for a
// batch in which no token may skip stays upstream's own.

#pragma once

struct ggml_cgraph;
struct llama_ubatch;
struct pyskip_state;

// A graph was built for a batch of this shape: make of it what the batch wants, fill state.slots.
void pyskip_attach(pyskip_state & state, ggml_cgraph * gf, const llama_ubatch & ubatch);
