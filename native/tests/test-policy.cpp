// The decision by itself, held to the paper's algorithm on hand-made similarities.

#include "check.h"
#include "policy.h"
#include "row.h"

#include <cmath>
#include <cstdlib>
#include <limits>

static pyskip_policy cosine(float threshold, int32_t run, int32_t cold_start, int32_t cold_end, int32_t warmup) {
    pyskip_policy p = {};
    p.type          = PYSKIP_POLICY_COSINE;
    p.threshold     = threshold;
    p.run           = run;
    p.cold_start    = cold_start;
    p.cold_end      = cold_end;
    p.warmup        = warmup;
    return p;
}

static pyskip_rule make(const pyskip_policy & policy, int32_t n_layer) {
    pyskip_rule rule;
    std::string error;
    CHECK(pyskip_rule_init(rule, policy, n_layer, error));
    CHECK(error.empty());
    return rule;
}

static bool refused(const pyskip_policy & policy, int32_t n_layer) {
    pyskip_rule rule;
    std::string error;
    const bool  ok = pyskip_rule_init(rule, policy, n_layer, error);
    CHECK(ok == error.empty());
    CHECK(error.find('\n') == std::string::npos);
    CHECK(ok || rule.type == PYSKIP_POLICY_OFF); // untouched
    return !ok;
}

// Which layers a token skips when every tested layer shows the similarity `sim`.
static std::string walk(const pyskip_rule & rule, int32_t index, float sim) {
    pyskip_token token;
    token.index = index;
    std::string out;
    for (int32_t il = 0; il < rule.n_layer; ++il) {
        const bool skipped = pyskip_rule_skips(rule, PYSKIP_SUBLAYER_FFN, il, token);
        const bool tested  = !skipped && pyskip_rule_tests(rule, PYSKIP_SUBLAYER_FFN, il, token);
        pyskip_rule_advance(rule, il, skipped, tested, sim, token);
        out += skipped ? 's' : tested ? 't' : '.';
    }
    return out;
}

static void test_cosine() {
    const pyskip_rule rule = make(cosine(0.9f, 2, 2, 1, 3), 10);
    CHECK(walk(rule, 3, 0.95f) == "..tsstsst."); // test, skip two, test again; cold ends run
    CHECK(walk(rule, 3, 0.90f) == "..tsstsst."); // at the threshold: skip
    CHECK(walk(rule, 3, 0.85f) == "..ttttttt.");
    CHECK(walk(rule, 2, 0.95f) == "..........");  // warm-up
    CHECK(walk(rule, -1, 0.95f) == ".........."); // prompt
    CHECK(walk(rule, 3, std::numeric_limits<float>::quiet_NaN()) == "..ttttttt.");

    CHECK(walk(make(cosine(-1.0f, 0, 1, 2, 0), 8), 0, -1.0f) == ".tssss.."); // run=0: up to the cold end
    CHECK(walk(make(cosine(2.0f, 0, 0, 0, 0), 4), 0, 1.0f) == "tttt");
    CHECK(walk(make(cosine(-1.0f, 0, 0, 0, 0), 4), 0, 0.0f) == "tsss");
}

static void test_static() {
    const int32_t layers[] = { 1, 3 };
    pyskip_policy p        = {};
    p.type                 = PYSKIP_POLICY_STATIC;
    p.layers               = layers;
    p.n_layers             = 2;
    const pyskip_rule rule = make(p, 5);
    CHECK(walk(rule, -1, 0.0f) == ".s.s."); // every token, the prompt's too
    CHECK(walk(rule, 0, 1.0f) == ".s.s.");
    CHECK(refused(p, 3)); // layer 3 of 0..2
    p.n_layers = 0;
    CHECK(refused(p, 5));
    const int32_t negative[] = { -1 };
    p.layers                 = negative;
    p.n_layers               = 1;
    CHECK(refused(p, 5));
    p.n_layers           = 0;
    p.attention_layers   = layers;
    p.n_attention_layers = 2;
    CHECK(refused(p, 3));
    const pyskip_rule attention = make(p, 5);
    CHECK(walk(attention, 0, 0.0f) == ".....");
    CHECK(pyskip_rule_has_attention(attention) && !pyskip_rule_has_attention(rule));
    CHECK(pyskip_rule_skips(attention, PYSKIP_SUBLAYER_ATTENTION, 3, pyskip_token()));
    CHECK(!pyskip_rule_skips(attention, PYSKIP_SUBLAYER_ATTENTION, 2, pyskip_token()));
    CHECK(!pyskip_rule_skips(rule, PYSKIP_SUBLAYER_ATTENTION, 3, pyskip_token()));
    CHECK(pyskip_rule_needs(attention, pyskip_token()) == PYSKIP_NEED_JOINS);
    p.profile                 = (const pyskip_profile *) &p; // never looked into
    const pyskip_rule with_it = make(p, 5);
    CHECK(pyskip_rule_needs(with_it, pyskip_token()) == PYSKIP_NEED_GATES && !with_it.asks_gates());
    CHECK(pyskip_rule_skips(with_it, PYSKIP_SUBLAYER_ATTENTION, 3, pyskip_token()));
    p.bare = true;
    CHECK(pyskip_rule_needs(make(p, 5), pyskip_token()) == PYSKIP_NEED_JOINS);
}

static void test_adaskip() {
    pyskip_policy p = {};
    p.type          = PYSKIP_POLICY_ADASKIP;
    CHECK(refused(p, 4)); // none
    p.n_sublayers = 6;
    CHECK(refused(p, 4)); // of 6 that may be skipped one runs
    p.n_sublayers          = 5;
    const pyskip_rule rule = make(p, 4);
    CHECK(walk(rule, -1, 0.9f) == "ttt."); // the last layer is not every token's
    CHECK(walk(rule, PYSKIP_LATE - 1, 0.9f) == "ttt.");
    CHECK(walk(rule, PYSKIP_LATE, 0.9f) == "....");

    pyskip_token token;
    CHECK(pyskip_rule_tests(rule, PYSKIP_SUBLAYER_ATTENTION, 1, token));
    CHECK(pyskip_rule_needs(rule, token) == PYSKIP_NEED_JOINS); // the prompt is looked at
    token.index = PYSKIP_LATE;
    CHECK(pyskip_rule_needs(rule, token) == PYSKIP_NEED_NOTHING); // nothing is known of its prompt
    const pyskip_choice choice = { { 0, 0, 1, 0, 0, 1, 0, 0 }, std::vector<float>(8, 1.0f) };
    token.choice               = &choice;
    CHECK(pyskip_rule_needs(rule, token) == PYSKIP_NEED_JOINS);
    CHECK(pyskip_rule_skips(rule, PYSKIP_SUBLAYER_ATTENTION, 1, token));
    CHECK(!pyskip_rule_skips(rule, PYSKIP_SUBLAYER_FFN, 1, token));
    CHECK(pyskip_rule_skips(rule, PYSKIP_SUBLAYER_FFN, 2, token));
}

static void test_prompt() {
    int           any;
    pyskip_policy p = {};
    p.type          = PYSKIP_POLICY_PROMPT;
    p.rate          = 0.5f;
    CHECK(refused(p, 4)); // no profile
    p.profile = (const pyskip_profile *) &any;
    p.rate    = 1.5f;
    CHECK(refused(p, 4));
    p.rate                 = 0.5f;
    const pyskip_rule rule = make(p, 4);
    CHECK(rule.n_sublayers == 2);
    pyskip_token token;
    CHECK(pyskip_rule_needs(rule, token) == PYSKIP_NEED_GATES);
    CHECK(!pyskip_rule_gates(rule, PYSKIP_SUBLAYER_FFN, 1, -99.0f, token)); // the prompt runs dense, whatever the score
    token.index = 0;
    CHECK(pyskip_rule_needs(rule, token) == PYSKIP_NEED_NOTHING);
    const pyskip_choice choice = { { 0, 0, 0, 1, 0, 0, 0, 0 }, std::vector<float>(8, 1.0f) };
    token.choice               = &choice;
    CHECK(pyskip_rule_needs(rule, token) == PYSKIP_NEED_GATES);
    CHECK(pyskip_rule_gates(rule, PYSKIP_SUBLAYER_FFN, 1, 99.0f, token) &&
          !pyskip_rule_gates(rule, PYSKIP_SUBLAYER_FFN, 2, -99.0f, token));
}

static void test_refused() {
    CHECK(refused(cosine(NAN, 1, 1, 1, 0), 10));
    CHECK(refused(cosine(INFINITY, 1, 1, 1, 0), 10));
    CHECK(refused(cosine(0.9f, -1, 1, 1, 0), 10));
    CHECK(refused(cosine(0.9f, 1, -1, 1, 0), 10));
    CHECK(refused(cosine(0.9f, 1, 1, 1, -1), 10));
    CHECK(refused(cosine(0.9f, 1, 5, 5, 0), 10)); // nothing left to skip
    CHECK(refused(cosine(0.9f, 1, 2147483647, 2147483647, 0), 10));
    pyskip_policy unknown = {};
    unknown.type          = 99;
    CHECK(refused(unknown, 10));
}

static void test_similarity() {
    // 19 values: lanes and a tail; against the plain sum in double
    float  x[19];
    float  y[19];
    double xz = 0.0;
    double xx = 0.0;
    double zz = 0.0;
    for (int i = 0; i < 19; ++i) {
        x[i]           = std::sin(1.7f * i + 0.3f);
        y[i]           = 0.2f * std::cos(2.9f * i);
        const double z = (double) x[i] + y[i];
        xz += x[i] * z;
        xx += (double) x[i] * x[i];
        zz += z * z;
    }
    CHECK(std::fabs(pyskip_compare(x, y, 19).cosine - xz / std::sqrt(xx * zz)) < 1e-6);

    const float zero[19] = {};
    float       minus[19];
    for (int i = 0; i < 19; ++i) {
        minus[i] = -x[i];
    }
    CHECK(std::fabs(pyskip_compare(x, y, 19).scale - std::sqrt(zz / xx)) < 1e-6);
    CHECK(pyskip_compare(zero, x, 19).scale == 1.0f);
    CHECK(pyskip_compare(zero, x, 19).cosine == 0.0f);
    CHECK(pyskip_compare(x, minus, 19).cosine == 0.0f); // z is the zero vector
    CHECK(std::fabs(pyskip_compare(x, zero, 19).cosine - 1.0f) < 1e-6f);
}

// Is a block skipped whose gate says `score`, by a rule that has no past?
static bool gates(const pyskip_rule & rule, int32_t index, int32_t pos, float score) {
    pyskip_token token;
    token.index                          = index;
    token.pos                            = pos;
    token.threshold[PYSKIP_SUBLAYER_FFN] = pyskip_rule_threshold(rule, PYSKIP_SUBLAYER_FFN, token);
    return pyskip_rule_gates(rule, PYSKIP_SUBLAYER_FFN, 1, score, token);
}

static void test_profile() {
    pyskip_policy p = {};
    p.type          = PYSKIP_POLICY_PROFILE;
    p.threshold     = -1.5f;
    p.warmup        = 3;
    CHECK(refused(p, 4));                    // no profile
    p.profile = (const pyskip_profile *) &p; // never looked into by the rule
    p.warmup  = -1;
    CHECK(refused(p, 4));
    p.warmup    = 3;
    p.threshold = NAN;
    CHECK(refused(p, 4));
    p.threshold = -1.5f;

    pyskip_rule rule = make(p, 4);
    CHECK(!gates(rule, -1, 10, -9.0f)); // prompt
    CHECK(!gates(rule, 2, 10, -9.0f));  // warm-up
    CHECK(gates(rule, 3, 10, -1.6f));
    CHECK(!gates(rule, 3, 10, -1.5f));
    CHECK(!gates(rule, 3, 10, NAN));
    CHECK(!pyskip_rule_skips(rule, PYSKIP_SUBLAYER_FFN, 1, pyskip_token())); // the gates decide, not what came before

    rule.prefill = true;
    CHECK(gates(rule, -1, 10, -1.6f));
    CHECK(!gates(rule, -1, 2, -1.6f));
}

static void test_held() {
    pyskip_policy p = {};
    p.type          = PYSKIP_POLICY_PROFILE;
    p.profile       = (const pyskip_profile *) &p;
    p.warmup        = 4;
    p.hold          = true;
    p.rate          = 1.5f;
    CHECK(refused(p, 4));
    p.rate   = 0.25f;
    p.prompt = -0.5f;
    CHECK(refused(p, 4));
    p.prompt = 0.2f;

    pyskip_rule rule = make(p, 4);
    rule.curve       = { { 0.2f, -2.0f }, { 0.3f, -1.0f } };
    CHECK(!gates(rule, 3, 10, -9.0f)); // warm-up
    CHECK(gates(rule, 4, 10, -1.6f));  // -1.5: the curve's threshold, until the sequence says more
    CHECK(!gates(rule, 4, 10, -1.4f));
    pyskip_token last;
    last.index                          = 4;
    last.threshold[PYSKIP_SUBLAYER_FFN] = 9.0f;
    CHECK(pyskip_rule_gates(rule, PYSKIP_SUBLAYER_FFN, 2, 1.0f, last));
    CHECK(!pyskip_rule_gates(rule, PYSKIP_SUBLAYER_FFN, 3, 1.0f, last)); // the last layer runs

    pyskip_token prompt;
    prompt.pos = 100;
    CHECK(pyskip_rule_threshold(rule, PYSKIP_SUBLAYER_FFN, prompt) == -INFINITY); // nobody knows where the prompt ends
    prompt.ahead = 400;
    CHECK(pyskip_rule_threshold(rule, PYSKIP_SUBLAYER_FFN, prompt) > -INFINITY);
    prompt.ahead = 32;
    CHECK(pyskip_rule_threshold(rule, PYSKIP_SUBLAYER_FFN, prompt) == -INFINITY);
    CHECK(pyskip_rule_needs(rule, prompt) == PYSKIP_NEED_NOTHING);

    pyskip_token first;
    first.index = 0;
    CHECK(pyskip_rule_needs(rule, first) == PYSKIP_NEED_GATES); // its scores say where the threshold begins
    pyskip_rule nothing = rule;
    nothing.rate        = 0.0f;
    CHECK(pyskip_rule_needs(nothing, first) == PYSKIP_NEED_NOTHING);

    pyskip_rule other = rule;
    CHECK(other == rule);
    other.curve[1].threshold = -0.9f;
    CHECK(!(other == rule));
}

// Of attention the rate has its own curve; prompts, the warm-up and the last layer run.
static void test_attention() {
    constexpr auto ATTENTION = PYSKIP_SUBLAYER_ATTENTION;

    pyskip_policy p       = {};
    p.type                = PYSKIP_POLICY_PROFILE;
    p.profile             = (const pyskip_profile *) &p;
    p.warmup              = 4;
    p.hold                = true;
    p.rate                = 0.0f;
    p.prompt              = 0.2f;
    p.attention_rate      = 1.5f;
    p.attention_threshold = -1.5f;
    CHECK(refused(p, 4));
    p.attention_rate = 0.25f;

    pyskip_rule rule     = make(p, 4);
    rule.curve           = { { 0.2f, -2.0f }, { 0.3f, -1.0f } };
    rule.attention_curve = { { 0.2f, 2.0f }, { 0.3f, 4.0f } };
    CHECK(pyskip_rule_has_attention(rule));
    CHECK(pyskip_rule_covers(rule, ATTENTION, 2) && !pyskip_rule_covers(rule, ATTENTION, 3));
    CHECK(!pyskip_rule_skips(rule, ATTENTION, 1, pyskip_token())); // gates decide

    pyskip_token token;
    token.index = 4;
    CHECK(std::fabs(pyskip_rule_threshold(rule, ATTENTION, token) - 3.0f) < 1e-5f);
    CHECK(pyskip_rule_owes(rule, ATTENTION, token) == 0.25f && pyskip_rule_owes(rule, PYSKIP_SUBLAYER_FFN, token) == 0);
    CHECK(pyskip_rule_needs(rule, token) == PYSKIP_NEED_GATES); // though no FFN is skipped
    token.threshold[ATTENTION] = 3.0f;
    CHECK(pyskip_rule_gates(rule, ATTENTION, 1, 2.9f, token) && !pyskip_rule_gates(rule, ATTENTION, 1, 3.0f, token));
    CHECK(!pyskip_rule_gates(rule, PYSKIP_SUBLAYER_FFN, 1, 2.9f, token));
    token.index = 3;
    CHECK(pyskip_rule_threshold(rule, ATTENTION, token) == -INFINITY);
    CHECK(pyskip_rule_owes(rule, ATTENTION, token) > 0.0f); // later tokens make up for it
    token       = {};
    token.pos   = 100;
    token.ahead = 400;
    CHECK(pyskip_rule_threshold(rule, PYSKIP_SUBLAYER_FFN, token) > -INFINITY);
    CHECK(pyskip_rule_threshold(rule, ATTENTION, token) == -INFINITY && pyskip_rule_owes(rule, ATTENTION, token) == 0);

    p.hold      = false;
    token.index = 4;
    CHECK(pyskip_rule_threshold(make(p, 4), ATTENTION, token) == -1.5f);
    p.attention_rate = 0.0f;
    CHECK(pyskip_rule_threshold(make(p, 4), ATTENTION, token) == -INFINITY && !pyskip_rule_has_attention(make(p, 4)));
    p.attention_threshold = NAN;
    CHECK(refused(p, 4));

    pyskip_rule other = rule;
    CHECK(other == rule);
    other.attention_curve[1].threshold = 5.0f;
    CHECK(!(other == rule));
    other                = rule;
    other.attention_rate = 0.3f;
    CHECK(!(other == rule));
}

// Coins of attention are others than those of FFNs.
static void test_random_attention() {
    pyskip_policy p  = {};
    p.type           = PYSKIP_POLICY_RANDOM;
    p.rate           = 0.5f;
    p.attention_rate = 0.5f;

    const pyskip_rule rule    = make(p, 8);
    int               n       = 0;
    int               n_alike = 0;
    for (int32_t pos = 0; pos < 4000; ++pos) {
        pyskip_token token;
        token.index = token.pos = pos;
        const int32_t il        = pos % 8;
        const bool    skip      = pyskip_rule_skips(rule, PYSKIP_SUBLAYER_ATTENTION, il, token);
        CHECK(!skip || il < 7); // the last layer's runs
        n += skip;
        n_alike += il < 7 && skip == pyskip_rule_skips(rule, PYSKIP_SUBLAYER_FFN, il, token);
    }
    CHECK(std::abs(n - 1750) < 130 && std::abs(n_alike - 1750) < 130);
}

static void test_random() {
    pyskip_policy p = {};
    p.type          = PYSKIP_POLICY_RANDOM;
    p.rate          = 1.5f;
    CHECK(refused(p, 4));
    p.rate   = 0.25f;
    p.seed   = 7;
    p.warmup = 5;

    const pyskip_rule rule = make(p, 8);
    int               n    = 0;
    for (int32_t pos = 0; pos < 4000; ++pos) {
        pyskip_token token;
        token.index = token.pos = pos;
        const int32_t il        = pos % 8;
        const bool    skip      = pyskip_rule_skips(rule, PYSKIP_SUBLAYER_FFN, il, token);
        CHECK(skip == pyskip_rule_skips(rule, PYSKIP_SUBLAYER_FFN, il, token));
        CHECK(!skip || pos >= 5);
        n += skip;
    }
    CHECK(std::abs(n - 1000) < 120);
}

// Skips if the last block that ran was `data` layers ago, at least, and its similarity is known.
static bool decide_by_distance(const pyskip_decision * d, void * data) {
    CHECK(d->n_layer == 6);
    CHECK((d->il_sim < 0) == std::isnan(d->sim));
    CHECK(d->il_sim < d->il);
    return d->index >= 0 && d->sim == 0.5f && d->il - d->il_sim < *(const int32_t *) data;
}

static void test_custom() {
    pyskip_policy p = {};
    p.type          = PYSKIP_POLICY_CUSTOM;
    CHECK(refused(p, 6)); // nothing to decide by
    int32_t distance = 3;
    p.decide         = decide_by_distance;
    p.decide_data    = &distance;
    CHECK(walk(make(p, 6), 0, 0.5f) == "tsstss");
    CHECK(walk(make(p, 6), 0, 0.4f) == "tttttt");
    CHECK(walk(make(p, 6), -1, 0.5f) == "tttttt"); // prompt, since this policy wants it so
    distance = 2;
    CHECK(walk(make(p, 6), 0, 0.5f) == "tststs");
}

static void test_score() {
    float  weights[23], x[21], xn[21];
    double dot = 0.0, xx = 0.0;
    for (int i = 0; i < 21; ++i) {
        weights[i] = std::sin(1.3f * i);
        x[i]       = 2.0f * std::cos(0.7f * i);
        xn[i]      = std::sin(0.4f * i + 1.0f);
        dot += (double) weights[i] * xn[i];
        xx += (double) x[i] * x[i];
    }
    weights[21] = 0.8f;
    weights[22] = -2.0f;
    CHECK(std::fabs(pyskip_gate_score(weights, x, xn, 21) - (dot + 0.8f * 0.5 * std::log(xx) - 2.0)) < 1e-5);
    const float zero[21] = {};
    CHECK(std::isfinite(pyskip_gate_score(weights, zero, zero, 21)));
}

int main() {
    test_cosine();
    test_profile();
    test_held();
    test_attention();
    test_random();
    test_random_attention();
    test_custom();
    test_score();
    test_static();
    test_adaskip();
    test_prompt();
    test_refused();
    test_similarity();
    return check_result("test-policy");
}
