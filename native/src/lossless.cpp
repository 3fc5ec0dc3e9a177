#include "lossless.h"

#include "access.h"
#include "ggml-backend.h"
#include "ggml.h"
#include "graph-pass.h"
#include "policy.h"
#include "state.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>
#include <numeric>
#include <stdexcept>

static constexpr double  SHARES[]   = { 0.2, 0.35, 0.5 }; // of the bytes of what can be skipped, by set
static constexpr double  LEAST_STEP = 0.5;                // of a dense step, that a step of any set takes
static constexpr double  HOPE       = 0.95;               // share of accepted tokens that nothing comes above
static constexpr int32_t N_TEXT     = 32;                 // tokens that are measured on
static constexpr int32_t N_BEGIN    = 4;                  // the first of them say little
static constexpr int32_t N_TIMES    = 2;                  // that each is timed
static constexpr int32_t SIZES[]    = { 1, 2, 4, PYSKIP_N_DRAFT + 1 };

static const char TEXT[] =
    "The harbour lay quiet that morning, and the first boats had already gone out. Two men were mending a net on the "
    "wall; they talked about the weather, about the price of diesel, and about nothing in particular.";

namespace {

// What is decoded while it lives is a draft.
struct drafting {
    drafting(pyskip_state & state, const std::shared_ptr<const pyskip_rule> & rule, const pyskip_choice_ptr & choice,
             int32_t index)
        : state(state) {
        state.drafting = { rule, choice, index };
    }
    ~drafting() { state.drafting = {}; }

    drafting(const drafting &)             = delete;
    drafting & operator=(const drafting &) = delete;

    pyskip_state & state;
};

struct token_p {
    int32_t token;
    double  p;
};

} // namespace

// The likeliest token and its probability. What lies far below adds nothing.
static token_p likeliest_of(const float * logits, int32_t n_vocab) {
    constexpr float DEPTH = 16.0f;
    const float *   best  = std::max_element(logits, logits + n_vocab);
    double          sum   = 0.0;
    for (int32_t i = 0; i < n_vocab; ++i) {
        if (logits[i] > *best - DEPTH) {
            sum += std::exp(logits[i] - *best);
        }
    }
    return { (int32_t) (best - logits), sum > 0.0 ? 1.0 / sum : 0.0 };
}

static double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Decides by a choice, or measures if there is none.
static std::shared_ptr<const pyskip_rule> rule_of(pyskip_policy_type type, int32_t n_layer) {
    auto rule     = std::make_shared<pyskip_rule>();
    rule->type    = type;
    rule->n_layer = n_layer;
    return rule;
}

pyskip_lossless::pyskip_lossless(llama_context * ctx, bool always)
    : always(always),
      ctx(ctx),
      state(pyskip_state_make(ctx)),
      n_vocab(llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)))),
      batch(llama_batch_init(PYSKIP_N_DRAFT + 1, 0, 1)),
      n_batch((int32_t) std::min({ llama_n_batch(ctx), llama_n_ubatch(ctx), (uint32_t) PYSKIP_N_DRAFT + 1 })),
      plan(std::size(SHARES)) {
    try {
        measure();
    } catch (...) {
        llama_batch_free(batch);
        throw;
    }
}

pyskip_lossless::~pyskip_lossless() {
    llama_batch_free(batch);
}

//
// What is measured when it is made
//

// Of a text that any model knows how to go on with; tokens of any kind where the vocabulary cannot split it.
std::vector<int32_t> pyskip_lossless::text() const {
    const llama_vocab *  vocab = llama_model_get_vocab(llama_get_model(ctx));
    const int32_t        n     = std::min<int32_t>(N_TEXT, (int32_t) llama_n_ctx_seq(ctx));
    std::vector<int32_t> tokens(sizeof(TEXT) + 8);
    int32_t              n_found = 0;
    char                 ignored[512];
    if (pyskip_tokenize(vocab, TEXT, (int32_t) sizeof(TEXT) - 1, tokens.data(), (int32_t) tokens.size(), true, false,
                        &n_found, ignored, sizeof(ignored)) != PYSKIP_STATUS_OK) {
        n_found = 0;
    }
    for (int32_t i = std::max(n_found, 0); i < n; ++i) {
        tokens[i] = (int32_t) ((7919 * (int64_t) i + 31) % n_vocab);
    }
    tokens.resize(n);
    return tokens;
}

bool pyskip_lossless::decode(const int32_t * tokens, int32_t n, int32_t seq_id, int32_t pos) {
    batch.n_tokens = n;
    for (int32_t i = 0; i < n; ++i) {
        batch.token[i]     = tokens[i];
        batch.pos[i]       = pos + i;
        batch.n_seq_id[i]  = 1;
        batch.seq_id[i][0] = seq_id;
        batch.logits[i]    = 1;
    }
    return llama_decode(ctx, batch) == 0;
}

void pyskip_lossless::take_back(int32_t seq_id, int32_t pos) {
    llama_memory_seq_rm(llama_get_memory(ctx), seq_id, pos, -1);
}

// Bytes that a token reads of the weights that only this block needs.
static int64_t block_bytes(const pyskip_block & block) {
    int64_t bytes = 0;
    for (const ggml_tensor * node : block.region) {
        for (const ggml_tensor * src : node->src) {
            if (!src || src->op != GGML_OP_NONE || !src->buffer ||
                ggml_backend_buffer_get_usage(src->buffer) != GGML_BACKEND_BUFFER_USAGE_WEIGHTS) {
                continue;
            }
            const bool    is_experts = node->op == GGML_OP_MUL_MAT_ID && src->ne[2] > 0;
            const int64_t n_used     = is_experts ? std::min(node->src[2]->ne[0], src->ne[2]) : 1;
            bytes += (int64_t) ggml_nbytes(src) * n_used / (is_experts ? src->ne[2] : 1);
        }
    }
    return bytes;
}

// Adds up what the sublayers showed in the batch that was decoded last.
void pyskip_lossless::add(std::vector<sublayer> & found) const {
    for (const pyskip_slot & slot : state.slots) {
        const size_t place = pyskip_place(slot.block.sublayer, slot.block.il);
        auto         it =
            std::find_if(found.begin(), found.end(), [&](const sublayer & other) { return other.place == place; });
        if (it == found.end()) {
            found.push_back({ place, 0.0, 0.0, block_bytes(slot.block), 0 });
            it = found.end() - 1;
        }
        for (size_t t = 0; t < state.tokens.size(); ++t) {
            if (!std::isnan(state.sim(slot.k, (int32_t) t))) {
                it->value += state.sim(slot.k, (int32_t) t);
                it->scale += state.scale(slot.k, (int32_t) t);
                it->n_tokens++;
            }
        }
    }
}

// The likeliest token behind each, from an empty context. Leaves it empty.
std::vector<int32_t> pyskip_lossless::likeliest(const std::vector<int32_t> & tokens, std::vector<sublayer> * found) {
    std::vector<int32_t> out;
    for (int32_t at = 0; at < (int32_t) tokens.size();) {
        const int32_t n = std::min(n_batch, (int32_t) tokens.size() - at);
        if (!decode(tokens.data() + at, n, 0, at)) {
            throw std::runtime_error("a batch of " + std::to_string(n) + " tokens failed");
        }
        for (int32_t i = 0; i < n; ++i) {
            out.push_back(likeliest_of(llama_get_logits_ith(ctx, i), n_vocab).token);
        }
        if (found) {
            add(*found);
        }
        at += n;
    }
    take_back(0, 0);
    return out;
}

// The sublayers that turn the stream least for what they read, until a share of all that can be skipped is reached.
void pyskip_lossless::make_sets(std::vector<sublayer> & found) {
    found.erase(std::remove_if(found.begin(), found.end(), [](const sublayer & s) { return s.n_tokens == 0; }),
                found.end());
    int64_t total = 0;
    for (sublayer & s : found) {
        s.value /= (double) s.n_tokens;
        s.scale /= (double) s.n_tokens;
        total += s.bytes;
    }
    const auto harm = [](const sublayer & s) { return (1.0 - s.value) / (double) std::max<int64_t>(s.bytes, 1); };
    std::stable_sort(found.begin(), found.end(),
                     [&](const sublayer & a, const sublayer & b) { return harm(a) < harm(b); });
    for (const double share : SHARES) {
        auto choice = std::make_shared<pyskip_choice>();
        choice->skipped.assign(2 * (size_t) state.n_layer, 0);
        choice->scale.assign(2 * (size_t) state.n_layer, 1.0f);
        double bytes = 0.0;
        for (const sublayer & s : found) {
            if (bytes >= share * (double) total) {
                break;
            }
            bytes += (double) s.bytes;
            choice->skipped[s.place] = 1;
            choice->scale[s.place]   = (float) s.scale;
        }
        sets.push_back(choice);
    }
}

// Of N_TIMES batches of the first n tokens.
double pyskip_lossless::least_seconds(const std::vector<int32_t> & tokens, int32_t n) {
    double least = std::numeric_limits<double>::infinity();
    for (int32_t i = 0; i < N_TIMES; ++i) {
        if (!decode(tokens.data(), n, 0, 0)) {
            throw std::runtime_error("a batch of " + std::to_string(n) + (n == 1 ? " token" : " tokens") + " failed");
        }
        least = std::min(least, state.timed.seconds);
        take_back(0, 0);
    }
    return least;
}

// Batches as they verify drafts, dense.
void pyskip_lossless::measure_batches(const std::vector<int32_t> & tokens) {
    const drafting guard(state, rule_of(PYSKIP_POLICY_OFF, state.n_layer), nullptr, 0);
    for (const int32_t n : SIZES) {
        if (n <= std::min(n_batch, (int32_t) tokens.size())) {
            plan.took_batch(n, least_seconds(tokens, n));
        }
    }
}

// Each set's step, and how often its likeliest token is the model's. The set that gains most.
size_t pyskip_lossless::measure_sets(const std::vector<int32_t> & tokens) {
    const auto            rule = rule_of(PYSKIP_POLICY_ADASKIP, state.n_layer);
    std::vector<sublayer> found;
    std::vector<int32_t>  dense;
    {
        const drafting guard(state, rule, nullptr, 0); // nothing is skipped, all is looked at
        dense = likeliest(tokens, &found);
    }
    make_sets(found);
    size_t best = 0;
    for (size_t i = 0; i < sets.size(); ++i) {
        const drafting guard(state, rule, sets[i], std::numeric_limits<int32_t>::max());
        plan.took_step(i, std::max(least_seconds(tokens, 1), LEAST_STEP * plan.batch_seconds(1)));
        const std::vector<int32_t> own      = likeliest(tokens, nullptr);
        int32_t                    n_agreed = 0;
        for (size_t t = N_BEGIN; t < own.size(); ++t) {
            n_agreed += own[t] == dense[t];
        }
        plan.tried(i, n_agreed, (double) own.size() - N_BEGIN);
        best = gain(i) > gain(best) ? i : best;
    }
    return best;
}

double pyskip_lossless::gain(size_t set) const {
    return plan.gain(plan.step_seconds(set), plan.accepted(set));
}

void pyskip_lossless::measure() {
    const std::vector<int32_t> tokens = text();
    if (n_batch < 2 || (int32_t) tokens.size() <= N_BEGIN) {
        why = "batches and the context hold less than 2 and " + std::to_string(N_BEGIN + 1) + " tokens";
        return;
    }
    measure_batches(tokens);
    const double step = plan.batch_seconds(1);
    char         shown[256];
    std::snprintf(shown, sizeof(shown), "verifying 4 tokens takes %.2f times as long as decoding one",
                  plan.batch_seconds(4) / step);
    why = shown;
    if (!always && plan.gain(LEAST_STEP * step, HOPE) < 1.0) {
        return; // whatever the sets are like
    }
    const size_t best = measure_sets(tokens);
    pays              = plan.choose() >= 0;
    std::snprintf(
        shown, sizeof(shown),
        ", a step of a draft %.2f times, and %.0f %% of its tokens are right: about %.2f times as fast as dense",
        plan.step_seconds(best) / step, 100.0 * plan.accepted(best), gain(best));
    why += shown;
}

std::string pyskip_lossless::line() const {
    return (pays     ? "drafting for itself: "
            : always ? "drafting for itself, though nothing is gained: "
                     : "running dense, drafts would gain nothing: ") +
           why;
}

//
// Drafts
//

// What became of the last draft, and how long that took, as far as the batch since tells.
void pyskip_lossless::learn(int32_t seq_id, int32_t pos) {
    const drafted done = last;
    last               = {};
    const bool is_next = done.seq_id == seq_id && state.timed.n_batches == done.n_batches + 1 &&
                         state.timed.n_tokens == done.n + 1 && pos > done.pos && pos <= done.pos + done.n + 1;
    if (!is_next) {
        return;
    }
    plan.took_batch(done.n + 1, state.timed.seconds);
    if (done.set < 0) {
        plan.stepped();
    } else {
        plan.drafted((size_t) done.set, done.n, pos - done.pos - 1, done.was_given_up,
                     done.seconds + state.timed.seconds);
    }
}

int32_t pyskip_lossless::draft(int32_t seq_id, int32_t pos, int32_t token, int32_t n_max, int32_t * tokens) {
    if (!pays && !always) {
        return 0;
    }
    learn(seq_id, pos);
    n_max       = std::min({ n_max, n_batch - 1, PYSKIP_N_DRAFT });
    last.seq_id = seq_id;
    last.pos    = pos;
    last.set    = n_max > 0 && !sets.empty() ? plan.choose() : -1;
    if (always && last.set < 0 && n_max > 0 && !sets.empty()) {
        last.set = (int32_t) (state.timed.n_batches % (int64_t) sets.size());
    }
    if (last.set >= 0) {
        const auto          start = std::chrono::steady_clock::now();
        const size_t        set   = (size_t) last.set;
        const llama_vocab * vocab = llama_model_get_vocab(llama_get_model(ctx));
        const drafting      guard(state, rule_of(PYSKIP_POLICY_ADASKIP, state.n_layer), sets[set],
                                  std::numeric_limits<int32_t>::max());
        double              reach = 1.0;
        for (int32_t next = token; last.n < n_max;) {
            const auto began = std::chrono::steady_clock::now();
            if (!decode(&next, 1, seq_id, pos + last.n)) {
                break; // and so does the decode that follows, or it has more room
            }
            const token_p found = likeliest_of(llama_get_logits_ith(ctx, 0), n_vocab);
            plan.took_step(set, seconds_since(began));
            reach *= found.p;
            if (!always && !plan.is_worth(last.n + 1, reach)) {
                last.was_given_up = true;
                break;
            }
            next = tokens[last.n++] = found.token;
            if (llama_vocab_is_eog(vocab, next) || (!always && !plan.goes_on(set, last.n, reach))) {
                break;
            }
        }
        take_back(seq_id, pos);
        last.seconds = seconds_since(start);
    }
    last.n_batches = state.timed.n_batches;
    return last.n;
}
