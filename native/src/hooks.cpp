#include "hooks.h"

#include "access.h"
#include "attach.h"
#include "llama-graph.h"
#include "state.h"

void pyskip_hook_reuse(const pyskip_state * state, llm_graph_result * previous) {
    if (state && state->must_rebuild) {
        previous->reset(); // a graph of no parameters equals none
    }
}

void pyskip_hook_built(pyskip_state * state, ggml_cgraph * gf, const llama_ubatch & ubatch) {
    if (state) {
        state->must_rebuild = false;
        pyskip_attach(*state, gf, ubatch);
    }
}

void pyskip_hook_begin(pyskip_state * state, const llama_ubatch & ubatch) {
    if (state) {
        state->begin(ubatch);
    }
}

void pyskip_hook_end(pyskip_state * state, bool computed) {
    if (state) {
        state->end(computed);
    }
}

void pyskip_hook_seq_clear(const llama_memory_i * mem) {
    if (const auto state = pyskip_state_of(mem)) {
        state->sequences.clear();
    }
}

void pyskip_hook_seq_cp(const llama_memory_i * mem, int32_t seq_id_src, int32_t seq_id_dst) {
    if (const auto state = pyskip_state_of(mem)) {
        state->sequences.copy(seq_id_src, seq_id_dst);
    }
}

void pyskip_hook_seq_keep(const llama_memory_i * mem, int32_t seq_id) {
    if (const auto state = pyskip_state_of(mem)) {
        state->sequences.keep(seq_id);
    }
}

void pyskip_hook_seq_add(const llama_memory_i * mem, int32_t seq_id, int32_t p0, int32_t p1, int32_t delta) {
    if (const auto state = pyskip_state_of(mem)) {
        state->sequences.add(seq_id, p0, p1, delta);
    }
}

void pyskip_hook_seq_div(const llama_memory_i * mem, int32_t seq_id, int32_t p0, int32_t p1, int32_t d) {
    if (const auto state = pyskip_state_of(mem)) {
        state->sequences.div(seq_id, p0, p1, d);
    }
}
