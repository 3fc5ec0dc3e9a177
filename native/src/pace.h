// The skip rate that a pace to keep needs. Pure: it knows no context and no clock, and is told what tokens took.
// pyskip.h has it as an opaque handle; pyskip.Llama and the server (native/server/turn-pace.cpp) set policies by it.

#pragma once

#include "pyskip.h"

#include <cstdint>

struct pyskip_pace {
    pyskip_pace(double target_tps, double max_skip, double floor);

    // n_tokens took `seconds`. True if the rate has changed.
    bool add(double seconds, int32_t n_tokens);

    // An interval that was cut short does not count.
    void restart();

    void              reset_stats();
    pyskip_pace_stats stats() const;

private:
    void count();
    void move(double error);

    const double target_tps;
    const double max_skip;
    const double floor;
    double       rate; // in force

    // the interval under way
    double  interval = 0.0; // seconds
    int32_t n_tokens = 0;

    double last_error = 0.0;
    bool   is_moving  = false;
    bool   is_short   = false;

    double tps          = 0.0; // of the last interval
    double seconds      = 0.0;
    double held         = 0.0;
    double skip_seconds = 0.0; // rate times seconds
};
