// One slot of the server under the policy of the request that it has: what of the slot's cache the request may use again,
// what was decided for each of its tokens, and what is told of that. Upstream's server-context.cpp calls it (patches/);
// only the thread that decodes does.

#pragma once

#include "origin.h"
#include "request.h"
#include "turn-pace.h"

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

struct llama_context;

// What was skipped in the decode of a token: the layers.
struct pyskip_skips {
    std::vector<int32_t> ffn;
    std::vector<int32_t> attention;
};

// A token, and what was skipped in the decode that yielded it.
struct pyskip_piece {
    std::string  text;
    pyskip_skips skips;
};

// What goes with a result to the thread that answers.
struct pyskip_told {
    bool                      is_last             = false;
    bool                      is_traced           = false;
    double                    skip_rate           = 0.0;
    double                    attention_skip_rate = 0.0;
    std::vector<pyskip_piece> pieces;

    std::optional<pyskip_pace_stats> pace;
};

class pyskip_turn {
public:
    // A task begins, whose prompt has n_prompt tokens and ends at position `end`. Cuts n_reused to what of the slot's tokens
    // this task would compute to the same. False with a line in `error`.
    bool begin(llama_context * ctx, int32_t seq_id, const pyskip_request_ptr & request, size_t n_prompt, int32_t end,
               pyskip_origin & origin, size_t & n_reused, std::string & error);

    // A token was sampled; the sequence goes on at position `next`, what was decoded from there on was rejected.
    void sampled(int32_t next);

    // The text that may be sent because of it.
    void said(const std::string & text);

    // No more tokens come; the text that was held back.
    void ended(const std::string & held);

    std::shared_ptr<const pyskip_told> tell(bool is_last);

private:
    struct decision {
        int32_t      pos;
        pyskip_skips skips;
    };

    void take();

    llama_context *      ctx     = nullptr;
    int32_t              seq_id  = 0;
    int32_t              n_layer = 0;
    uint64_t             turn    = 0; // of all of the server's, the last one of this slot
    pyskip_request_ptr   request;
    pyskip_turn_pace     pace;
    std::deque<decision> decided; // of tokens that were not sampled from yet

    int64_t                   n_tokens            = 0; // decoded after the prompt
    int64_t                   n_skipped           = 0; // FFN blocks
    int64_t                   n_attention_skipped = 0;
    std::vector<pyskip_piece> pieces;
};
