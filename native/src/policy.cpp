#include "policy.h"

#include <algorithm>
#include <cmath>
#include <limits>

static bool fail(std::string & error, const std::string & line) {
    error = line;
    return false;
}

static bool mark_layers(std::vector<uint8_t> & marked, const int32_t * layers, size_t n_layers, int32_t n_layer,
                        std::string & error) {
    marked.assign(n_layer, 0);
    for (size_t i = 0; i < n_layers; ++i) {
        const int32_t il = layers[i];
        if (il < 0 || il >= n_layer) {
            return fail(error, "static names layer " + std::to_string(il) + ", but the model has layers 0 to " +
                                   std::to_string(n_layer - 1) + ": name layers of that range");
        }
        marked[il] = 1;
    }
    return true;
}

static bool init_static(pyskip_rule & rule, const pyskip_policy & policy, int32_t n_layer, std::string & error) {
    rule.profile             = policy.bare ? nullptr : policy.profile;
    rule.threshold           = -INFINITY;
    const size_t n_ffn       = policy.layers ? policy.n_layers : 0;
    const size_t n_attention = policy.attention_layers ? policy.n_attention_layers : 0;
    if (n_ffn + n_attention == 0) {
        return fail(error, "static names no layer: give at least one, as in static:5,14,25 or static:attn=12+13");
    }
    return mark_layers(rule.is_static[PYSKIP_SUBLAYER_FFN], policy.layers, n_ffn, n_layer, error) &&
           mark_layers(rule.is_static[PYSKIP_SUBLAYER_ATTENTION], policy.attention_layers, n_attention, n_layer, error);
}

static bool init_cosine(pyskip_rule & rule, const pyskip_policy & policy, int32_t n_layer, std::string & error) {
    if (!std::isfinite(policy.threshold)) {
        return fail(error, "cosine threshold is not a finite number: give one between -1 and 1 (2 never skips)");
    }
    if (policy.run < 0 || policy.warmup < 0 || policy.cold_start < 0 || policy.cold_end < 0) {
        return fail(error, "cosine run, warmup, cold_start and cold_end count layers or tokens: give 0 or more");
    }
    if ((int64_t) policy.cold_start + policy.cold_end >= n_layer) {
        return fail(error, "cosine cold_start " + std::to_string(policy.cold_start) + " and cold_end " +
                               std::to_string(policy.cold_end) + " leave none of the model's " +
                               std::to_string(n_layer) + " layers to skip: lower them");
    }
    rule.threshold  = policy.threshold;
    rule.run        = policy.run;
    rule.cold_start = policy.cold_start;
    rule.cold_end   = policy.cold_end;
    rule.warmup     = policy.warmup;
    return true;
}

static bool init_attention_rate(pyskip_rule & rule, const pyskip_policy & policy, std::string & error) {
    if (!(policy.attention_rate >= 0.0f && policy.attention_rate <= 1.0f)) {
        return fail(error, "the rate of attention is out of range: give one from 0 to 1");
    }
    rule.attention_rate = policy.attention_rate;
    return true;
}

static bool init_profile(pyskip_rule & rule, const pyskip_policy & policy, std::string & error) {
    if (policy.profile == nullptr) {
        return fail(error, "the profile policy has no profile: load one");
    }
    if (std::isnan(policy.threshold) || policy.warmup < 0) {
        return fail(error,
                    "profile threshold is not a number or warmup is below 0: give a number and 0 or more tokens");
    }
    if (!(policy.prompt >= 0.0f && policy.prompt <= 1.0f)) {
        return fail(error, "profile prompt is out of range: give a rate from 0 to 1");
    }
    if (policy.hold && !(policy.rate >= 0.0f && policy.rate <= 1.0f)) {
        return fail(error, "profile rate is out of range: give a rate from 0 to 1 to hold");
    }
    if (std::isnan(policy.attention_threshold)) {
        return fail(error, "profile attention_threshold is not a number: give one");
    }
    rule.threshold           = policy.threshold;
    rule.warmup              = policy.warmup;
    rule.prefill             = policy.prefill;
    rule.prompt              = policy.prompt;
    rule.hold                = policy.hold;
    rule.rate                = policy.hold ? policy.rate : 0.0f;
    rule.profile             = policy.profile;
    rule.attention_threshold = policy.attention_threshold;
    return init_attention_rate(rule, policy, error);
}

static bool init_random(pyskip_rule & rule, const pyskip_policy & policy, std::string & error) {
    if (!(policy.rate >= 0.0f && policy.rate <= 1.0f) || policy.warmup < 0) {
        return fail(error, "random rate or warmup is out of range: give a rate from 0 to 1 and 0 or more tokens");
    }
    if (std::isnan(policy.threshold)) {
        return fail(error, "random threshold is not a number: give one, INFINITY for any score");
    }
    rule.profile   = policy.profile;
    rule.rate      = policy.rate;
    rule.seed      = policy.seed;
    rule.warmup    = policy.warmup;
    rule.threshold = policy.threshold;
    return init_attention_rate(rule, policy, error);
}

static bool init_adaskip(pyskip_rule & rule, const pyskip_policy & policy, int32_t n_layer, std::string & error) {
    const int64_t most = 2 * ((int64_t) n_layer - 1) - 1;
    if (policy.n_sublayers < 1 || policy.n_sublayers > most) {
        return fail(error, "adaskip n is " + std::to_string(policy.n_sublayers) + ", expected 1 to " +
                               std::to_string(most) + ": the last of the model's " + std::to_string(n_layer) +
                               " layers always runs, and of the others one sublayer");
    }
    rule.n_sublayers = policy.n_sublayers;
    return true;
}

static bool init_prompt(pyskip_rule & rule, const pyskip_policy & policy, int32_t n_layer, std::string & error) {
    if (policy.profile == nullptr) {
        return fail(error, "the prompt policy has no profile: load one");
    }
    if (!(policy.rate >= 0.0f && policy.rate <= 1.0f)) {
        return fail(error, "prompt rate is out of range: give a rate from 0 to 1");
    }
    rule.profile     = policy.profile;
    rule.rate        = policy.rate;
    rule.threshold   = -INFINITY;
    rule.n_sublayers = (int32_t) std::lround((double) policy.rate * n_layer);
    return true;
}

static bool init_custom(pyskip_rule & rule, const pyskip_policy & policy, std::string & error) {
    if (policy.decide == nullptr) {
        return fail(error, "the custom policy has no function to decide by: give one");
    }
    rule.decide      = policy.decide;
    rule.decide_data = policy.decide_data;
    return true;
}

bool pyskip_rule_init(pyskip_rule & rule, const pyskip_policy & policy, int32_t n_layer, std::string & error) {
    pyskip_rule next;
    next.n_layer = n_layer;

    switch (policy.type) {
        case PYSKIP_POLICY_OFF: break;
        case PYSKIP_POLICY_STATIC:
            if (!init_static(next, policy, n_layer, error)) {
                return false;
            }
            break;
        case PYSKIP_POLICY_COSINE:
            if (!init_cosine(next, policy, n_layer, error)) {
                return false;
            }
            break;
        case PYSKIP_POLICY_PROFILE:
            if (!init_profile(next, policy, error)) {
                return false;
            }
            break;
        case PYSKIP_POLICY_RANDOM:
            if (!init_random(next, policy, error)) {
                return false;
            }
            break;
        case PYSKIP_POLICY_ADASKIP:
            if (!init_adaskip(next, policy, n_layer, error)) {
                return false;
            }
            break;
        case PYSKIP_POLICY_PROMPT:
            if (!init_prompt(next, policy, n_layer, error)) {
                return false;
            }
            break;
        case PYSKIP_POLICY_CUSTOM:
            if (!init_custom(next, policy, error)) {
                return false;
            }
            break;
        default:
            return fail(error,
                        "policy type " + std::to_string(policy.type) + " is unknown: give one of pyskip_policy_type");
    }
    next.type = (pyskip_policy_type) policy.type;
    rule      = std::move(next);
    return true;
}

bool pyskip_rule::operator==(const pyskip_rule & other) const {
    const auto same_point = [](const pyskip_hold_point & a, const pyskip_hold_point & b) {
        return a.rate == b.rate && a.threshold == b.threshold;
    };
    return type == other.type && threshold == other.threshold && run == other.run && cold_start == other.cold_start &&
           cold_end == other.cold_end && warmup == other.warmup && is_static == other.is_static &&
           prefill == other.prefill && rate == other.rate && seed == other.seed && profile == other.profile &&
           hold == other.hold && prompt == other.prompt && decide == other.decide && decide_data == other.decide_data &&
           n_layer == other.n_layer && n_sublayers == other.n_sublayers && attention_rate == other.attention_rate &&
           attention_threshold == other.attention_threshold &&
           std::equal(curve.begin(), curve.end(), other.curve.begin(), other.curve.end(), same_point) &&
           std::equal(attention_curve.begin(), attention_curve.end(), other.attention_curve.begin(),
                      other.attention_curve.end(), same_point);
}

bool pyskip_rule_has_attention(const pyskip_rule & rule) {
    if (rule.type == PYSKIP_POLICY_ADASKIP || rule.attention_rate > 0.0f) {
        return true;
    }
    const auto & layers = rule.is_static[PYSKIP_SUBLAYER_ATTENTION];
    return std::find(layers.begin(), layers.end(), 1) != layers.end();
}

bool pyskip_rule_covers(const pyskip_rule & rule, pyskip_sublayer sublayer, int32_t il) {
    if (rule.type == PYSKIP_POLICY_STATIC) {
        return rule.is_static[sublayer][il] != 0;
    }
    if (rule.type == PYSKIP_POLICY_ADASKIP) {
        return il + 1 < rule.n_layer; // llama.cpp computes the last one for some tokens only
    }
    if (sublayer == PYSKIP_SUBLAYER_ATTENTION) {
        return rule.attention_rate > 0.0f && il + 1 < rule.n_layer; // profile, random
    }
    switch (rule.type) {
        case PYSKIP_POLICY_COSINE: return il >= rule.cold_start && il < rule.n_layer - rule.cold_end;
        case PYSKIP_POLICY_PROFILE: // what its profile covers
        case PYSKIP_POLICY_PROMPT:
        case PYSKIP_POLICY_RANDOM:
        case PYSKIP_POLICY_CUSTOM: return true;
        default: return false;
    }
}

std::string pyskip_rule_check_layers(const pyskip_rule & rule, const std::vector<uint8_t> & ffn,
                                     const std::vector<uint8_t> & attention) {
    for (int32_t il = 0; rule.type == PYSKIP_POLICY_STATIC && il < rule.n_layer; ++il) {
        const bool no_ffn = rule.is_static[PYSKIP_SUBLAYER_FFN][il] && !ffn[il];
        if (no_ffn || (rule.is_static[PYSKIP_SUBLAYER_ATTENTION][il] && !attention[il])) {
            return "static names layer " + std::to_string(il) + ", which has no " + (no_ffn ? "FFN" : "attention") +
                   " that can be skipped: leave it out";
        }
    }
    return "";
}

static float rate_of(const pyskip_rule & rule, pyskip_sublayer sublayer) {
    return sublayer == PYSKIP_SUBLAYER_ATTENTION ? rule.attention_rate : rule.rate;
}

// A coin that lands the same way for a token and a sublayer however the tokens are batched.
static bool coin_skips(const pyskip_rule & rule, pyskip_sublayer sublayer, int32_t il, const pyskip_token & token) {
    uint64_t h = rule.seed;
    for (const int32_t part : { token.seq_id, token.pos, sublayer == PYSKIP_SUBLAYER_ATTENTION ? ~il : il }) {
        h = (h ^ (uint64_t) (uint32_t) part) + 0x9e3779b97f4a7c15u; // a round of splitmix64 each
        h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9u;
        h = (h ^ (h >> 27)) * 0x94d049bb133111ebu;
        h ^= h >> 31;
    }
    return (double) (h >> 11) * 0x1.0p-53 < rate_of(rule, sublayer);
}

bool pyskip_rule_skips(const pyskip_rule & rule, pyskip_sublayer sublayer, int32_t il, const pyskip_token & token) {
    if (!pyskip_rule_covers(rule, sublayer, il) || rule.type == PYSKIP_POLICY_PROFILE) {
        return false;
    }
    if (rule.type == PYSKIP_POLICY_ADASKIP || rule.type == PYSKIP_POLICY_PROMPT) {
        return token.choice && token.choice->skipped[pyskip_place(sublayer, il)];
    }
    if (rule.type == PYSKIP_POLICY_RANDOM) {
        return token.index >= 0 && token.index >= rule.warmup && coin_skips(rule, sublayer, il, token);
    }
    if (rule.type == PYSKIP_POLICY_CUSTOM) {
        const pyskip_decision decision = { il,          rule.n_layer, token.seq_id, token.pos,
                                           token.index, token.il_sim, token.sim };
        return rule.decide(&decision, rule.decide_data);
    }
    return rule.type == PYSKIP_POLICY_STATIC || token.n_left > 0;
}

bool pyskip_rule_tests(const pyskip_rule & rule, pyskip_sublayer sublayer, int32_t il, const pyskip_token & token) {
    if (rule.type == PYSKIP_POLICY_CUSTOM) {
        return sublayer == PYSKIP_SUBLAYER_FFN;
    }
    if (rule.type == PYSKIP_POLICY_ADASKIP) {
        return pyskip_rule_measures(rule, token.index) && pyskip_rule_covers(rule, sublayer, il);
    }
    return rule.type == PYSKIP_POLICY_COSINE && token.index >= 0 && token.index >= rule.warmup &&
           pyskip_rule_covers(rule, sublayer, il);
}

void pyskip_rule_advance(const pyskip_rule & rule, int32_t il, bool skipped, bool tested, float sim,
                         pyskip_token & token) {
    if (rule.type == PYSKIP_POLICY_CUSTOM && tested) {
        token.il_sim = il;
        token.sim    = sim;
    }
    if (rule.type != PYSKIP_POLICY_COSINE) {
        return;
    }
    if (skipped) {
        token.n_left -= 1;
    } else if (tested && sim >= rule.threshold) {
        token.n_left = rule.run > 0 ? rule.run : std::numeric_limits<int32_t>::max();
    }
}

bool pyskip_rule_measures(const pyskip_rule & rule, int32_t index) {
    return rule.type == PYSKIP_POLICY_ADASKIP ? index < PYSKIP_LATE : rule.type == PYSKIP_POLICY_PROMPT && index < 0;
}

pyskip_choice_ptr pyskip_rule_choose(const pyskip_rule & rule, const pyskip_census & census, int32_t from,
                                     int32_t index) {
    return rule.type == PYSKIP_POLICY_ADASKIP ? census.most_similar(rule.n_sublayers, from, index >= PYSKIP_LATE)
                                              : census.least_scored(rule.n_sublayers, from);
}

pyskip_need pyskip_rule_needs(const pyskip_rule & rule, const pyskip_token & token) {
    const bool is_generated = token.index >= 0;
    switch (rule.type) {
        case PYSKIP_POLICY_STATIC: return rule.has_gates() ? PYSKIP_NEED_GATES : PYSKIP_NEED_JOINS;
        case PYSKIP_POLICY_CUSTOM: return PYSKIP_NEED_JOINS;
        case PYSKIP_POLICY_COSINE:
            return is_generated && token.index >= rule.warmup ? PYSKIP_NEED_JOINS : PYSKIP_NEED_NOTHING;
        case PYSKIP_POLICY_ADASKIP:
            return token.choice || pyskip_rule_measures(rule, token.index) ? PYSKIP_NEED_JOINS : PYSKIP_NEED_NOTHING;
        case PYSKIP_POLICY_PROMPT:
            return token.choice || pyskip_rule_measures(rule, token.index) ? PYSKIP_NEED_GATES : PYSKIP_NEED_NOTHING;
        case PYSKIP_POLICY_PROFILE:
        case PYSKIP_POLICY_RANDOM:
            if (rule.has_gates()) { // the warm-up's scores are shown, and say where a held rate begins
                const bool is_scored = is_generated && !(rule.hold && rule.rate == 0.0f && rule.attention_rate == 0.0f);
                return is_scored || token.threshold[PYSKIP_SUBLAYER_FFN] > -INFINITY ? PYSKIP_NEED_GATES
                                                                                     : PYSKIP_NEED_NOTHING;
            }
            return is_generated && token.index >= rule.warmup ? PYSKIP_NEED_JOINS : PYSKIP_NEED_NOTHING;
        default: return PYSKIP_NEED_NOTHING;
    }
}

float pyskip_rule_owes(const pyskip_rule & rule, pyskip_sublayer sublayer, const pyskip_token & token) {
    if (token.index >= 0) {
        return rule.hold ? pyskip_hold_generated(rate_of(rule, sublayer), token.index, rule.warmup) : 0.0f;
    }
    return sublayer == PYSKIP_SUBLAYER_FFN && token.ahead > 0
               ? pyskip_hold_prompt(rule.prompt, token.pos, token.ahead, rule.warmup)
               : 0.0f;
}

static float attention_threshold(const pyskip_rule & rule, const pyskip_token & token) {
    if (rule.attention_rate <= 0.0f || token.index < 0 || token.index < rule.warmup) {
        return -INFINITY;
    }
    if (rule.type == PYSKIP_POLICY_RANDOM) {
        return rule.threshold;
    }
    return rule.hold ? pyskip_hold_start(rule.attention_curve, rule.attention_rate) : rule.attention_threshold;
}

float pyskip_rule_threshold(const pyskip_rule & rule, pyskip_sublayer sublayer, const pyskip_token & token) {
    const bool is_prompt = token.index < 0;
    if (!rule.has_gates()) {
        return -INFINITY;
    }
    if (sublayer == PYSKIP_SUBLAYER_ATTENTION) {
        return attention_threshold(rule, token);
    }
    if (is_prompt && rule.prompt > 0.0f && token.ahead > 0) {
        return pyskip_hold_start(rule.curve, pyskip_rule_owes(rule, sublayer, token));
    }
    const int32_t place = !is_prompt ? token.index : rule.prefill ? token.pos : -1;
    if (place < 0 || place < rule.warmup) {
        return -INFINITY;
    }
    return rule.hold && !is_prompt ? pyskip_hold_start(rule.curve, rule.rate) : rule.threshold;
}

bool pyskip_rule_gates(const pyskip_rule & rule, pyskip_sublayer sublayer, int32_t il, float score,
                       const pyskip_token & token) {
    if (rule.type == PYSKIP_POLICY_PROMPT) {
        return pyskip_rule_skips(rule, sublayer, il, token);
    }
    const bool is_held = token.index >= 0 ? rule.hold : rule.prompt > 0.0f && token.ahead > 0;
    if (!rule.has_gates() || !(score < token.threshold[sublayer]) || (is_held && il + 1 == rule.n_layer)) {
        return false;
    }
    return rule.type == PYSKIP_POLICY_PROFILE || pyskip_rule_skips(rule, sublayer, il, token);
}
