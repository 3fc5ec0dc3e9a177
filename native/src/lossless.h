// A model that drafts for itself, after SWIFT (Xia et al., ICLR 2025): some tokens ahead with sublayers skipped, by the
// likeliest each, in the same context and KV cache; then what they left there is removed, and who decodes verifies them in one
// batch, as with any draft. So the text is what it would be without, whatever is skipped. pyskip.h has it as an opaque handle;
// pyskip.Llama (lossless=) and the server (native/server/lossless-draft.h) draft by it.
//
// Which sublayers: those that turn the stream least for the bytes that they read, as measured on a text of its own when it is
// made, with AdaSkip's factor in their place. How many of them, and how far: draft-plan.h.

#pragma once

#include "census.h"
#include "draft-plan.h"
#include "llama.h"
#include "pyskip.h"

#include <cstdint>
#include <string>
#include <vector>

struct pyskip_state;

struct pyskip_lossless {
    // Measures, for about thirty tokens. The context must be empty. Throws std::runtime_error.
    pyskip_lossless(llama_context * ctx, bool always);
    ~pyskip_lossless();

    pyskip_lossless(const pyskip_lossless &)             = delete;
    pyskip_lossless & operator=(const pyskip_lossless &) = delete;

    // Up to n_max tokens that may follow `token`, which was sampled for position `pos` and is not decoded yet.
    int32_t draft(int32_t seq_id, int32_t pos, int32_t token, int32_t n_max, int32_t * tokens);

    // Why it drafts, or why not.
    std::string line() const;

    const bool always; // draft though nothing is gained
    bool       pays = false;

private:
    struct drafted {
        int32_t seq_id       = -1;
        int32_t pos          = 0; // of the token before
        int32_t set          = -1;
        int32_t n            = 0;
        bool    was_given_up = false;
        double  seconds      = 0.0;
        int64_t n_batches    = 0; // of the context, then
    };

    struct sublayer {
        size_t  place;
        double  value; // cos(x, z)
        double  scale; // |z| / |x|
        int64_t bytes;
        int64_t n_tokens;
    };

    void   measure();
    double least_seconds(const std::vector<int32_t> & tokens, int32_t n);
    void   measure_batches(const std::vector<int32_t> & tokens);
    size_t measure_sets(const std::vector<int32_t> & tokens);
    void   make_sets(std::vector<sublayer> & found);
    void   add(std::vector<sublayer> & found) const;
    double gain(size_t set) const;

    std::vector<int32_t> likeliest(const std::vector<int32_t> & tokens, std::vector<sublayer> * found);
    std::vector<int32_t> text() const;

    void learn(int32_t seq_id, int32_t pos);
    bool decode(const int32_t * tokens, int32_t n, int32_t seq_id, int32_t pos);
    void take_back(int32_t seq_id, int32_t pos);

    llama_context * const ctx;
    pyskip_state &        state;
    const int32_t         n_vocab;
    llama_batch           batch;
    int32_t               n_batch; // tokens of a batch, at most

    std::vector<pyskip_choice_ptr> sets; // the more is skipped the later
    pyskip_draft_plan              plan;
    drafted                        last;
    std::string                    why;
};
