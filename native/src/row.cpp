#include "row.h"

#include <algorithm>
#include <cmath>

// Sums run in lanes, as in pyskip_compare().
float pyskip_gate_score(const float * weights, const float * x, const float * xn, int64_t n) {
    constexpr int N_LANE = 16;

    float dot[N_LANE] = {};
    float xx[N_LANE]  = {};

    const int64_t n_whole = n - n % N_LANE;
    for (int64_t i = 0; i < n_whole; i += N_LANE) {
        for (int j = 0; j < N_LANE; ++j) {
            dot[j] += weights[i + j] * xn[i + j];
            xx[j] += x[i + j] * x[i + j];
        }
    }
    double sum    = 0.0;
    double sum_xx = 0.0;
    for (int j = 0; j < N_LANE; ++j) {
        sum += dot[j];
        sum_xx += xx[j];
    }
    for (int64_t i = n_whole; i < n; ++i) {
        sum += (double) weights[i] * xn[i];
        sum_xx += (double) x[i] * x[i];
    }
    return (float) (sum + weights[n] * 0.5 * std::log(std::max(sum_xx, 1e-38)) + weights[n + 1]);
}

// Sums run in lanes, so that the compiler can use the machine's vectors without being allowed to reorder arithmetic.
pyskip_step pyskip_compare(const float * x, const float * y, int64_t n) {
    constexpr int N_LANE = 16;

    float xz[N_LANE] = {};
    float xx[N_LANE] = {};
    float zz[N_LANE] = {};

    const int64_t n_whole = n - n % N_LANE;
    for (int64_t i = 0; i < n_whole; i += N_LANE) {
        for (int j = 0; j < N_LANE; ++j) {
            const float xi = x[i + j];
            const float zi = xi + y[i + j];
            xz[j] += xi * zi;
            xx[j] += xi * xi;
            zz[j] += zi * zi;
        }
    }
    double sum_xz = 0.0;
    double sum_xx = 0.0;
    double sum_zz = 0.0;
    for (int j = 0; j < N_LANE; ++j) {
        sum_xz += xz[j];
        sum_xx += xx[j];
        sum_zz += zz[j];
    }
    for (int64_t i = n_whole; i < n; ++i) {
        const double zi = (double) x[i] + y[i];
        sum_xz += x[i] * zi;
        sum_xx += (double) x[i] * x[i];
        sum_zz += zi * zi;
    }
    const float scale = sum_xx == 0.0 ? 1.0f : (float) std::sqrt(sum_zz / sum_xx);
    if (sum_xx == 0.0 || sum_zz == 0.0) {
        return { 0.0f, scale };
    }
    return { (float) (sum_xz / std::sqrt(sum_xx * sum_zz)), scale };
}
