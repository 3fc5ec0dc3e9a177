#include "hold.h"

#include <algorithm>
#include <cmath>
#include <limits>

// Tuned on traces of the demo model over prose, code, questions, numbers and another script. A token skips nearly all or
// nearly nothing, so spans must be short for 256 of them to come out within 2 points: at 32 tokens they miss by up to 7.
// Firmer than that costs: the less a threshold moves, the better are the blocks that it picks.
static constexpr int32_t HOLD_SPAN    = 4;    // generated tokens that one threshold holds for
static constexpr int32_t PROMPT_SPAN  = 128;  // of a prompt, whose batches must not be cut small; half of it in its ...
static constexpr int32_t PROMPT_START = 256;  // ... first tokens, since a profile's word for them can be far off
static constexpr int32_t HOLD_WINDOW  = 128;  // tokens whose scores say where a threshold lies
static constexpr float   HOLD_GAIN    = 0.9f; // share of the error so far that ...
static constexpr float   HOLD_HORIZON = 8.0f; // ... is made up for within so many generated tokens
static constexpr float   MIN_HORIZON = 64.0f; // ... or in what can be skipped of a prompt's span, not shorter than this
static constexpr float   MAX_ERROR   = 6.0f;  // tokens' worth: what could not be skipped is not made up for without end
static constexpr float   MAX_PROMPT_ERROR = 64.0f; // ... of a prompt
static constexpr float   MAX_MAKE_UP      = 3.2f;  // tokens' worth of a warm-up that later tokens make up for, at most
static constexpr float   N_PRIOR          = 8.0f;  // tokens that the threshold before them counts as

static int32_t prompt_span(int32_t n) {
    return n < PROMPT_START ? PROMPT_SPAN / 2 : PROMPT_SPAN;
}

int32_t pyskip_hold_span(int32_t n, bool is_prompt) {
    return n - n % (is_prompt ? prompt_span(n) : HOLD_SPAN);
}

float pyskip_hold_prompt(float rate, int32_t pos, int32_t ahead, int32_t warmup) {
    const int32_t n        = pos + ahead; // of the prompt
    const int32_t n_decide = n - PYSKIP_HOLD_TAIL - warmup;
    if (ahead <= PYSKIP_HOLD_TAIL || pos < warmup || n_decide <= 0) {
        return 0.0f;
    }
    // in a short prompt the rest does not make up for all that must run
    const float mean = std::min(rate * (float) n / (float) n_decide, std::min(1.5f * rate, 1.0f));
    const float far  = ((float) (ahead - PYSKIP_HOLD_TAIL) - 0.5f) / (float) n_decide; // 0: near, 1: far
    const float rise = std::min(0.5f, 1.0f / mean - 1.0f);
    return mean * (1.0f + rise * (2.0f * far - 1.0f));
}

float pyskip_hold_generated(float rate, int32_t index, int32_t warmup) {
    if (index >= warmup) {
        return rate;
    }
    const float owed = rate * (float) warmup;
    return rate * std::min(0.5f, MAX_MAKE_UP / std::max(owed, 1e-6f));
}

float pyskip_hold_start(const std::vector<pyskip_hold_point> & curve, float rate) {
    if (rate <= 0.0f || curve.empty()) {
        return -std::numeric_limits<float>::infinity();
    }
    const pyskip_hold_point & first = curve.front();
    if (rate < first.rate) {
        const float slope = curve.size() > 1 && curve[1].rate > first.rate
                                ? (curve[1].threshold - first.threshold) / (curve[1].rate - first.rate)
                                : 1.0f;
        return first.threshold - (first.rate - rate) * slope + std::log(rate / first.rate);
    }
    for (size_t i = 1; i < curve.size(); ++i) {
        const pyskip_hold_point & a = curve[i - 1];
        const pyskip_hold_point & b = curve[i];
        if (rate <= b.rate) {
            return b.rate > a.rate ? a.threshold + (b.threshold - a.threshold) * (rate - a.rate) / (b.rate - a.rate)
                                   : b.threshold;
        }
    }
    return curve.back().threshold;
}

static bool lies_in(int32_t p0, int32_t p1, int32_t pos) {
    return pos >= p0 && (p1 < 0 || pos < p1);
}

void pyskip_history::append(const pyskip_hold_token & token, const std::vector<float> & scores) {
    if (n_layer != scores.size()) {
        clear();
        n_layer = scores.size();
    }
    float before = 0.0f;
    if (!entries.empty() && entries.back().is_prompt == token.is_prompt) {
        before = entries.back().error;
    }
    const float most  = token.is_prompt ? MAX_PROMPT_ERROR : MAX_ERROR;
    const float error = std::max(-most, std::min(before + token.skipped - token.target, most));
    entries.push_back({ token.pos, token.is_prompt, error });
    all_scores.insert(all_scores.end(), scores.begin(), scores.end());
    if (token.pos < last.begin) {
        last.begin = -1;
    }
}

const pyskip_history::window & pyskip_history::look_back(bool is_prompt, int32_t begin) const {
    if (last.begin == begin && last.is_prompt == is_prompt) {
        return last;
    }
    last.is_prompt = is_prompt;
    last.begin     = begin;
    last.n_tokens  = 0;
    last.error     = 0.0f;
    last.scores.clear();
    for (size_t i = entries.size(); i-- > 0 && last.n_tokens < (size_t) HOLD_WINDOW;) {
        if (entries[i].pos >= begin) {
            continue;
        }
        if (entries[i].is_prompt != is_prompt) {
            break;
        }
        if (last.n_tokens++ == 0) {
            last.error = entries[i].error;
        }
        const float * scores = scores_of(i);
        for (size_t il = 0; il < n_layer; ++il) {
            if (!std::isnan(scores[il])) {
                last.scores.push_back(scores[il]);
            }
        }
    }
    if (is_prompt) { // each of its tokens has another target
        std::sort(last.scores.begin(), last.scores.end());
    }
    last.n_below = last.scores.size();
    return last;
}

// The n-th of the scores in rising order.
float pyskip_history::score_at(size_t n) const {
    if (!last.is_prompt && last.n_below != n) { // the tokens of a span ask for the same
        std::nth_element(last.scores.begin(), last.scores.begin() + (ptrdiff_t) n, last.scores.end());
        last.n_below = n;
    }
    return last.scores[n];
}

// Tokens that make up for an error: of a prompt those of the span, but for the dense end.
static float horizon(bool is_prompt, int32_t begin, int32_t end) {
    return is_prompt ? std::max((float) std::min(prompt_span(begin), end - begin), MIN_HORIZON) : HOLD_HORIZON;
}

float pyskip_history::threshold(bool is_prompt, int32_t begin, int32_t end, float target, float start) const {
    const window & past = look_back(is_prompt, begin);
    if (past.scores.empty()) {
        return start;
    }
    const float wanted = target - HOLD_GAIN * past.error / horizon(is_prompt, begin, end);

    // of the scores the share to lie below, since not every layer has one
    const float n_scores = (float) past.scores.size();
    const float n_below  = wanted * (float) (n_layer * past.n_tokens);
    if (n_below <= 0.0f) {
        return -std::numeric_limits<float>::infinity();
    }
    const float own =
        n_below < n_scores ? score_at((size_t) n_below) : std::nextafter(score_at(past.scores.size() - 1), INFINITY);
    const float share = std::isfinite(start) ? N_PRIOR / (N_PRIOR + (float) past.n_tokens) : 0.0f;
    return own + share * share * (start - own);
}

void pyskip_history::remove(int32_t p0, int32_t p1) {
    if (entries.empty() || entries.back().pos < p0) {
        return;
    }
    size_t n = 0;
    for (size_t i = 0; i < entries.size(); ++i) {
        if (lies_in(p0, p1, entries[i].pos)) {
            continue;
        }
        if (n != i) {
            entries[n] = entries[i];
            std::copy(scores_of(i), scores_of(i) + n_layer, all_scores.begin() + (ptrdiff_t) (n * n_layer));
        }
        ++n;
    }
    if (n < entries.size()) {
        entries.resize(n);
        all_scores.resize(n * n_layer);
        if (p0 < last.begin) {
            last.begin = -1;
        }
    }
}

void pyskip_history::shift(int32_t p0, int32_t p1, int32_t delta) {
    for (entry & e : entries) {
        e.pos += lies_in(p0, p1, e.pos) ? delta : 0;
    }
    last.begin = -1;
}

void pyskip_history::divide(int32_t p0, int32_t p1, int32_t d) {
    for (entry & e : entries) {
        e.pos /= lies_in(p0, p1, e.pos) ? d : 1;
    }
    last.begin = -1;
}

void pyskip_history::clear() {
    entries.clear();
    all_scores.clear();
    last.begin = -1;
}

pyskip_history pyskip_history::part(int32_t p0, int32_t p1) const {
    pyskip_history copy = *this;
    copy.last.begin     = -1;
    if (p0 > 0) {
        copy.remove(0, p0);
    }
    if (p1 >= 0) {
        copy.remove(p1, -1);
    }
    return copy;
}
