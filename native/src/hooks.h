// The call sites in llama.cpp: everything that the patches add to it calls one of these. Each returns at once for a
// context without a state (nobody ever set a policy there).

#pragma once

#include "pyskip.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

struct ggml_cgraph;
struct llama_batch;
struct llama_memory_i;
struct llama_ubatch;
struct llama_vocab;
struct pyskip_state;
class llm_graph_result;

// llama_context::process_ubatch, in order:
// a batch comes: may the graph of the last one be used again?
void pyskip_hook_reuse(pyskip_state * state, const llama_ubatch & ubatch, llm_graph_result * previous);
// a graph was built for this batch and is not allocated yet
void pyskip_hook_built(pyskip_state * state, ggml_cgraph * gf, const llama_ubatch & ubatch);
// its inputs are set and it is about to be computed
void pyskip_hook_begin(pyskip_state * state, const llama_ubatch & ubatch);
// it was computed, or failed
void pyskip_hook_end(pyskip_state * state, const llama_ubatch & ubatch, bool computed);

// llama_batch_allocr: the batch that this thread is about to split is a decoder's, with or without a state, or nobody's
void pyskip_hook_split(const pyskip_state * state);
// must token `next` of it not be computed together with `taken`, since of one sequence they lie in two spans of a held rate?
bool pyskip_hook_cut(const llama_batch & batch, const std::vector<int32_t> & taken, int32_t next);

// llama_memory_*: positions of sequences change
void pyskip_hook_seq_clear(const llama_memory_i * mem);
void pyskip_hook_seq_rm(const llama_memory_i * mem, int32_t seq_id, int32_t p0, int32_t p1);
void pyskip_hook_seq_cp(const llama_memory_i * mem, int32_t seq_id_src, int32_t seq_id_dst, int32_t p0, int32_t p1);
void pyskip_hook_seq_keep(const llama_memory_i * mem, int32_t seq_id);
void pyskip_hook_seq_add(const llama_memory_i * mem, int32_t seq_id, int32_t p0, int32_t p1, int32_t delta);
void pyskip_hook_seq_div(const llama_memory_i * mem, int32_t seq_id, int32_t p0, int32_t p1, int32_t d);

// llama_grammar_advance_stack: a grammar can go on in n ways. Throws if that is more than pyskip_grammar_limit() allows
void pyskip_hook_grammar(size_t n);

// llama_tokenize: a text that this thread's stack may not be deep enough for
bool            pyskip_hook_is_long(int32_t n_text);
// (which this thread may have waited to begin with for somebody who has gone: asked before it is split)
PYSKIP_API void pyskip_hook_ask_gone(const std::function<bool()> * has_gone);
// is split in another thread, one at a time of a kind of length. Throws if there is no memory for its stack
int32_t         pyskip_hook_tokenize(const llama_vocab * vocab, const char * text, int32_t n_text, int32_t * tokens,
                                     int32_t n_tokens, bool add_special, bool parse_special);
