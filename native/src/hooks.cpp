#include "hooks.h"

#include "access.h"
#include "attach.h"
#include "deep-stack.h"
#include "llama-batch.h"
#include "llama-graph.h"
#include "llama.h"
#include "pyskip.h"
#include "state.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <stdexcept>
#include <string>

void pyskip_hook_reuse(pyskip_state * state, const llama_ubatch & ubatch, llm_graph_result * previous) {
    if (state && !state->plan(ubatch)) {
        previous->reset(); // a graph of no parameters equals none
    }
}

void pyskip_hook_built(pyskip_state * state, ggml_cgraph * gf, const llama_ubatch & ubatch) {
    if (state) {
        pyskip_attach(*state, gf, ubatch);
    }
}

void pyskip_hook_begin(pyskip_state * state, const llama_ubatch & ubatch) {
    if (state) {
        state->begin(ubatch);
    }
}

void pyskip_hook_end(pyskip_state * state, const llama_ubatch & ubatch, bool computed) {
    if (state) {
        state->end(ubatch, computed);
    }
}

// The splitter knows no context, and a member of it would recompile every model. Set and cleared with each batch.
static thread_local const pyskip_state * splitting = nullptr;

void pyskip_hook_split(const pyskip_state * state) {
    splitting = state;
}

bool pyskip_hook_cut(const llama_batch & batch, const std::vector<int32_t> & taken, int32_t next) {
    const pyskip_state * state = splitting;
    if (!state || !batch.pos || !batch.seq_id || state->gather) {
        return false;
    }
    const int32_t seq_id = batch.seq_id[next][0];
    const int32_t begin  = state->sequences.span(seq_id, batch.pos[next]);
    return begin >= 0 && std::any_of(taken.begin(), taken.end(),
                                     [&](int32_t i) { return batch.seq_id[i][0] == seq_id && batch.pos[i] < begin; });
}

void pyskip_hook_seq_clear(const llama_memory_i * mem) {
    if (const auto state = pyskip_state_of(mem)) {
        state->sequences.clear();
    }
}

void pyskip_hook_seq_rm(const llama_memory_i * mem, int32_t seq_id, int32_t p0, int32_t p1) {
    if (const auto state = pyskip_state_of(mem)) {
        state->sequences.remove(seq_id, p0, p1);
    }
}

void pyskip_hook_seq_cp(const llama_memory_i * mem, int32_t seq_id_src, int32_t seq_id_dst, int32_t p0, int32_t p1) {
    if (const auto state = pyskip_state_of(mem)) {
        state->sequences.copy(seq_id_src, seq_id_dst, p0, p1);
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

static std::atomic<int32_t> grammar_limit{ 0 };

void pyskip_grammar_limit(int32_t n) {
    grammar_limit = n;
}

void pyskip_hook_grammar(size_t n) {
    const int32_t most = grammar_limit;
    if (most > 0 && n > (size_t) most) {
        throw std::runtime_error("the grammar can go on in more than " + std::to_string(most) +
                                 " ways at a time: shorten its lists of alternatives and its counts");
    }
}

static constexpr int32_t SHORT_TEXT     = 2048;  // bytes that every thread's stack is enough for
static constexpr int32_t MEDIUM_TEXT    = 65536; // bytes that take no time and little memory
static constexpr size_t  STACK_PER_BYTE = 1024;  // std::regex takes less than 350 a character, unoptimised more

static thread_local const std::function<bool()> * has_gone = nullptr;

void pyskip_hook_ask_gone(const std::function<bool()> * ask) {
    has_gone = ask;
}

bool pyskip_hook_is_long(int32_t n_text) {
    return n_text > SHORT_TEXT && !pyskip_is_on_deep_stack();
}

int32_t pyskip_hook_tokenize(const llama_vocab * vocab, const char * text, int32_t n_text, int32_t * tokens,
                             int32_t n_tokens, bool add_special, bool parse_special) {
    static std::mutex medium; // what it takes of memory is hundreds of times the text
    static std::mutex large;  // and those who send no more than others do not wait for those who do

    const std::lock_guard<std::mutex> lock(n_text > MEDIUM_TEXT ? large : medium);
    if (has_gone && *has_gone && (*has_gone)()) {
        throw std::runtime_error("nobody waits for the tokens of this text any more");
    }

    int32_t n = 0;
    if (!pyskip_on_deep_stack((size_t) n_text * STACK_PER_BYTE, [&] {
            n = llama_tokenize(vocab, text, n_text, tokens, n_tokens, add_special, parse_special);
        })) {
        throw std::runtime_error("no memory for a stack to split a text of " + std::to_string(n_text) +
                                 " bytes on: split it into smaller texts");
    }
    return n;
}
