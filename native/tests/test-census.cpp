// What a prompt chooses, on hand-made measures: which sublayers, with which scales, from which tokens.

#include "census.h"
#include "check.h"

#include <cmath>
#include <string>
#include <vector>

static constexpr int32_t N_LAYER = 3;

// Of every sublayer in the graph's order: attention and FFN of layer 0, of layer 1, of layer 2.
static std::vector<pyskip_measure> measures(const std::vector<float> & values, float scale = 2.0f) {
    std::vector<pyskip_measure> out;
    for (const float value : values) {
        out.push_back({ value, scale });
    }
    return out;
}

static std::string shown(const pyskip_choice_ptr & choice) {
    std::string out;
    for (size_t p = 0; choice && p < choice->skipped.size(); ++p) {
        out += choice->skipped[p] ? 's' : '.';
    }
    return out;
}

static const float NONE = NAN; // the last layer's

static void test_most_similar() {
    pyskip_census census;
    CHECK(census.most_similar(2, 10, false) == nullptr);
    census.append(0, true, measures({ 0.1f, 0.9f, 0.7f, 0.5f, NONE, NONE }));
    census.append(1, true, measures({ 0.1f, 0.3f, 0.7f, 0.5f, NONE, NONE }, 4.0f));
    CHECK(shown(census.most_similar(1, 2, false)) == "..s...");
    CHECK(shown(census.most_similar(2, 2, false)) == ".ss...");
    CHECK(census.most_similar(1, 2, false)->scale[2] == 3.0f);  // the mean
    CHECK(census.most_similar(1, 2, false)->scale[1] == 1.0f);  // runs
    CHECK(shown(census.most_similar(1, 1, false)) == ".s...."); // of the first token alone
    CHECK(shown(census.most_similar(9, 2, false)) == "ssss.."); // what was not measured is never skipped
    CHECK(census.most_similar(1, 0, false) == nullptr);

    // an FFN of the tokens since is as similar; attention is not added
    census.append(2, false, measures({ 0.9f, 0.9f, NONE, 0.1f, NONE, NONE }, 5.0f));
    CHECK(shown(census.most_similar(1, 2, false)) == "..s...");
    CHECK(shown(census.most_similar(1, 2, true)) == ".ss...");
    CHECK(census.most_similar(1, 2, true)->scale[1] == 5.0f);
    census.append(3, false, measures({ 0.9f, 0.3f, NONE, 0.1f, NONE, NONE }));
    CHECK(shown(census.most_similar(1, 2, true)) == "..s..."); // their mean is not
    census.remove(3, -1);
    CHECK(shown(census.most_similar(1, 2, true)) == ".ss...");
    census.forget_generated();
    CHECK(census.size() == 2 && shown(census.most_similar(1, 2, true)) == "..s...");
}

static void test_least_scored() {
    pyskip_census census;
    census.append(0, true, measures({ NONE, -1.0f, NONE, -2.0f, NONE, NONE }, NAN));
    CHECK(shown(census.least_scored(1, 5)) == "...s..");
    CHECK(shown(census.least_scored(0, 5)) == "......");
    CHECK(shown(census.least_scored(3, 5)) == ".s.s..");
    census.append(1, true, measures({ NONE, -9.0f, NONE, -2.0f, NONE, NONE }, NAN));
    CHECK(shown(census.least_scored(1, 5)) == ".s....");
    CHECK(census.least_scored(1, 5)->scale[1] == 1.0f); // its stand-in serves
}

static void test_positions() {
    pyskip_census census;
    for (int32_t pos = 0; pos < 8; ++pos) {
        census.append(pos, true, measures({ pos < 4 ? 0.9f : 0.0f, 0.5f, 0.0f, 0.0f, NONE, NONE }));
    }
    CHECK(shown(census.most_similar(1, 8, false)) == ".s....");
    CHECK(shown(census.part(0, 4).most_similar(1, 8, false)) == "s.....");
    census.remove(4, 6);
    CHECK(census.size() == 6 && shown(census.most_similar(1, 8, false)) == "s.....");
    census.shift(6, -1, -2);
    CHECK(shown(census.most_similar(1, 4, false)) == "s....."); // positions 0 to 3
    census.divide(0, -1, 8);
    census.remove(0, 1);
    CHECK(census.size() == 0 && census.most_similar(1, 8, false) == nullptr);
}

int main() {
    test_most_similar();
    test_least_scored();
    test_positions();
    CHECK(pyskip_place(PYSKIP_SUBLAYER_FFN, N_LAYER - 1) == 2 * N_LAYER - 1);
    return check_result("test-census");
}
