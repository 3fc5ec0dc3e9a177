#include "draft-plan.h"

#include <algorithm>
#include <cmath>

static constexpr double  LOSS        = 0.005; // of all time, that rounds may lose
static constexpr double  LOAN        = 2.0;   // dense steps that they may lose before anything is known
static constexpr double  CREDIT      = 16.0;  // dense steps of what they won, that they may lose again
static constexpr double  WORTH       = 1.02;  // gain below which a round is not worth it
static constexpr double  FORGET      = 0.99;  // of what is known, for each token tried; a set's last 100 tokens count
static constexpr double  FADE        = 0.999; // and for each dense step
static constexpr double  LEAST_KNOWN = 4.0;   // tokens that are always known of a set
static constexpr double  MOST_HOPED  = 0.97;  // share accepted that may be hoped for
static constexpr int32_t IN_A_ROW    = 16;    // rounds; then a dense step tells again what one takes
static constexpr double  NEWEST      = 0.1;   // weight of what took place last, in seconds

pyskip_draft_plan::pyskip_draft_plan(size_t n_sets) : sets(n_sets) {}

static void average(double & seconds, double newest) {
    seconds = seconds > 0.0 ? seconds + NEWEST * (newest - seconds) : newest;
}

void pyskip_draft_plan::took_batch(int32_t n_tokens, double seconds) {
    average(batches[n_tokens], seconds);
    // fewer tokens take no longer: it was a stall, or the machine is faster now
    for (int32_t n = 1; n < n_tokens; ++n) {
        batches[n] = std::min(batches[n], batches[n_tokens]);
    }
}

void pyskip_draft_plan::took_step(size_t set, double seconds) {
    average(sets[set].step, seconds);
}

void pyskip_draft_plan::tried(size_t set, double n_accepted, double n) {
    outcomes &   s    = sets[set];
    const double kept = std::pow(FORGET, n);
    s.n               = s.n * kept + n;
    s.n_accepted      = s.n_accepted * kept + n_accepted;
}

// Straight between what was measured; beyond it, by what a token more took there.
double pyskip_draft_plan::batch_seconds(int32_t n_tokens) const {
    int32_t below = 0;
    int32_t above = 0;
    for (int32_t n = 1; n < (int32_t) batches.size(); ++n) {
        if (batches[n] > 0.0 && n <= n_tokens) {
            below = n;
        }
        if (batches[n] > 0.0 && n >= n_tokens && above == 0) {
            above = n;
        }
    }
    if (below == 0 || above == 0) {
        return std::max(batches[below], batches[above]) * n_tokens / std::max({ below, above, 1 });
    }
    const double part = above > below ? (double) (n_tokens - below) / (above - below) : 0.0;
    return batches[below] + part * (batches[above] - batches[below]);
}

double pyskip_draft_plan::gain(double step_seconds, double accepted) const {
    const double dense = batch_seconds(1);
    double       best  = 0.0;
    double       said  = 1.0; // tokens of a round
    double       reach = 1.0;
    for (int32_t n = 1; n <= PYSKIP_N_DRAFT; ++n) {
        reach *= accepted;
        said += reach;
        const double took = n * step_seconds + batch_seconds(n + 1);
        best              = took > 0.0 ? std::max(best, said * dense / took) : best;
    }
    return best;
}

double pyskip_draft_plan::hoped(const outcomes & set) const {
    const double n = std::max(set.n, LEAST_KNOWN);
    return std::min(MOST_HOPED, (set.n > 0.0 ? set.n_accepted / set.n : 1.0) + 0.5 / std::sqrt(n));
}

// What a round by the set loses if none of its n tokens is accepted is no more than may be lost.
bool pyskip_draft_plan::may_lose(const outcomes & set, int32_t n) const {
    const double dense = batch_seconds(1);
    return n * set.step + batch_seconds(n + 1) - dense <= balance + LOSS * total + LOAN * dense;
}

int32_t pyskip_draft_plan::choose() const {
    if (n_rounds >= IN_A_ROW) {
        return -1;
    }
    int32_t best = -1;
    double  most = WORTH;
    for (size_t i = 0; i < sets.size(); ++i) {
        const double hoped_for = gain(sets[i].step, hoped(sets[i]));
        if (hoped_for > most && may_lose(sets[i], 1)) {
            most = hoped_for;
            best = (int32_t) i;
        }
    }
    return best;
}

bool pyskip_draft_plan::is_worth(int32_t n, double reach) const {
    return reach * batch_seconds(1) > batch_seconds(n + 1) - batch_seconds(n);
}

bool pyskip_draft_plan::goes_on(size_t set, int32_t n, double reach) const {
    if (n >= PYSKIP_N_DRAFT || !may_lose(sets[set], n + 1)) {
        return false;
    }
    const double cost = sets[set].step + batch_seconds(n + 2) - batch_seconds(n + 1);
    return reach * hoped(sets[set]) * batch_seconds(1) > cost;
}

void pyskip_draft_plan::drafted(size_t set, int32_t n_drafted, int32_t n_accepted, bool was_given_up, double seconds) {
    const bool is_whole = n_accepted == n_drafted; // behind a token that is wrong none was tried
    tried(set, n_accepted, n_accepted + (!is_whole || was_given_up));
    const double dense = batch_seconds(1);
    n_rounds++;
    total += seconds;
    balance = std::min(balance + (n_accepted + 1) * dense - seconds, CREDIT * dense);
}

void pyskip_draft_plan::stepped() {
    n_rounds = 0;
    total += batch_seconds(1);
    for (outcomes & set : sets) {
        set.n *= FADE;
        set.n_accepted *= FADE;
    }
}
