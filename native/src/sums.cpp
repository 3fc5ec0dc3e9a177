#include "sums.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#    define PYSKIP_FOR(what) __attribute__((target(what)))
#endif

namespace {

constexpr int64_t N_TILE  = 6;  // rows of a that are multiplied with a panel of b together: what registers hold
constexpr int64_t N_BLOCK = 12; // panels of b that stay in a core's cache while all of a goes by

typedef float vec __attribute__((vector_size(4 * PYSKIP_PANEL)));

// The products of N_TILE rows with a panel. Compiled for each instruction set that it is inlined for.
inline __attribute__((always_inline)) void multiply(const float * const * a, const float * b, int64_t n_token,
                                                    float * out) {
    vec acc[N_TILE] = {};
    for (int64_t t = 0; t < n_token; ++t) {
        vec values;
        std::memcpy(&values, b + t * PYSKIP_PANEL, sizeof(values));
        for (int64_t i = 0; i < N_TILE; ++i) {
            acc[i] += values * a[i][t * PYSKIP_PANEL];
        }
    }
    std::memcpy(out, acc, sizeof(acc));
}

using kernel = void (*)(const float * const * a, const float * b, int64_t n_token, float * out);

void multiply_any(const float * const * a, const float * b, int64_t n_token, float * out) {
    multiply(a, b, n_token, out);
}

#ifdef PYSKIP_FOR
PYSKIP_FOR("avx2,fma") void multiply_avx2(const float * const * a, const float * b, int64_t n_token, float * out) {
    multiply(a, b, n_token, out);
}

PYSKIP_FOR("avx512f") void multiply_avx512(const float * const * a, const float * b, int64_t n_token, float * out) {
    multiply(a, b, n_token, out);
}
#endif

kernel choose() {
#ifdef PYSKIP_FOR
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) {
        return multiply_avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return multiply_avx2;
    }
#endif
    return multiply_any;
}

} // namespace

void pyskip_sums_add(float * sums, const float * a, int64_t n_a, const float * b, int64_t n_b, int64_t n_token,
                     bool is_symmetric, int ith, int nth) {
    static const kernel multiply_rows = choose();

    const int64_t n_panel = pyskip_panel_rows(n_b) / PYSKIP_PANEL;
    for (int64_t block = ith * N_BLOCK; block < n_panel; block += nth * N_BLOCK) {
        const int64_t end = std::min(block + N_BLOCK, n_panel);
        const int64_t n   = is_symmetric ? std::min(end * PYSKIP_PANEL, n_a) : n_a;
        for (int64_t i = 0; i < n; i += N_TILE) {
            const float * rows[N_TILE]; // the last again where there are no more
            for (int64_t k = 0; k < N_TILE; ++k) {
                rows[k] = a + pyskip_panel_at(std::min(i + k, n_a - 1), 0, n_token);
            }
            for (int64_t panel = is_symmetric ? std::max(block, i / PYSKIP_PANEL) : block; panel < end; ++panel) {
                float         product[N_TILE * PYSKIP_PANEL];
                const int64_t j     = panel * PYSKIP_PANEL;
                const int64_t width = std::min(PYSKIP_PANEL, n_b - j);
                multiply_rows(rows, b + j * n_token, n_token, product);
                for (int64_t k = 0; k < std::min(N_TILE, n - i); ++k) {
                    for (int64_t l = 0; l < width; ++l) {
                        sums[(i + k) * n_b + j + l] += product[k * PYSKIP_PANEL + l];
                    }
                }
            }
        }
    }
}

void pyskip_sums_mirror(float * sums, int64_t n) {
    constexpr int64_t side = 32; // of squares that caches hold
    for (int64_t i0 = 0; i0 < n; i0 += side) {
        for (int64_t j0 = 0; j0 <= i0; j0 += side) {
            for (int64_t i = i0; i < std::min(i0 + side, n); ++i) {
                for (int64_t j = j0; j < std::min(j0 + side, i); ++j) {
                    sums[i * n + j] = sums[j * n + i];
                }
            }
        }
    }
}
