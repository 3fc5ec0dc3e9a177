// A rate that holds, by itself: scores of made-up texts go in, thresholds come out, and what they skip is counted.

#include "check.h"
#include "hold.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

static constexpr int32_t N_LAYER = 24;

// 0 to 1, the same for the same numbers.
static float noise(int32_t a, int32_t b) {
    uint64_t h = ((uint64_t) (uint32_t) a << 32 | (uint32_t) b) + 0x9e3779b97f4a7c15u;
    h          = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9u;
    h          = (h ^ (h >> 27)) * 0x94d049bb133111ebu;
    return (float) ((h ^ (h >> 31)) >> 40) / (float) (1 << 24);
}

// Scores of a token: some layers and tokens are easier than others, and now and then all of them become harder.
static std::vector<float> scores_of(int32_t text, int32_t pos) {
    std::vector<float> scores(N_LAYER, NAN);
    const float        all = 0.8f * noise(text, 1000 + pos) + (pos % 600 < 300 ? 0.0f : 0.3f) + 0.3f * (float) text;
    for (int32_t il = 2; il + 2 < N_LAYER; ++il) {
        scores[il] = all + noise(il, 7) + noise(text, pos * N_LAYER + il);
    }
    return scores;
}

// The share that a token skips.
static float skipped(const std::vector<float> & scores, float threshold) {
    return (float) std::count_if(scores.begin(), scores.end(), [&](float s) { return s < threshold; }) / N_LAYER;
}

static void append(pyskip_history & history, int32_t text, int32_t pos, float owed, float threshold) {
    const auto scores = scores_of(text, pos);
    history.append({ pos, false, owed, skipped(scores, threshold) }, scores);
}

// Decode up to position n; the thresholds by position.
static std::vector<float> run(pyskip_history & history, int32_t text, int32_t from, int32_t n, float rate,
                              int32_t warmup) {
    std::vector<float> thresholds;
    for (int32_t pos = from; pos < n; ++pos) {
        const float   owed  = pyskip_hold_generated(rate, pos, warmup);
        const int32_t begin = warmup + pyskip_hold_span(pos - warmup, false);
        thresholds.push_back(pos < warmup ? -INFINITY : history.threshold(false, begin, 0, rate, /*start =*/1.0f));
        append(history, text, pos, owed, thresholds.back());
    }
    return thresholds;
}

static void test_rate_holds() {
    for (int32_t text = 0; text < 4; ++text) {
        for (float rate : { 0.1f, 0.25f, 0.4f }) {
            pyskip_history     history;
            const auto         thresholds = run(history, text, 0, 1500, rate, 16);
            std::vector<float> sum        = { 0.0f };
            for (int32_t pos = 0; pos < 1500; ++pos) {
                sum.push_back(sum.back() + skipped(scores_of(text, pos), thresholds[pos]));
            }
            for (int32_t begin = 0; begin + 256 <= 1500; ++begin) {
                CHECK(std::fabs((sum[begin + 256] - sum[begin]) / 256 - rate) <= 0.02f);
            }
        }
    }
}

static void test_the_past_alone_decides() {
    pyskip_history whole;
    const auto     expected = run(whole, 0, 0, 400, 0.25f, 16);

    pyskip_history again = whole; // taken back to the middle of a span, and to its first token
    again.remove(331, -1);
    const auto found = run(again, 0, 331, 400, 0.25f, 16);
    CHECK(std::equal(found.begin(), found.end(), expected.begin() + 331));
    again.remove(304, -1);
    const auto more = run(again, 0, 304, 400, 0.25f, 16);
    CHECK(std::equal(more.begin(), more.end(), expected.begin() + 304));

    pyskip_history moved; // by 50 positions, and back
    run(moved, 0, 0, 350, 0.25f, 16);
    moved.shift(0, -1, 50);
    moved.shift(0, -1, -50);
    const auto late = run(moved, 0, 350, 400, 0.25f, 16);
    CHECK(std::equal(late.begin(), late.end(), expected.begin() + 350));
    CHECK(moved.part(100, 200).size() == 100 && moved.part(-1, -1).size() == 400);
}

static void test_start() {
    const std::vector<pyskip_hold_point> curve = { { 0.1f, -2.0f }, { 0.3f, -1.0f }, { 0.5f, 0.0f } };
    CHECK(pyskip_hold_start(curve, 0.0f) == -INFINITY);
    CHECK(std::fabs(pyskip_hold_start(curve, 0.2f) + 1.5f) < 1e-6f);
    CHECK(pyskip_hold_start(curve, 0.9f) == 0.0f);
    CHECK(pyskip_hold_start(curve, 0.05f) < -2.0f);
    CHECK(pyskip_history().threshold(false, 0, 0, 0.2f, -1.5f) == -1.5f);
}

static void test_out_of_reach() {
    pyskip_history history; // nothing to skip: thresholds stay what they are, and nothing breaks
    for (int32_t pos = 0; pos < 200; ++pos) {
        const float threshold = history.threshold(false, pos / 32 * 32, 0, 0.3f, -1.0f);
        CHECK(threshold == -1.0f);
        history.append({ pos, false, 0.3f, 0.0f }, std::vector<float>(N_LAYER, NAN));
    }
    pyskip_history all; // more than there is
    run(all, 0, 0, 200, 0.95f, 0);
    CHECK(all.threshold(false, 192, 0, 0.95f, 1.0f) > 2.0f);
}

static void test_prompt() {
    for (int32_t n : { 200, 500, 3000 }) {
        double sum = 0.0;
        float  far = 1.0f;
        for (int32_t pos = 0; pos < n; ++pos) {
            const float share = pyskip_hold_prompt(0.2f, pos, n - pos, 16);
            CHECK(share >= 0.0f && share <= 0.46f);
            CHECK((share == 0.0f) == (pos < 16 || n - pos <= PYSKIP_HOLD_TAIL));
            CHECK(share == 0.0f || share <= far);
            far = share == 0.0f ? far : share;
            sum += share;
        }
        CHECK(std::fabs(sum / n - 0.2) < 0.005);
    }
    CHECK(pyskip_hold_prompt(0.2f, 20, 30, 16) == 0.0f);
    CHECK(pyskip_hold_prompt(0.2f, 20, 40, 16) <= 0.45f); // a short one skips less, not all of what it may
    CHECK(pyskip_hold_prompt(1.0f, 20, 400, 16) <= 1.0f);
}

// Whatever the profile says first, a prompt of a few spans skips what was asked for.
static void test_prompt_holds() {
    for (int32_t n : { 600, 900, 2000 }) {
        for (float rate : { 0.1f, 0.2f, 0.4f }) {
            for (float start : { 0.6f, 1.0f, 1.6f }) {
                pyskip_history history;
                double         sum = 0.0;
                for (int32_t pos = 0; pos < n; ++pos) {
                    const float target    = pyskip_hold_prompt(rate, pos, n - pos, 16);
                    const auto  scores    = scores_of(1, pos);
                    const float threshold = target > 0.0f ? history.threshold(true, pyskip_hold_span(pos, true),
                                                                              n - PYSKIP_HOLD_TAIL, target, start)
                                                          : -INFINITY;
                    history.append({ pos, true, target, skipped(scores, threshold) }, scores);
                    sum += skipped(scores, threshold);
                }
                CHECK(std::fabs(sum / n - rate) < 0.025);
            }
        }
    }
}

int main() {
    test_rate_holds();
    test_prompt_holds();
    test_the_past_alone_decides();
    test_start();
    test_out_of_reach();
    test_prompt();
    return check_result("test-hold");
}
