// What a skipped block computes instead: a small FFN from the profile, as nodes of llama.cpp's own operators. Called by
// gate.cpp and gather.cpp while a graph is made.

#pragma once

struct ggml_context;
struct ggml_tensor;
struct pyskip_stand_in;

// ŷ of the rows of `input`, without the bias, which the join adds; nullptr if the stand-in is its bias alone.
ggml_tensor * pyskip_stand_in_build(ggml_context * ctx, const pyskip_stand_in & own, ggml_tensor * input);

// Of a gated stand-in: what its `down` reads.
ggml_tensor * pyskip_stand_in_hidden(ggml_context * ctx, const pyskip_stand_in & own, ggml_tensor * input);
