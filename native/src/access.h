// Where a context's state is found: in the member that the patches add to llama_context and, for the hooks in
// llama_memory_*, which know no context, in a registry by memory. The only code that needs llama_context's inside.

#pragma once

#include <cstdint>
#include <memory>
#include <string>

struct llama_context;
struct llama_memory_i;
struct pyskip_state;

// The context's state, null if it has none yet.
const pyskip_state * pyskip_state_get(const llama_context * ctx);
pyskip_state *       pyskip_state_get(llama_context * ctx);

// The context's state, made if it has none. Throws std::bad_alloc.
pyskip_state & pyskip_state_make(llama_context * ctx);

// The state of the context that owns this memory, null if it has none.
std::shared_ptr<pyskip_state> pyskip_state_of(const llama_memory_i * mem);

int32_t pyskip_context_n_layer(const llama_context * ctx);
int32_t pyskip_context_n_embd(const llama_context * ctx);

// Whether the context generates text, token by token: no encoder and no diffusion model. Else false with the reason.
bool pyskip_context_generates(llama_context * ctx, std::string & error);

// Build the context's decode graph once, the first time, and fill state.skippable and skippable_attention from it. False with
// a line in `error` if nothing of it can be skipped.
bool pyskip_context_probe(llama_context * ctx, pyskip_state & state, std::string & error);
