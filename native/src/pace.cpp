#include "pace.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <new>

static constexpr double  INTERVAL = 0.25; // seconds between two looks at the rate, at least
static constexpr int32_t N_TOKENS = 2;    // in them, at least: one late token says little
static constexpr double  BAND     = 0.04; // how far off the target the time of a token may lie before anything moves
static constexpr double  GAIN   = 3.0; // rate per second and relative error: skipping all seldom saves half of the time
static constexpr double  MOST   = 0.3; // of the relative error that counts: a stall is not the machine's pace
static constexpr double  ENOUGH = 0.9; // of the target: what counts as held

pyskip_pace::pyskip_pace(double target_tps, double max_skip, double floor)
    : target_tps(target_tps), max_skip(max_skip), floor(floor), rate(floor) {}

void pyskip_pace::restart() {
    interval = 0.0;
    n_tokens = 0;
}

void pyskip_pace::reset_stats() {
    seconds = held = skip_seconds = 0.0;
}

bool pyskip_pace::add(double took, int32_t n) {
    interval += took;
    n_tokens += n;
    if (interval < INTERVAL || n_tokens < N_TOKENS) {
        return false;
    }
    const double old = rate;
    count();
    move(interval * target_tps / n_tokens - 1.0);
    restart();
    return rate != old;
}

void pyskip_pace::count() {
    tps = n_tokens / interval;
    seconds += interval;
    skip_seconds += rate * interval;
    held += tps >= ENOUGH * target_tps ? interval : 0.0;
}

// Integrates the relative error of the time that a token takes. Hysteresis: nothing moves before two intervals in a row lie
// more than BAND off to the same side, and what moves goes on until they lie on different sides. The smaller of the two
// errors counts.
void pyskip_pace::move(double error) {
    const double smaller = std::fabs(error) < std::fabs(last_error) ? error : last_error;
    const double agreed  = error * last_error > 0.0 ? smaller : 0.0;

    last_error = error;
    is_moving  = std::fabs(agreed) > (is_moving ? 0.0 : BAND);
    if (is_moving) {
        const double step = GAIN * std::clamp(agreed, -MOST, MOST) * std::min(interval, 2 * INTERVAL);
        rate              = std::clamp(std::round((rate + step) * 1000.0) / 1000.0, floor, max_skip);
    }
    is_short = rate == max_skip && agreed > BAND;
}

pyskip_pace_stats pyskip_pace::stats() const {
    pyskip_pace_stats s{};
    s.target_tps = target_tps;
    s.tps        = tps;
    s.rate       = rate;
    s.mean_rate  = seconds > 0.0 ? skip_seconds / seconds : rate;
    s.floor      = floor;
    s.max_skip   = max_skip;
    s.held       = seconds > 0.0 ? held / seconds : 0.0;
    s.seconds    = seconds;
    s.is_short   = is_short;
    return s;
}

pyskip_status pyskip_pace_new(double target_tps, double max_skip, double floor, pyskip_pace ** pace, char * error,
                              size_t n_error) {
    if (!(target_tps > 0.0 && target_tps < INFINITY)) {
        std::snprintf(error, n_error, "target_tps is %g, expected tokens/s above 0", target_tps);
        return PYSKIP_STATUS_INVALID;
    }
    if (!(floor >= 0.0 && floor < max_skip && max_skip <= 1.0)) {
        std::snprintf(error, n_error, "max_skip is %g, expected a rate above %g, which skip asks for at least, up to 1",
                      max_skip, floor);
        return PYSKIP_STATUS_INVALID;
    }
    *pace = new (std::nothrow) pyskip_pace(target_tps, max_skip, floor);
    if (!*pace) {
        std::snprintf(error, n_error, "out of memory: close other programs");
        return PYSKIP_STATUS_NO_MEMORY;
    }
    return PYSKIP_STATUS_OK;
}

void pyskip_pace_free(pyskip_pace * pace) {
    delete pace;
}

bool pyskip_pace_add(pyskip_pace * pace, double seconds, int32_t n_tokens) {
    return pace->add(seconds, n_tokens);
}

void pyskip_pace_restart(pyskip_pace * pace) {
    pace->restart();
}

void pyskip_pace_get(const pyskip_pace * pace, pyskip_pace_stats * stats) {
    *stats = pace->stats();
}

void pyskip_pace_reset_stats(pyskip_pace * pace) {
    pace->reset_stats();
}
