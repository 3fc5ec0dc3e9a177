#include "turn.h"

#include "llama.h"
#include "metrics.h"
#include "model.h"
#include "pyskip.h"

#include <algorithm>
#include <atomic>

// What tells apart what is decided in two prompts. Empty: they run dense. A rate in prompts depends on where they end.
// What a prompt showed is known of the one that the sequence had in its last turn: not of one that the server's cache gave
// back.
static std::string prompt_rule(const pyskip_request & request, uint64_t turn) {
    static std::atomic<uint64_t> n_prompts{ 0 };
    if (request.spec.measures_prompt()) {
        return "measured for " + request.text + " in turn " + std::to_string(turn);
    }
    if (!request.spec.decides_prompt()) {
        return "";
    }
    const bool is_own = request.spec.type == PYSKIP_POLICY_PROFILE && (request.spec.hold || request.spec.prompt.is_set);
    return request.text + (is_own ? " " + std::to_string(++n_prompts) : "");
}

bool pyskip_turn::begin(llama_context * context, int32_t seq, const pyskip_request_ptr & asked, size_t n_prompt,
                        int32_t end, pyskip_origin & origin, size_t & n_reused, std::string & error) {
    static const pyskip_request_ptr dense = std::make_shared<pyskip_request>();
    static std::atomic<uint64_t>    n_turns{ 0 };

    ctx       = context;
    seq_id    = seq;
    n_layer   = pyskip_n_layer(ctx);
    request   = asked ? asked : dense;
    n_tokens  = 0;
    n_skipped = n_attention_skipped = 0;
    take(); // what a task left behind that was cancelled
    decided.clear();
    pieces.clear();

    char                line[4096 + 512] = "";
    const pyskip_policy policy           = pyskip_server_model().policy(request->spec);
    if (pyskip_seq_set_policy(ctx, seq_id, &policy, line, sizeof(line)) != PYSKIP_STATUS_OK) {
        error = line;
        return false;
    }
    pace.begin(ctx, seq_id, *request, policy.warmup);
    pyskip_set_generated_from(ctx, seq_id, end);

    const bool        is_dense  = request->spec.type == PYSKIP_POLICY_OFF;
    const bool        is_paced  = request->pacing.target_tps > 0.0; // at what rates, no prompt is decided by
    const std::string generated = is_dense ? "" : is_paced ? "paced" : request->text;
    std::string       rule      = prompt_rule(*request, turn);
    n_reused                    = origin.n_alike(n_reused, rule);
    turn                        = ++n_turns;
    if (request->spec.measures_prompt()) {
        rule = prompt_rule(*request, turn);
    }
    origin = { n_prompt, rule, generated };
    return true;
}

void pyskip_turn::take() {
    constexpr size_t                N = 64;
    std::vector<pyskip_trace_token> tokens(N);
    std::vector<uint8_t>            skipped(N * n_layer);
    std::vector<uint8_t>            attention(N * n_layer);
    for (size_t n = N; n == N;) {
        n = pyskip_seq_take_trace(ctx, seq_id, N, tokens.data(), skipped.data(), nullptr, attention.data(), nullptr);
        for (size_t i = 0; i < n; ++i) {
            while (!decided.empty() && decided.back().pos >= tokens[i].pos) {
                decided.pop_back(); // decoded again
            }
            decided.push_back({ tokens[i].pos, {} });
            for (int32_t il = 0; il < n_layer; ++il) {
                if (skipped[i * n_layer + il]) {
                    decided.back().skips.ffn.push_back(il);
                }
                if (attention[i * n_layer + il]) {
                    decided.back().skips.attention.push_back(il);
                }
            }
        }
    }
}

void pyskip_turn::sampled(int32_t next) {
    pace.sampled();
    if (decided.empty()) {
        take();
        while (!decided.empty() && decided.back().pos >= next) {
            decided.pop_back();
        }
    }
    pyskip_piece piece;
    if (!decided.empty()) {
        piece.skips = std::move(decided.front().skips);
        decided.pop_front();
        n_tokens++;
        n_skipped += (int64_t) piece.skips.ffn.size();
        n_attention_skipped += (int64_t) piece.skips.attention.size();
        pyskip_server_metrics().add(piece.skips, n_layer);
    }
    if (request->is_traced) {
        pieces.push_back(std::move(piece));
    }
}

void pyskip_turn::said(const std::string & text) {
    if (!pieces.empty()) {
        pieces.back().text = text;
    }
}

void pyskip_turn::ended(const std::string & held) {
    if (held.empty() || !request->is_traced) {
        return;
    }
    if (pieces.empty()) {
        pieces.emplace_back();
    }
    pieces.back().text += held;
}

std::shared_ptr<const pyskip_told> pyskip_turn::tell(bool is_last) {
    auto told       = std::make_shared<pyskip_told>();
    told->is_last   = is_last;
    told->is_traced = request && request->is_traced;
    if (n_tokens > 0) {
        told->skip_rate           = (double) n_skipped / (double) (n_tokens * n_layer);
        told->attention_skip_rate = (double) n_attention_skipped / (double) (n_tokens * n_layer);
    }
    told->pieces = std::move(pieces);
    told->pace   = pace.stats();
    pieces.clear();
    return told;
}
