#include "census.h"

#include <algorithm>
#include <cmath>

static bool is_within(int32_t p0, int32_t p1, int32_t pos) {
    return pos >= p0 && (p1 < 0 || pos < p1);
}

void pyskip_census::append(int32_t pos, bool is_prompt, const std::vector<pyskip_measure> & measures) {
    if (n_place != measures.size()) {
        entries.clear();
        all.clear();
        n_place = measures.size();
    }
    entries.push_back({ pos, is_prompt });
    all.insert(all.end(), measures.begin(), measures.end());
    late.from = -1;
    if (is_prompt) {
        early.from = -1;
    }
}

// In the order in which they were decoded, whatever the batches: sums do not depend on these.
std::vector<pyskip_census::mean> pyskip_census::means(bool is_prompt, int32_t from) const {
    std::vector<mean> out(n_place);
    for (size_t i = 0; i < entries.size(); ++i) {
        if (entries[i].is_prompt != is_prompt || (is_prompt ? entries[i].pos >= from : entries[i].pos < from)) {
            continue;
        }
        for (size_t p = 0; p < n_place; ++p) {
            const pyskip_measure & m = all[i * n_place + p];
            if (!std::isnan(m.value)) {
                out[p].value += m.value;
                out[p].scale += m.scale;
                out[p].n_tokens++;
            }
        }
    }
    for (mean & m : out) {
        if (m.n_tokens > 0) {
            m.value /= (double) m.n_tokens;
            m.scale /= (double) m.n_tokens;
        }
    }
    return out;
}

// The places from `begin` on in steps that were measured, those whose value times `sign` is greatest first.
template <typename M>
static std::vector<size_t> ranked(const std::vector<M> & means, size_t begin, size_t step, double sign) {
    std::vector<size_t> order;
    for (size_t p = begin; p < means.size(); p += step) {
        if (means[p].n_tokens > 0) {
            order.push_back(p);
        }
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return sign * means[a].value > sign * means[b].value; });
    return order;
}

static std::shared_ptr<pyskip_choice> choose_nothing(size_t n_place) {
    auto choice = std::make_shared<pyskip_choice>();
    choice->skipped.assign(n_place, 0);
    choice->scale.assign(n_place, 1.0f);
    return choice;
}

pyskip_choice_ptr pyskip_census::most_similar(int32_t n, int32_t from, bool is_late) const {
    memo & made = is_late ? late : early;
    if (made.from == from && made.n == n) {
        return made.choice;
    }
    made = { nullptr, n, from };

    const std::vector<mean> prompt = means(true, from);
    std::vector<size_t>     order  = ranked(prompt, 0, 1, 1.0);
    if (order.empty()) {
        return nullptr;
    }
    order.resize(std::min(order.size(), (size_t) n));

    const auto choice = choose_nothing(n_place);
    for (const size_t p : order) {
        choice->skipped[p] = 1;
        choice->scale[p]   = (float) prompt[p].scale;
    }
    if (is_late) {
        const std::vector<mean> generated = means(false, from);
        for (size_t p = pyskip_place(PYSKIP_SUBLAYER_FFN, 0); p < n_place; p += 2) {
            const bool is_alike = generated[p].n_tokens > 0 && generated[p].value >= prompt[order.back()].value;
            if (!choice->skipped[p] && is_alike) {
                choice->skipped[p] = 1;
                choice->scale[p]   = (float) generated[p].scale;
            }
        }
    }
    made.choice = choice;
    return choice;
}

pyskip_choice_ptr pyskip_census::least_scored(int32_t n, int32_t from) const {
    if (early.from == from && early.n == n) {
        return early.choice;
    }
    early = { nullptr, n, from };

    std::vector<size_t> order = ranked(means(true, from), pyskip_place(PYSKIP_SUBLAYER_FFN, 0), 2, -1.0);
    if (order.empty()) {
        return nullptr;
    }
    order.resize(std::min(order.size(), (size_t) n));

    const auto choice = choose_nothing(n_place);
    for (const size_t p : order) {
        choice->skipped[p] = 1;
    }
    early.choice = choice;
    return choice;
}

template <typename F> void pyskip_census::keep_if(F is_kept) {
    size_t n = 0;
    for (size_t i = 0; i < entries.size(); ++i) {
        if (!is_kept(entries[i])) {
            continue;
        }
        if (n != i) {
            entries[n]      = entries[i];
            const auto from = all.begin() + (ptrdiff_t) (i * n_place);
            std::copy(from, from + (ptrdiff_t) n_place, all.begin() + (ptrdiff_t) (n * n_place));
        }
        ++n;
    }
    if (n < entries.size()) {
        entries.resize(n);
        all.resize(n * n_place);
        early.from = late.from = -1;
    }
}

void pyskip_census::forget_generated() {
    keep_if([](const entry & e) { return e.is_prompt; });
}

void pyskip_census::remove(int32_t p0, int32_t p1) {
    if (!entries.empty() && entries.back().pos >= p0) {
        keep_if([&](const entry & e) { return !is_within(p0, p1, e.pos); });
    }
}

void pyskip_census::shift(int32_t p0, int32_t p1, int32_t delta) {
    for (entry & e : entries) {
        e.pos += is_within(p0, p1, e.pos) ? delta : 0;
    }
    early.from = late.from = -1;
}

void pyskip_census::divide(int32_t p0, int32_t p1, int32_t d) {
    for (entry & e : entries) {
        e.pos /= is_within(p0, p1, e.pos) ? d : 1;
    }
    early.from = late.from = -1;
}

pyskip_census pyskip_census::part(int32_t p0, int32_t p1) const {
    pyskip_census copy = *this;
    copy.keep_if([&](const entry & e) { return is_within(std::max(p0, 0), p1, e.pos); });
    return copy;
}
