// What was measured of one sequence, and the sublayers that are skipped because of it: for policies that look at a prompt
// before they decide (AdaSkip, and the choice by the prompt's gates). Pure: no ggml or llama.cpp types. Kept by sequences.cpp,
// filled behind every batch and asked before it by state.cpp. Other rules never reach this file.
//
// A choice is made of what was decoded before the tokens that it is for, by position: the prompt before the first generated
// token, or the first generated tokens too. Batches are cut between (hooks.cpp), so that they see what single steps see.

#pragma once

#include "pyskip.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

// Of one sublayer and one token; NaN if it was skipped or not looked at.
struct pyskip_measure {
    float value; // cos(x, z), or the score of a gate
    float scale; // |z| / |x|, or NaN
};

// A sublayer's place in vectors that have one entry for each.
inline size_t pyskip_place(pyskip_sublayer sublayer, int32_t il) {
    return 2 * (size_t) il + (sublayer == PYSKIP_SUBLAYER_FFN ? 1 : 0); // as the graph has them
}

// By place.
struct pyskip_choice {
    std::vector<uint8_t> skipped;
    std::vector<float>   scale; // z = scale * x stands in for a skipped sublayer; 1 if nothing does
};

using pyskip_choice_ptr = std::shared_ptr<const pyskip_choice>;

class pyskip_census {
public:
    // `measures` by place; of a sequence always as many.
    void append(int32_t pos, bool is_prompt, const std::vector<pyskip_measure> & measures);

    // The n sublayers of the highest mean value over the prompt, which are the tokens before `from`. `late`: and the FFNs
    // whose mean over the generated tokens since reaches the n-th of those. nullptr if nothing was measured.
    pyskip_choice_ptr most_similar(int32_t n, int32_t from, bool late) const;

    // The n FFNs of the lowest mean value over the prompt.
    pyskip_choice_ptr least_scored(int32_t n, int32_t from) const;

    // Another mark was set: what was measured of generated tokens is no longer of these.
    void forget_generated();

    // What happens to positions [p0, p1); p1 < 0 means to the end.
    void remove(int32_t p0, int32_t p1);
    void shift(int32_t p0, int32_t p1, int32_t delta);
    void divide(int32_t p0, int32_t p1, int32_t d);

    // The tokens at positions [p0, p1) alone.
    pyskip_census part(int32_t p0, int32_t p1) const;

    size_t size() const { return entries.size(); }

private:
    struct entry {
        int32_t pos;
        bool    is_prompt;
    };

    struct mean {
        double  value    = 0.0;
        double  scale    = 0.0;
        int64_t n_tokens = 0;
    };

    // By place, over the tokens of a phase, of the prompt those before `from`.
    std::vector<mean> means(bool is_prompt, int32_t from) const;

    template <typename F> void keep_if(F is_kept);

    std::vector<entry>          entries;
    std::vector<pyskip_measure> all; // [entries][n_place]
    size_t                      n_place = 0;

    // What was chosen last, and for what: asked once a token.
    struct memo {
        pyskip_choice_ptr choice;
        int32_t           n    = 0;
        int32_t           from = -1; // -1: not made
    };

    mutable memo early;
    mutable memo late;
};
