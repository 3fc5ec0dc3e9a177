// What is known of each sequence: which of its tokens are generated, by the caller's word; the rule that decides for it; and
// what was decoded of it, for a rate that holds and for what its prompt chooses. Positions decide, never batches: so all of it must move with llama.cpp's
// own operations on sequences, which the hooks report (hooks.cpp). No ggml or llama.cpp types.

#pragma once

#include "hold.h"
#include "policy.h"

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

class pyskip_sequences {
public:
    using rule_ptr = std::shared_ptr<const pyskip_rule>;

    pyskip_sequences();

    // Positions >= pos are generated; pos < 0 takes the mark back. seq_id < 0: every sequence, also those to come.
    void set_from(int32_t seq_id, int32_t pos);

    // Decide by this rule. seq_id < 0: every sequence, also those to come.
    void set_rule(int32_t seq_id, const rule_ptr & rule);

    // The first generated position, -1 if there is no mark.
    int32_t from(int32_t seq_id) const;

    // 0, 1, ... among the generated tokens of the sequence; -1: prompt.
    int32_t index(int32_t seq_id, int32_t pos) const;

    const rule_ptr & rule(int32_t seq_id) const;

    // Whether gates decide for any sequence but seq_id.
    bool any_has_gates(int32_t seq_id) const;

    // Of what was decided for its sublayers of a kind. Made if there is none.
    pyskip_history & history(int32_t seq_id, pyskip_sublayer sublayer) { return histories[seq_id][sublayer]; }

    // What a sequence's token showed.
    void measure(int32_t seq_id, int32_t pos, bool is_prompt, const std::vector<pyskip_measure> & measures) {
        censuses[seq_id].append(pos, is_prompt, measures);
    }

    // What its prompt chose for the sequence's token; nullptr if its rule asks no prompt, or nothing is known.
    pyskip_choice_ptr choice(int32_t seq_id, int32_t pos) const;

    // The first position of the span that a token of the sequence lies in, if what is decided there depends on what was
    // decoded before it; else -1.
    int32_t span(int32_t seq_id, int32_t pos) const;

    // What llama_memory_* does to the positions; p0 < 0 means from 0, p1 < 0 to the end.
    void clear();
    void remove(int32_t seq_id, int32_t p0, int32_t p1);
    void copy(int32_t seq_id_src, int32_t seq_id_dst, int32_t p0, int32_t p1);
    void keep(int32_t seq_id);
    void add(int32_t seq_id, int32_t p0, int32_t p1, int32_t delta);
    void div(int32_t seq_id, int32_t p0, int32_t p1, int32_t d);

private:
    std::map<int32_t, int32_t> marks;      // seq_id -> first generated position, -1: none
    int32_t                    other = -1; // of the sequences without an entry

    std::map<int32_t, rule_ptr> rules;
    rule_ptr                    other_rule;

    std::map<int32_t, std::array<pyskip_history, 2>> histories; // by sublayer
    std::map<int32_t, pyskip_census>                 censuses;
};
