// Weights that lie in a mapped file larger than memory: which pages are read, and when. Planned by attach.cpp, asked for by
// state.cpp, for contexts that pyskip_set_streaming() made so; the others leave the mapping as llama.cpp made it.

#pragma once

#include "slot.h"

#include <vector>

struct ggml_cgraph;

// What each part of the graph reads: slot.region_weights by the slot's region, slot.next_weights by what lies between its
// join and the next region, `first` by what lies before the first join. Embeddings and experts, of which a token reads a
// part, are left out. Tells the kernel to read nothing around a page that is missing: it may be a block that is skipped.
void pyskip_stream_plan(const ggml_cgraph * gf, std::vector<pyskip_slot> & slots, pyskip_weights & first);

// The graph's weights as llama.cpp has them: read ahead, as the kernel does by itself.
void pyskip_stream_end(const ggml_cgraph * gf);

// Start reading what is not in memory.
void pyskip_stream_in(const pyskip_weights & weights);
