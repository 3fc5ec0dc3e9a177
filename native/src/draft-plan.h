// What a model gains by drafting for itself (lossless.cpp), and how: by which of several sets of skipped sublayers, and how
// far. Pure: it knows no context and no clock, and is told what was measured. No text depends on what it says.
//
// A round drafts n tokens, each at the cost of a step of the set, and verifies them in one batch of n + 1: it saves a dense
// step for each that is accepted. Whether that pays, which set pays most and how many tokens follow from the seconds of each
// and from the share that is accepted. A set is chosen by the share that it may well have, given how little is known of it
// (an upper confidence bound), and what is known is forgotten slowly, so that a set that failed is tried again. What rounds
// have lost is kept account of: no draft is so long that with all of its tokens rejected it would become more than LOSS of
// all time and a few steps.

#pragma once

#include "pyskip.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

class pyskip_draft_plan {
public:
    explicit pyskip_draft_plan(size_t n_sets);

    // Seconds of a batch of n_tokens, 1 to PYSKIP_N_DRAFT + 1, and of one step by a set.
    void took_batch(int32_t n_tokens, double seconds);
    void took_step(size_t set, double seconds);

    // Of n tokens that a set tried, n_accepted were the model's.
    void tried(size_t set, double n_accepted, double n);

    // A round by a set: n_drafted tokens, of which n_accepted came out, in so many seconds, verified. was_given_up: a step
    // more brought nothing that was worth verifying, which is as bad as a token that is wrong. And a dense step.
    void drafted(size_t set, int32_t n_drafted, int32_t n_accepted, bool was_given_up, double seconds);
    void stepped();

    // The set to draft by, -1 for none.
    int32_t choose() const;

    // Of a draft of n tokens, all of which are accepted with probability `reach`: whether the last is worth verifying, and
    // whether another is worth a step of the set.
    bool is_worth(int32_t n, double reach) const;
    bool goes_on(size_t set, int32_t n, double reach) const;

    // Times as fast as dense, if a step takes so long, that share of its tokens is accepted, and drafts have the best length.
    double gain(double step_seconds, double accepted) const;

    double batch_seconds(int32_t n_tokens) const;
    double step_seconds(size_t set) const { return sets[set].step; }
    double accepted(size_t set) const { return sets[set].n > 0.0 ? sets[set].n_accepted / sets[set].n : 0.0; }

private:
    struct outcomes {
        double step       = 0.0; // seconds; 0: not measured
        double n          = 0.0; // tokens that were tried, the older the less they count
        double n_accepted = 0.0;
    };

    double hoped(const outcomes & set) const;
    bool   may_lose(const outcomes & set, int32_t n) const;

    std::array<double, PYSKIP_N_DRAFT + 2> batches{}; // seconds by number of tokens; 0: not measured
    std::vector<outcomes>                  sets;

    double balance = 0.0; // seconds that rounds saved
    double total   = 0.0; // seconds of rounds and of dense steps

    int32_t n_rounds = 0; // since the last dense step
};
