// What a model gains by drafting for itself, on machines that are made up: what batches and steps take goes in, and whether
// tokens are right; what to draft comes out. No clock runs.

#include "check.h"
#include "draft-plan.h"

#include <cmath>
#include <random>
#include <vector>

struct machine {
    double              row; // seconds that each further token of a batch takes; the first takes 1
    std::vector<double> steps;
    std::vector<double> accepted; // share of a set's tokens

    std::mt19937 random{ 1 };

    double batch(int32_t n) const { return 1.0 + row * (n - 1); }

    // What is measured when a model is loaded, with a text that the sets agree on so often.
    pyskip_draft_plan plan(const std::vector<double> & agreed) const {
        pyskip_draft_plan plan(steps.size());
        for (const int32_t n : { 1, 2, 4, 8 }) {
            plan.took_batch(n, batch(n));
        }
        for (size_t i = 0; i < steps.size(); ++i) {
            plan.took_step(i, steps[i]);
            plan.tried(i, 28.0 * agreed[i], 28.0);
        }
        return plan;
    }

    // Seconds of n_tokens, as pyskip_lossless spends them. How often each set drafted, in n_rounds.
    double decode(pyskip_draft_plan & plan, int32_t n_tokens, std::vector<int32_t> & n_rounds) {
        std::uniform_real_distribution<double> coin;
        double                                 seconds = 0.0;
        n_rounds.assign(steps.size(), 0);
        for (int32_t done = 0; done < n_tokens;) {
            const int32_t set = plan.choose();
            if (set < 0) {
                plan.took_batch(1, batch(1));
                plan.stepped();
                seconds += batch(1);
                done++;
                continue;
            }
            const double p        = accepted[set];
            double       took     = 0.0;
            double       reach    = 1.0;
            int32_t      n        = 0;
            bool         given_up = false;
            do {
                took += steps[set];
                reach *= p;
                given_up = !plan.is_worth(n + 1, reach);
                n += !given_up;
            } while (!given_up && plan.goes_on(set, n, reach));
            int32_t n_accepted = 0;
            while (n_accepted < n && coin(random) < p) {
                n_accepted++;
            }
            took += batch(n + 1);
            plan.took_batch(n + 1, batch(n + 1));
            plan.drafted(set, n, n_accepted, given_up, took);
            n_rounds[set]++;
            seconds += took;
            done += n_accepted + 1;
        }
        return seconds;
    }
};

static constexpr int32_t N = 2000;

static void test_batches_between_and_beyond() {
    pyskip_draft_plan plan(1);
    CHECK(plan.batch_seconds(3) == 0.0);
    plan.took_batch(2, 3.0);
    CHECK(plan.batch_seconds(1) == 1.5);
    plan.took_batch(1, 2.0);
    plan.took_batch(4, 5.0);
    CHECK(plan.batch_seconds(3) == 4.0);
    CHECK(plan.batch_seconds(8) == 10.0);
    for (int i = 0; i < 100; ++i) {
        plan.took_batch(1, 4.0); // the machine has become slower
    }
    CHECK(std::fabs(plan.batch_seconds(1) - 4.0) < 0.01);
}

static void test_gain() {
    const machine           free{ 0.0, { 0.5 }, { 1.0 } };
    const pyskip_draft_plan plan = free.plan({ 1.0 });
    CHECK(std::fabs(plan.gain(0.5, 1.0) - 8.0 / 4.5) < 1e-9); // 7 steps of a half, and one batch, for 8 tokens
    CHECK(std::fabs(plan.gain(0.5, 0.0) - 1.0 / 1.5) < 1e-9);
    CHECK(plan.gain(0.5, 0.4) < 1.0 && plan.gain(0.5, 0.9) > 1.0);
    CHECK(plan.accepted(0) == 1.0);
}

static void test_drafts_where_it_pays() {
    machine              one{ 0.05, { 0.7, 0.5, 0.4 }, { 0.95, 0.93, 0.3 } };
    pyskip_draft_plan    plan = one.plan({ 0.9, 0.9, 0.5 });
    std::vector<int32_t> n_rounds;
    CHECK(plan.choose() == 1);
    const double seconds = one.decode(plan, N, n_rounds);
    CHECK(N / seconds > 1.15);
    CHECK(n_rounds[1] > 10 * (n_rounds[0] + n_rounds[2]));
}

static void test_loses_next_to_nothing_where_it_was_wrong() {
    machine              one{ 0.05, { 0.7, 0.5 }, { 0.2, 0.1 } }; // the text promised more
    pyskip_draft_plan    plan = one.plan({ 0.95, 0.95 });
    std::vector<int32_t> n_rounds;
    CHECK(plan.choose() >= 0);
    const double seconds = one.decode(plan, N, n_rounds);
    CHECK(n_rounds[0] + n_rounds[1] > 0);
    CHECK(seconds < 1.01 * N);
}

static void test_does_not_try_where_rows_cost_as_much_as_steps() {
    machine              one{ 0.9, { 0.6 }, { 0.9 } };
    pyskip_draft_plan    plan = one.plan({ 1.0 });
    std::vector<int32_t> n_rounds;
    CHECK(plan.choose() == -1);
    CHECK(std::fabs(one.decode(plan, N, n_rounds) - N) < 1e-6);
    CHECK(n_rounds[0] == 0);
}

static void test_finds_the_better_set_though_it_looked_worse() {
    machine              one{ 0.05, { 0.6, 0.5 }, { 0.5, 0.95 } };
    pyskip_draft_plan    plan = one.plan({ 0.95, 0.75 });
    std::vector<int32_t> n_rounds;
    CHECK(plan.choose() == 0);
    one.decode(plan, N, n_rounds);
    one.decode(plan, N, n_rounds);
    CHECK(n_rounds[1] > 10 * n_rounds[0]);
}

static void test_a_draft_ends_where_a_token_more_costs_more() {
    const machine           one{ 0.05, { 0.5 }, { 0.9 } };
    const pyskip_draft_plan plan = one.plan({ 0.9 });
    CHECK(plan.goes_on(0, 1, 1.0) && !plan.goes_on(0, 1, 0.5));
    CHECK(!plan.goes_on(0, PYSKIP_N_DRAFT, 1.0));
    CHECK(plan.is_worth(1, 0.1) && !plan.is_worth(1, 0.04));
}

static void test_a_stall_does_not_last() {
    const machine     one{ 0.9, { 0.6 }, { 0.5 } };
    pyskip_draft_plan plan(1);
    plan.took_batch(1, 5.0); // while the machine did something else
    plan.took_batch(2, one.batch(2));
    CHECK(plan.batch_seconds(1) == one.batch(2));

    pyskip_draft_plan steady = machine{ 0.0, { 0.5 }, { 1.0 } }.plan({ 1.0 });
    for (int i = 0; i < 16; ++i) {
        CHECK(steady.choose() == 0);
        steady.drafted(0, 4, 4, false, 3.0);
    }
    CHECK(steady.choose() == -1); // a dense step, whose time everything is compared with
    steady.stepped();
    CHECK(steady.choose() == 0);
}

int main() {
    test_a_stall_does_not_last();
    test_batches_between_and_beyond();
    test_gain();
    test_drafts_where_it_pays();
    test_loses_next_to_nothing_where_it_was_wrong();
    test_does_not_try_where_rows_cost_as_much_as_steps();
    test_finds_the_better_set_though_it_looked_worse();
    test_a_draft_ends_where_a_token_more_costs_more();
    return check_result("draft-plan");
}
