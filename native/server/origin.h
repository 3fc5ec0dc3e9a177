// How the tokens in a slot's cache were decided. What another policy would have computed otherwise is not used again.

#pragma once

#include <cstddef>
#include <string>

struct pyskip_origin {
    size_t      n_prompt = 0; // the first tokens, which were decided as `prompt` says, the others as `generated` says
    std::string prompt;       // empty: dense
    std::string generated;    // empty: dense

    bool is_dense() const { return prompt.empty() && generated.empty(); }

    // How many of the first n tokens a prompt that is decided so would compute to the same.
    size_t n_alike(size_t n, const std::string & rule) const {
        if (prompt != rule) {
            return 0;
        }
        return generated == rule || n < n_prompt ? n : n_prompt;
    }

    // Tokens from n_keep on were dropped, n_discard of them.
    void shift(size_t n_keep, size_t n_discard) {
        if (n_prompt > n_keep) {
            n_prompt = n_prompt > n_keep + n_discard ? n_prompt - n_discard : n_keep;
        }
    }
};
