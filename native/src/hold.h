// A skip rate that holds: the threshold that the gates of one sequence compare with follows from the scores of that
// sequence's earlier tokens. Pure: no ggml or llama.cpp types. Kept by sequences.cpp, asked by state.cpp before a batch.
//
// A threshold holds for a span of tokens and is made of what was decoded before the span alone. Spans begin at fixed
// places, counted from the first token that is decided, in a prompt from its first one, so that a batch and single steps
// see the same; a batch that holds several spans of a sequence is cut between them (hooks.cpp). A rule that holds no rate
// never reaches this file.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

// One point of a profile's curve: what a threshold skipped when it was measured, on other text.
struct pyskip_hold_point {
    float rate;
    float threshold;
};

// What was decided for one token.
struct pyskip_hold_token {
    int32_t pos;
    bool    is_prompt;
    float   target;  // the share of its blocks that was due to be skipped
    float   skipped; // the share that was
};

// The first place of the span that the n-th decided token lies in, n = 0, 1, ..., of a prompt the n-th token.
int32_t pyskip_hold_span(int32_t n, bool is_prompt);

// The share of the blocks to skip in a prompt token that lies `ahead` tokens before the first generated one and has `pos`
// tokens before it, so that the whole prompt skips `rate`: more far from the end, nothing in the last PYSKIP_HOLD_TAIL and
// in the first `warmup`.
constexpr int32_t PYSKIP_HOLD_TAIL = 32;

float pyskip_hold_prompt(float rate, int32_t pos, int32_t ahead, int32_t warmup);

// The share of its blocks that is due to be skipped for the index-th generated token: `rate`, or in the warm-up, which runs,
// the part of it that later tokens make up for. If they made up for all of it, the tokens just after the warm-up would skip
// more than `rate`.
float pyskip_hold_generated(float rate, int32_t index, int32_t warmup);

// The curve's threshold at a rate: straight between its points, below them falling without bound.
float pyskip_hold_start(const std::vector<pyskip_hold_point> & curve, float rate);

// What is remembered of the tokens of one sequence, in the order of their positions.
class pyskip_history {
public:
    // Scores by layer, NaN if there is none.
    void append(const pyskip_hold_token & token, const std::vector<float> & scores);

    // The threshold at which `target` of the blocks are skipped by the tokens of a span that begins at position `begin`;
    // `start` before anything is known. Of a prompt, tokens from position `end` on run dense.
    float threshold(bool is_prompt, int32_t begin, int32_t end, float target, float start) const;

    // What happens to positions [p0, p1); p1 < 0 means to the end.
    void remove(int32_t p0, int32_t p1);
    void shift(int32_t p0, int32_t p1, int32_t delta);
    void divide(int32_t p0, int32_t p1, int32_t d);
    void clear();

    // The tokens at positions [p0, p1) alone.
    pyskip_history part(int32_t p0, int32_t p1) const;

    size_t size() const { return entries.size(); }

private:
    struct entry {
        int32_t pos;
        bool    is_prompt;
        float   error; // tokens' worth of blocks skipped too much so far, in its phase
    };

    // The scores before a span; sorted in a prompt, else parted at the n_below-th.
    struct window {
        bool               is_prompt = false;
        int32_t            begin     = -1; // -1: not made
        size_t             n_tokens  = 0;
        size_t             n_below   = 0;
        float              error     = 0.0f;
        std::vector<float> scores;
    };

    const window & look_back(bool is_prompt, int32_t begin) const;
    float          score_at(size_t n) const;
    const float *  scores_of(size_t i) const { return all_scores.data() + i * n_layer; }

    size_t             n_layer = 0;
    std::vector<entry> entries;
    std::vector<float> all_scores; // [entries][n_layer]

    mutable window last;
};
