// Which tokens count as generated, which rule decides for them, and how both move with the sequence.

#include "check.h"
#include "sequences.h"

#include <cmath>

static pyskip_sequences::rule_ptr rule_of(pyskip_policy_type type, const void * profile) {
    auto rule     = std::make_shared<pyskip_rule>();
    rule->type    = type;
    rule->warmup  = 8;
    rule->profile = (const pyskip_profile *) profile;
    rule->hold    = profile != nullptr;
    rule->rate    = 0.25f;
    rule->prompt  = profile ? 0.25f : 0.0f;
    return rule;
}

static void test_rules() {
    int              any;
    pyskip_sequences s;
    CHECK(s.rule(3)->type == PYSKIP_POLICY_OFF);
    const auto cosine = rule_of(PYSKIP_POLICY_COSINE, nullptr);
    const auto held   = rule_of(PYSKIP_POLICY_PROFILE, &any);
    s.set_rule(-1, cosine);
    s.set_rule(1, held);
    CHECK(s.rule(0) == cosine && s.rule(1) == held);
    CHECK(!s.any_has_gates(1) && s.any_has_gates(0) && s.any_has_gates(-1));
    s.copy(1, 2, -1, -1);
    CHECK(s.rule(2) == held);
    s.clear();
    CHECK(s.rule(2) == held);
    s.keep(1);
    CHECK(s.rule(1) == held && s.rule(2) == cosine);
    s.set_rule(-1, cosine);
    CHECK(s.rule(1) == cosine && !s.any_has_gates(-1));
}

// Where batches are cut, and what is remembered when a sequence is.
static void test_spans() {
    int              any;
    pyskip_sequences s;
    const auto       held = rule_of(PYSKIP_POLICY_PROFILE, &any);
    s.set_rule(1, held);
    CHECK(s.span(1, 50) == -1); // nobody said where the prompt ends
    s.set_from(1, 300);
    CHECK(s.span(0, 50) == -1);
    CHECK(s.span(1, 0) == 0 && s.span(1, 63) == 0); // the warm-up too, which a batch need not end with
    CHECK(s.span(1, 8 + 300) == 308);               // as generated, index 8
    CHECK(s.span(1, 64) == 64 && s.span(1, 255) == 192 && s.span(1, 256) == 256 && s.span(1, 299) == 256);
    CHECK(s.span(1, 307) == -1); // warm-up
    CHECK(s.span(1, 308 + 3) == 308);
    CHECK(s.span(1, 308 + 4) == 312);
    CHECK(s.span(1, 308 + 70) == 308 + 68);

    const std::vector<float> scores = { 0.0f, 1.0f };
    for (int32_t pos = 300; pos < 340; ++pos) {
        s.history(1, PYSKIP_SUBLAYER_FFN).append({ pos, false, 0.25f, 0.5f }, scores);
    }
    s.copy(1, 2, 0, 320);
    CHECK(s.history(1, PYSKIP_SUBLAYER_FFN).size() == 40 && s.history(2, PYSKIP_SUBLAYER_FFN).size() == 20);
    s.remove(1, 330, -1);
    CHECK(s.history(1, PYSKIP_SUBLAYER_FFN).size() == 30);
    s.set_from(1, 300);                                  // the mark that it has
    s.set_rule(1, rule_of(PYSKIP_POLICY_PROFILE, &any)); // an equal rule
    CHECK(s.history(1, PYSKIP_SUBLAYER_FFN).size() == 30);
    s.set_from(1, 301);
    CHECK(s.history(1, PYSKIP_SUBLAYER_FFN).size() == 0);
    s.set_rule(2, rule_of(PYSKIP_POLICY_COSINE, nullptr));
    CHECK(s.history(2, PYSKIP_SUBLAYER_FFN).size() == 0);
}

// What a prompt showed, and what moves it.
static void test_choices() {
    pyskip_sequences s;
    auto             rule = std::make_shared<pyskip_rule>();
    rule->type            = PYSKIP_POLICY_ADASKIP;
    rule->n_layer         = 2;
    rule->n_sublayers     = 1;
    s.set_rule(-1, rule);
    s.set_from(0, 4);
    CHECK(s.choice(0, 4) == nullptr);
    const std::vector<pyskip_measure> first = { { 0.9f, 1.0f }, { 0.1f, 1.0f }, { NAN, NAN }, { NAN, NAN } };
    const std::vector<pyskip_measure> then  = { { 0.1f, 1.0f }, { 0.9f, 1.0f }, { NAN, NAN }, { NAN, NAN } };
    s.measure(0, 0, true, first);
    for (int32_t pos = 1; pos < 4; ++pos) {
        s.measure(0, pos, true, then);
    }
    CHECK(s.choice(0, 3) == nullptr); // of the prompt
    CHECK(s.choice(0, 4) && s.choice(0, 4)->skipped[1] == 1);
    CHECK(s.choice(1, 4) == nullptr);
    CHECK(s.span(0, 3) == -1 && s.span(0, 4) == 4 && s.span(0, 23) == 4 && s.span(0, 24) == 24 && s.span(0, 99) == 24);

    s.copy(0, 1, 0, 1);
    CHECK(s.choice(1, 4)->skipped[0] == 1); // of the token that was copied
    s.remove(0, 1, -1);
    CHECK(s.choice(0, 4)->skipped[0] == 1);
    s.set_from(0, 9); // another turn
    CHECK(s.choice(0, 9)->skipped[0] == 1);
    s.set_rule(0, std::make_shared<pyskip_rule>(*rule));
    CHECK(s.choice(0, 9) != nullptr); // an equal rule
    s.keep(0);
    CHECK(s.choice(0, 9) != nullptr && s.choice(1, 4) == nullptr);
    auto other         = std::make_shared<pyskip_rule>(*rule);
    other->n_sublayers = 2;
    s.set_rule(0, other);
    CHECK(s.choice(0, 9) == nullptr);
}

int main() {
    test_rules();
    test_spans();
    test_choices();
    pyskip_sequences s;
    CHECK(s.index(0, 100) == -1); // nobody said anything: prompt

    s.set_from(0, 10);
    CHECK(s.index(0, 9) == -1);
    CHECK(s.index(0, 10) == 0);
    CHECK(s.index(0, 13) == 3);
    CHECK(s.index(1, 13) == -1);

    s.copy(0, 1, -1, -1);
    CHECK(s.index(1, 12) == 2);
    s.copy(7, 1, -1, -1); // from a sequence without a mark
    CHECK(s.index(1, 12) == -1);

    s.add(0, 4, -1, -4); // context shift: positions 4.. move down
    CHECK(s.index(0, 6) == 0);
    s.add(0, 0, 3, 5); // does not reach the mark
    CHECK(s.index(0, 6) == 0);
    s.add(0, 0, -1, -100); // never below 0
    CHECK(s.index(0, 0) == 0);

    s.set_from(0, 12);
    s.div(0, 0, -1, 4);
    CHECK(s.index(0, 3) == 0);
    s.div(0, 0, -1, 0); // not a division
    CHECK(s.index(0, 3) == 0);

    s.set_from(2, 5);
    s.keep(2);
    CHECK(s.index(0, 50) == -1);
    CHECK(s.index(2, 6) == 1);

    s.set_from(-1, 8); // every sequence, also those to come
    CHECK(s.index(2, 8) == 0);
    CHECK(s.index(99, 9) == 1);
    s.set_from(99, -1);
    CHECK(s.index(99, 9) == -1);

    s.clear();
    CHECK(s.index(2, 8) == -1);
    return check_result("test-sequences");
}
