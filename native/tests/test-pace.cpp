// A pace to keep, on machines that are made up: what tokens take goes in, rates come out. No clock runs.

#include "check.h"
#include "pace.h"

#include <cmath>
#include <cstring>

// Decodes `dense` tokens/s, and takes half of a token's time less if everything is skipped.
struct machine {
    double dense;
    double slow = 1.0;

    // For about so many seconds. Returns the tokens/s of the second half.
    double decode(pyskip_pace & pace, double seconds) const {
        double  now  = 0.0;
        double  late = 0.0;
        int32_t n    = 0;
        while (now < seconds) {
            const double took = slow / dense * (1.0 - 0.5 * pace.stats().rate);
            pace.add(took, 1);
            now += took;
            if (now > seconds / 2) {
                late += took;
                n++;
            }
        }
        return n / late;
    }
};

static void test_slowed_and_free_again() {
    machine     one{ 60.0 };
    pyskip_pace pace(56.0, 0.45, 0.0);
    one.decode(pace, 10.0);
    CHECK(pace.stats().rate == 0.0);
    CHECK(pace.stats().held == 1.0);
    one.slow = 1.2;
    CHECK(std::fabs(one.decode(pace, 10.0) - 56.0) < 0.04 * 56.0);
    CHECK(pace.stats().rate > 0.05);
    const double settled = pace.stats().rate;
    one.decode(pace, 10.0);
    CHECK(pace.stats().rate == settled); // it does not swing
    one.slow = 1.0;
    one.decode(pace, 20.0);
    CHECK(pace.stats().rate == 0.0);
}

static void test_out_of_reach() {
    machine     one{ 60.0 };
    pyskip_pace pace(600.0, 0.3, 0.1);
    CHECK(pace.stats().rate == 0.1);
    one.decode(pace, 10.0);
    CHECK(pace.stats().rate == 0.3);
    CHECK(pace.stats().is_short);
    CHECK(pace.stats().held == 0.0);
    one.dense = 6000.0; // what was wound up must not hold it there
    one.decode(pace, 5.0);
    CHECK(pace.stats().rate == 0.1);
    CHECK(!pace.stats().is_short);
}

static void test_one_stall_moves_nothing() {
    const machine one{ 60.0 };
    pyskip_pace   pace(60.0, 0.45, 0.0);
    one.decode(pace, 10.0);
    CHECK(!pace.add(0.5, 1));
    one.decode(pace, 10.0);
    CHECK(pace.stats().rate == 0.0);
}

// A draft's tokens come together, and take the time of the first.
static void test_tokens_that_come_together() {
    pyskip_pace one(50.0, 0.45, 0.0);
    pyskip_pace many(50.0, 0.45, 0.0);
    for (int i = 0; i < 100; ++i) {
        one.add(0.02, 1);
        many.add(0.08, 1);
        many.add(0.0, 1);
        many.add(0.0, 2);
    }
    CHECK(std::fabs(one.stats().tps - 50.0) < 1e-6);
    CHECK(many.stats().rate == 0.0);
    CHECK(many.stats().held > 0.5);
}

static void test_a_cut_interval_does_not_count() {
    pyskip_pace pace(50.0, 0.45, 0.0);
    for (int i = 0; i < 100; ++i) {
        pace.add(0.24, 1); // four times too slow, and never two in an interval
        pace.restart();
    }
    CHECK(pace.stats().seconds == 0.0);
    CHECK(pace.stats().rate == 0.0);
    pace.add(0.24, 1);
    pace.add(0.24, 1);
    CHECK(pace.stats().seconds == 0.48);
    pace.reset_stats();
    CHECK(pace.stats().seconds == 0.0);
}

static bool is_refused(double target_tps, double max_skip, double floor) {
    char          line[128] = "";
    pyskip_pace * pace      = nullptr;
    const auto    status    = pyskip_pace_new(target_tps, max_skip, floor, &pace, line, sizeof(line));
    const bool    is_made   = pace != nullptr;
    pyskip_pace_free(pace);
    return status == PYSKIP_STATUS_INVALID && std::strstr(line, "expected") && !is_made;
}

static void test_refused() {
    CHECK(is_refused(0.0, 0.3, 0.0));
    CHECK(is_refused(-1.0, 0.3, 0.0));
    CHECK(is_refused(NAN, 0.3, 0.0));
    CHECK(is_refused(INFINITY, 0.3, 0.0));
    CHECK(is_refused(20.0, 0.0, 0.0));
    CHECK(is_refused(20.0, 1.1, 0.0));
    CHECK(is_refused(20.0, NAN, 0.0));
    CHECK(is_refused(20.0, 0.2, 0.2));
    CHECK(!is_refused(20.0, 0.3, -0.0));
}

int main() {
    test_slowed_and_free_again();
    test_out_of_reach();
    test_one_stall_moves_nothing();
    test_tokens_that_come_together();
    test_a_cut_interval_does_not_count();
    test_refused();
    return check_result("pace");
}
