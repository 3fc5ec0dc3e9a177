// A model that drafts for itself (pyskip.h: pyskip_lossless), as one of upstream's kinds of speculative decoding: upstream's
// server asks for drafts, verifies them and counts them. Included by common/speculative.cpp, behind the class that it derives
// from (patches/); made when the model is loaded, if the command line says --lossless.

#pragma once

#include "pyskip.h"
#include "settings.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <vector>

#include <unistd.h>

struct pyskip_lossless_deleter {
    void operator()(pyskip_lossless * lossless) const { pyskip_lossless_free(lossless); }
};

using pyskip_lossless_ptr = std::unique_ptr<pyskip_lossless, pyskip_lossless_deleter>;

struct pyskip_lossless_impl : public common_speculative_impl {
    pyskip_lossless_impl(pyskip_lossless_ptr drafter, uint32_t n_seq)
        : common_speculative_impl(COMMON_SPECULATIVE_TYPE_NONE, n_seq, PYSKIP_N_DRAFT), drafter(std::move(drafter)) {}

    void begin(llama_seq_id, const llama_tokens &) override {}

    bool process(const common_batch &) override { return true; }

    // For a request that is alone: with several a batch has rows enough, and what a step costs is shared.
    void draft(common_speculative_draft_params_vec & dparams) override {
        const auto is_drafting = [](const common_speculative_draft_params & dp) { return dp.drafting; };
        if (std::count_if(dparams.begin(), dparams.end(), is_drafting) != 1) {
            return;
        }
        const auto     one    = std::find_if(dparams.begin(), dparams.end(), is_drafting);
        llama_tokens & result = *one->result;
        result.resize(PYSKIP_N_DRAFT);
        result.resize(pyskip_lossless_draft(drafter.get(), (int32_t) (one - dparams.begin()), one->pos0, one->id_last,
                                            std::min(one->n_max, PYSKIP_N_DRAFT), result.data()));
    }

    void accept(llama_seq_id, uint16_t, bool) override {}

    pyskip_lossless_ptr drafter;
};

// Tokens of a draft at most, 0 without --lossless.
inline int32_t pyskip_lossless_n_max() {
    return pyskip_server_settings().lossless.empty() ? 0 : PYSKIP_N_DRAFT;
}

// Ends the process with a line if the model cannot.
inline void pyskip_lossless_add(std::vector<std::unique_ptr<common_speculative_impl>> & impls, llama_context * ctx,
                                uint32_t n_seq) {
    if (pyskip_lossless_n_max() == 0) {
        return;
    }
    char              line[4096 + 512];
    pyskip_lossless * made = nullptr;
    if (pyskip_lossless_new(ctx, pyskip_server_settings().lossless == "always", &made, line, sizeof(line)) !=
        PYSKIP_STATUS_OK) {
        std::fprintf(stderr, "pyskip: %s\n", line);
        _exit(1);
    }
    pyskip_lossless_ptr drafter(made);
    const bool          pays = pyskip_lossless_pays(made, line, sizeof(line));
    std::fprintf(stderr, "pyskip: %s\n", line);
    if (pays) {
        impls.push_back(std::make_unique<pyskip_lossless_impl>(std::move(drafter), n_seq));
    }
}
