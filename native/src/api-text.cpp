// The C API of pyskip.h: what llama.cpp does with text, where it may abort, throw or recurse.

#include "api.h"
#include "crash.h"
#include "deep-stack.h"
#include "json-schema.h"
#include "llama.h"

#include <cstdio>
#include <string>

static constexpr int32_t PYSKIP_SHORT_TEXT     = 2048; // bytes that every thread's stack is enough for
static constexpr size_t  PYSKIP_STACK_PER_BYTE = 1024; // std::regex takes less than 350 a character, unoptimised more

pyskip_status pyskip_tokenize(const llama_vocab * vocab, const char * text, int32_t n_text, int32_t * tokens,
                              int32_t n_tokens, bool add_special, bool parse_special, int32_t * n_out, char * error,
                              size_t n_error) {
    return pyskip_guard(error, n_error, [&] {
        const auto run = [&] {
            const pyskip_aborts_caught caught;
            *n_out = llama_tokenize(vocab, text, n_text, tokens, n_tokens, add_special, parse_special);
        };
        if (n_text <= PYSKIP_SHORT_TEXT) {
            pyskip_crash_stack();
            run();
            return PYSKIP_STATUS_OK;
        }
        // std::regex, which some vocabularies' rules fall back to, recurses once a character of what it matches
        if (!pyskip_on_deep_stack((size_t) n_text * PYSKIP_STACK_PER_BYTE, run)) {
            return pyskip_report(PYSKIP_STATUS_NO_MEMORY,
                                 "no memory for a stack to split a text of " + std::to_string(n_text) +
                                     " bytes on: split it into smaller texts",
                                 error, n_error);
        }
        return PYSKIP_STATUS_OK;
    });
}

pyskip_status pyskip_token_to_piece(const llama_vocab * vocab, int32_t token, char * piece, int32_t n_piece,
                                    bool special, int32_t * n_out, char * error, size_t n_error) {
    return pyskip_guard(error, n_error, [&] {
        const pyskip_aborts_caught caught;
        *n_out = llama_token_to_piece(vocab, token, piece, n_piece, /*lstrip =*/0, special);
        return PYSKIP_STATUS_OK;
    });
}

pyskip_status pyskip_sampler_init_dry(const llama_vocab * vocab, float multiplier, float base, int32_t allowed_length,
                                      int32_t penalty_last_n, const char ** breakers, size_t n_breakers,
                                      llama_sampler ** sampler, char * error, size_t n_error) {
    return pyskip_guard(error, n_error, [&] {
        const pyskip_aborts_caught caught;
        *sampler =
            llama_sampler_init_dry(vocab, multiplier, base, allowed_length, penalty_last_n, breakers, n_breakers);
        return PYSKIP_STATUS_OK;
    });
}

pyskip_status pyskip_json_schema_grammar(const char * schema, char * grammar, size_t n_grammar, size_t * n_needed,
                                         char * error, size_t n_error) {
    return pyskip_guard(error, n_error, [&] {
        std::string text;
        if (!pyskip_schema_to_gbnf(schema, text)) {
            return pyskip_report(PYSKIP_STATUS_INVALID, text, error, n_error);
        }
        *n_needed = text.size() + 1;
        std::snprintf(grammar, n_grammar, "%s", text.c_str());
        return PYSKIP_STATUS_OK;
    });
}
