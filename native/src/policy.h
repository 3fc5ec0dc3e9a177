// The decision, pure: which tokens run a layer's FFN, and its attention. No ggml or llama.cpp types; tests/test-policy.cpp holds it to the
// paper (arXiv 2404.03865, section 3). Called by the operators (gate.cpp, join.cpp) and at the start of a batch
// (state.cpp). Policy off never reaches this file.

#pragma once

#include "census.h"
#include "hold.h"
#include "pyskip.h"

#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

struct pyskip_rule {
    pyskip_policy_type type = PYSKIP_POLICY_OFF;

    // cosine
    float   threshold  = 0.0f;
    int32_t run        = 0;
    int32_t cold_start = 0;
    int32_t cold_end   = 0;
    int32_t warmup     = 0;

    // static: is_static[sublayer][il]
    std::array<std::vector<uint8_t>, 2> is_static;

    // profile (threshold and warmup as above), random
    bool     prefill = false;
    float    rate    = 0.0f;
    uint32_t seed    = 0;

    // profile, prompt, random with one: a gate's score has a say, and what skips has a stand-in; static with one: what skips
    // has a stand-in, if the profile has it. Never looked into here.
    const pyskip_profile * profile = nullptr;

    // profile: the rate is held among generated tokens; `prompt`, if above 0, in prompts
    bool                           hold   = false;
    float                          prompt = 0.0f;
    std::vector<pyskip_hold_point> curve;

    // profile, random: of attention; if the rate is 0, it runs
    float                          attention_rate      = 0.0f;
    float                          attention_threshold = 0.0f; // profile, if no rate is held
    std::vector<pyskip_hold_point> attention_curve;

    // adaskip; prompt: of FFNs
    int32_t n_sublayers = 0;

    // custom
    pyskip_decide decide      = nullptr;
    void *        decide_data = nullptr;

    int32_t n_layer = 0;

    bool has_gates() const { return profile != nullptr; }

    // Whether a score is asked for, or the layer alone says it.
    bool asks_gates() const { return has_gates() && type != PYSKIP_POLICY_STATIC; }

    bool operator==(const pyskip_rule & other) const;
};

// What a policy remembers of one token while it travels through the layers.
struct pyskip_token {
    int32_t index  = -1; // 0, 1, ... among the generated tokens of its sequence; -1: prompt
    int32_t n_left = 0;  // cosine: how many of the next layers are still to be skipped
    int32_t seq_id = 0;
    int32_t pos    = 0;
    int32_t ahead  = 0;   // of a prompt token: how many tokens before the first generated one it lies; 0: nobody knows
    int32_t il_sim = -1;  // custom: the last layer that ran
    float   sim    = NAN; // and cos(x, z) there

    // profile, by sublayer: skip a block if its gate's score is below it
    std::array<float, 2> threshold = { -INFINITY, -INFINITY };

    const pyskip_choice * choice =
        nullptr; // adaskip, prompt: what its prompt chose; nullptr: it is of a prompt, or nothing is
                 // known of its own

    const pyskip_rule * rule = nullptr; // that decides for it
};

// Copy `policy` for a model of n_layer layers into `rule`. False with a line in `error` if it contradicts itself or
// the model; `rule` is then untouched.
PYSKIP_API bool pyskip_rule_init(pyskip_rule & rule, const pyskip_policy & policy, int32_t n_layer,
                                 std::string & error);

// Whether the rule may ever skip the sublayer of layer il.
bool pyskip_rule_covers(const pyskip_rule & rule, pyskip_sublayer sublayer, int32_t il);

// Static: a line that names a layer of its whose sublayer is not among those that can be skipped; empty if there is none.
PYSKIP_API std::string pyskip_rule_check_layers(const pyskip_rule & rule, const std::vector<uint8_t> & ffn,
                                                const std::vector<uint8_t> & attention);

// Whether the rule has to do with attention at all.
bool pyskip_rule_has_attention(const pyskip_rule & rule);

// Is layer il's sublayer skipped for this token?
bool pyskip_rule_skips(const pyskip_rule & rule, pyskip_sublayer sublayer, int32_t il, const pyskip_token & token);

// Does the rule want cos(x, z) of layer il for this token, whose sublayer has run?
bool pyskip_rule_tests(const pyskip_rule & rule, pyskip_sublayer sublayer, int32_t il, const pyskip_token & token);

// Layer il's FFN is done for the token: `skipped` says how; sim is cos(x, z) if pyskip_rule_tests() asked for it.
void pyskip_rule_advance(const pyskip_rule & rule, int32_t il, bool skipped, bool tested, float sim,
                         pyskip_token & token);

// Whether the rule looks at what the token shows, to choose by it. Adaskip, prompt.
bool pyskip_rule_measures(const pyskip_rule & rule, int32_t index);

// Adaskip: the generated tokens that are looked at, too; and from which on what they showed counts.
constexpr int32_t PYSKIP_LATE = 20;

// What is skipped for the index-th generated token of a sequence whose generated tokens begin at `from`.
pyskip_choice_ptr pyskip_rule_choose(const pyskip_rule & rule, const pyskip_census & census, int32_t from,
                                     int32_t index);

// What may happen to a token under the rule.
enum pyskip_need {
    PYSKIP_NEED_NOTHING, // all of its blocks run
    PYSKIP_NEED_JOINS,   // what came before a block decides
    PYSKIP_NEED_GATES,   // a gate's score decides, or is remembered
};

pyskip_need pyskip_rule_needs(const pyskip_rule & rule, const pyskip_token & token);

// The share of its blocks of a kind that is due to be skipped under a rule that holds a rate. 0: none is held, or it runs
// dense, as attention does in prompts.
float pyskip_rule_owes(const pyskip_rule & rule, pyskip_sublayer sublayer, const pyskip_token & token);

// The threshold of a token's gates. -INFINITY: it runs dense. Profile only, and random with one. If the rule holds a rate
// for it, `history` says more.
float pyskip_rule_threshold(const pyskip_rule & rule, pyskip_sublayer sublayer, const pyskip_token & token);

// Is layer il's sublayer skipped for this token, whose gate says `score`? Profile, and random with one. A score that is no
// number runs it. The last layer, which llama.cpp computes for some tokens only, has no part in a rate that is held, and runs.
bool pyskip_rule_gates(const pyskip_rule & rule, pyskip_sublayer sublayer, int32_t il, float score,
                       const pyskip_token & token);
