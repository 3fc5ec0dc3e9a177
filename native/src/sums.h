// Sums of products of floats over tokens, which calibration gathers. Matrices are in panels of PYSKIP_PANEL of their rows:
// panel by panel, token by token, the panel's rows. No policy uses it.

#pragma once

#include <cstdint>

constexpr int64_t PYSKIP_PANEL = 16;

// Where token `token`'s value of row i is, and how many values all of n rows take.
inline int64_t pyskip_panel_at(int64_t i, int64_t token, int64_t n_token) {
    return (i / PYSKIP_PANEL * n_token + token) * PYSKIP_PANEL + i % PYSKIP_PANEL;
}

inline int64_t pyskip_panel_rows(int64_t n) {
    return (n + PYSKIP_PANEL - 1) / PYSKIP_PANEL * PYSKIP_PANEL;
}

// sums[i * n_b + j] += the sum over tokens of a[i] * b[j], thread ith's share of it. is_symmetric: a is b, and only j >= i is
// wanted; what lies below is undefined until pyskip_sums_mirror.
void pyskip_sums_add(float * sums, const float * a, int64_t n_a, const float * b, int64_t n_b, int64_t n_token,
                     bool is_symmetric, int ith, int nth);

// sums[i * n + j] = sums[j * n + i] for j < i.
void pyskip_sums_mirror(float * sums, int64_t n);
