#include "sequences.h"

#include <algorithm>

static bool reaches(int32_t p0, int32_t p1, int32_t pos) {
    return pos >= 0 && pos >= p0 && (p1 < 0 || pos <= p1);
}

pyskip_sequences::pyskip_sequences() : other_rule(std::make_shared<pyskip_rule>()) {}

// What was decoded before another mark or under another rule says nothing of what comes, but for what a prompt showed.
void pyskip_sequences::set_from(int32_t seq_id, int32_t pos) {
    pos = std::max(pos, -1);
    for (auto & [id, census] : censuses) {
        if ((seq_id < 0 || id == seq_id) && from(id) != pos) {
            census.forget_generated();
        }
    }
    if (seq_id >= 0) {
        if (from(seq_id) != pos) {
            histories.erase(seq_id);
            marks[seq_id] = pos;
        }
        return;
    }
    for (auto it = histories.begin(); it != histories.end();) {
        it = from(it->first) != pos ? histories.erase(it) : std::next(it);
    }
    marks.clear();
    other = pos;
}

void pyskip_sequences::set_rule(int32_t seq_id, const rule_ptr & next) {
    if (seq_id >= 0) {
        if (!(*rule(seq_id) == *next)) {
            histories.erase(seq_id);
            censuses.erase(seq_id);
        }
        rules[seq_id] = next;
        return;
    }
    for (auto it = histories.begin(); it != histories.end();) {
        it = *rule(it->first) == *next ? std::next(it) : histories.erase(it);
    }
    for (auto it = censuses.begin(); it != censuses.end();) {
        it = *rule(it->first) == *next ? std::next(it) : censuses.erase(it);
    }
    rules.clear();
    other_rule = next;
}

int32_t pyskip_sequences::from(int32_t seq_id) const {
    const auto it = marks.find(seq_id);
    return it == marks.end() ? other : it->second;
}

int32_t pyskip_sequences::index(int32_t seq_id, int32_t pos) const {
    const int32_t first = from(seq_id);
    return first < 0 || pos < first ? -1 : pos - first;
}

const pyskip_sequences::rule_ptr & pyskip_sequences::rule(int32_t seq_id) const {
    const auto it = rules.find(seq_id);
    return it == rules.end() ? other_rule : it->second;
}

bool pyskip_sequences::any_has_gates(int32_t seq_id) const {
    return other_rule->has_gates() || std::any_of(rules.begin(), rules.end(), [&](const auto & entry) {
               return entry.first != seq_id && entry.second->has_gates();
           });
}

pyskip_choice_ptr pyskip_sequences::choice(int32_t seq_id, int32_t pos) const {
    const pyskip_rule & r  = *rule(seq_id);
    const int32_t       i  = index(seq_id, pos);
    const auto          it = censuses.find(seq_id);
    if (i < 0 || it == censuses.end() || !pyskip_rule_measures(r, -1)) {
        return nullptr;
    }
    return pyskip_rule_choose(r, it->second, from(seq_id), i);
}

int32_t pyskip_sequences::span(int32_t seq_id, int32_t pos) const {
    const pyskip_rule & r         = *rule(seq_id);
    const int32_t       first     = from(seq_id);
    const bool          is_prompt = first < 0 || pos < first;
    if (pyskip_rule_measures(r, -1)) {
        return is_prompt                                                                ? -1
               : pyskip_rule_measures(r, PYSKIP_LATE - 1) && pos - first >= PYSKIP_LATE ? first + PYSKIP_LATE
                                                                                        : first;
    }
    if (is_prompt ? first < 0 || r.prompt <= 0.0f : !r.hold) {
        return -1;
    }
    if (is_prompt) { // its warm-up lies in the first span: a batch that ends with it would be small
        return pyskip_hold_span(pos, true);
    }
    const int32_t begin = first + r.warmup; // of what is decided
    return pos < begin ? -1 : begin + pyskip_hold_span(pos - begin, false);
}

void pyskip_sequences::clear() {
    marks.clear();
    other = -1;
    histories.clear();
    censuses.clear();
}

void pyskip_sequences::remove(int32_t seq_id, int32_t p0, int32_t p1) {
    for (auto & [id, both] : histories) {
        for (pyskip_history & history : both) {
            if (seq_id < 0 || id == seq_id) {
                history.remove(p0, p1);
            }
        }
    }
    for (auto & [id, census] : censuses) {
        if (seq_id < 0 || id == seq_id) {
            census.remove(p0, p1);
        }
    }
}

void pyskip_sequences::copy(int32_t seq_id_src, int32_t seq_id_dst, int32_t p0, int32_t p1) {
    if (seq_id_src == seq_id_dst) {
        return;
    }
    marks[seq_id_dst] = from(seq_id_src);
    rules[seq_id_dst] = rule(seq_id_src);
    const auto it     = histories.find(seq_id_src);
    if (it == histories.end()) {
        histories.erase(seq_id_dst);
    } else {
        histories[seq_id_dst] = { it->second[0].part(p0, p1), it->second[1].part(p0, p1) };
    }
    const auto measured = censuses.find(seq_id_src);
    if (measured == censuses.end()) {
        censuses.erase(seq_id_dst);
    } else {
        censuses[seq_id_dst] = measured->second.part(p0, p1);
    }
}

void pyskip_sequences::keep(int32_t seq_id) {
    const int32_t  first = from(seq_id);
    const rule_ptr own   = rule(seq_id);
    const auto     it    = histories.find(seq_id);

    std::array<pyskip_history, 2> both;
    if (it != histories.end()) {
        both = std::move(it->second);
    }
    pyskip_census census;
    const auto    measured = censuses.find(seq_id);
    if (measured != censuses.end()) {
        census = std::move(measured->second);
    }
    clear();
    rules.clear();
    marks[seq_id]     = first;
    rules[seq_id]     = own;
    histories[seq_id] = std::move(both);
    censuses[seq_id]  = std::move(census);
}

void pyskip_sequences::add(int32_t seq_id, int32_t p0, int32_t p1, int32_t delta) {
    const int32_t first = from(seq_id);
    if (reaches(p0, p1, first)) {
        marks[seq_id] = std::max(first + delta, 0);
    }
    const auto it = histories.find(seq_id);
    if (it != histories.end()) {
        for (pyskip_history & history : it->second) {
            history.shift(p0, p1, delta);
        }
    }
    const auto measured = censuses.find(seq_id);
    if (measured != censuses.end()) {
        measured->second.shift(p0, p1, delta);
    }
}

void pyskip_sequences::div(int32_t seq_id, int32_t p0, int32_t p1, int32_t d) {
    const int32_t first = from(seq_id);
    if (d > 0 && reaches(p0, p1, first)) {
        marks[seq_id] = first / d;
    }
    const auto it = histories.find(seq_id);
    if (d > 0 && it != histories.end()) {
        for (pyskip_history & history : it->second) {
            history.divide(p0, p1, d);
        }
    }
    const auto measured = censuses.find(seq_id);
    if (d > 0 && measured != censuses.end()) {
        measured->second.divide(p0, p1, d);
    }
}
