// Skip specifications: the strings that stand for policies, as pyskip/policy has them. No ggml or llama.cpp types. Called for
// each request that has `skip`, in the thread that reads it.

#pragma once

#include "pyskip.h"

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

// One line: what was found, what was expected, what to do.
struct pyskip_bad_spec : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A number that may be missing.
struct pyskip_maybe {
    bool   is_set = false;
    double value  = 0.0;
};

struct pyskip_spec {
    pyskip_policy_type type = PYSKIP_POLICY_OFF;

    // cosine
    double  threshold  = 0.98;
    int32_t run        = 1;
    int32_t cold_start = 4;
    int32_t cold_end   = 4;

    std::vector<int32_t> layers; // static
    std::vector<int32_t> attention;
    int32_t              n = 0;                   // in their place, so many that the profile names
    std::string          by;                      // which was chosen by that
    bool                 is_stand_in_set = false; // whether stand_in, below, is the caller's word

    int32_t n_sublayers = 8; // adaskip

    // profile, random, prompt
    pyskip_maybe rate;
    pyskip_maybe error;
    pyskip_maybe prompt;
    pyskip_maybe attn;   // the share of attention sublayers; not prompt
    pyskip_maybe warmup; // cosine, too
    bool         hold     = true;
    bool         prefill  = false;
    bool         stand_in = false;
    uint32_t     seed     = 0;

    bool needs_profile() const;

    // Static: whether the profile's stand-ins serve. Without a word those that the profile names have them.
    bool has_stand_ins() const { return is_stand_in_set ? stand_in : n > 0; }

    // The same at another rate, of which what moves it is told: nothing else holds it.
    pyskip_spec at_rate(double rate) const;

    // What a pace moves, at its floor. Throws pyskip_bad_spec if it has no rate.
    pyskip_spec paced() const;

    // Whether prompt tokens are decided, too; else prompts run dense.
    bool decides_prompt() const;

    // Whether what is decided for generated tokens follows from the prompt, which runs dense.
    bool measures_prompt() const;

    // The specification that it stands for, in one form.
    std::string str() const;

    // The same, and this share of the FFN blocks of prompts is skipped. Throws pyskip_bad_spec if nothing can tell which.
    pyskip_spec with_prompt(double rate) const;
};

// A pace to keep.
struct pyskip_pacing {
    double target_tps = 0.0;  // 0: none
    double max_skip   = -1.0; // below 0: the profile's recommended rate
};

// Throws pyskip_bad_spec if it is malformed. Whether the model has what it asks for is another matter (model.h).
pyskip_spec pyskip_spec_parse(const std::string & text);

// A rate, as a number.
pyskip_spec pyskip_spec_of_rate(double rate);

// As short as it can be read back from.
std::string pyskip_number(double value);
