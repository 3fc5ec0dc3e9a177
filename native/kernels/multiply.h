// A share of a matrix product, cut so that what is read over and over stays in the first caches: a kernel's `multiply`.

#pragma once

#include "kernels.h"
#include "product.h"

#ifdef PYSKIP_LANES

#    include <algorithm>

namespace pyskip_cpu {

// fn(integral_constant n) for n of 1 to N
template <int N, class Fn> inline void dispatch(int n, Fn fn) {
    if constexpr (N > 1) {
        if (n < N) {
            return dispatch<N - 1>(n, fn);
        }
    }
    fn(std::integral_constant<int, N>());
}

// Few columns: weights are read as they are packed, a strip at a time, which stays in the cache for all columns.
template <class F>
void multiply_few(const char * matrix, int64_t n_block, int64_t first, int64_t n_strip, int64_t n_row,
                  const columns & columns, int64_t c0, int64_t c1) {
    const int64_t n_share = (c1 - c0 + MAX_PACKED - 1) / MAX_PACKED;
    for (int64_t strip = first; strip < first + n_strip; ++strip) {
        const int rows = (int) std::min<int64_t>(L, n_row - strip * L);
        for (int64_t share = 0; share < n_share; ++share) { // of equal widths
            const int64_t begin = c0 + (c1 - c0) * share / n_share;
            const int64_t end   = c0 + (c1 - c0) * (share + 1) / n_share;
            const void *  activations[MAX_PACKED];
            float *       out[MAX_PACKED];
            for (int64_t c = begin; c < end; ++c) {
                activations[c - begin] = columns.activations_of(c);
                out[c - begin]         = columns.result_of(c, strip * L);
            }
            dispatch<MAX_PACKED>((int) (end - begin), [&](auto nc) {
                multiply_packed<F, nc>(matrix + strip * n_block * sizeof(typename F::block), n_block, activations, out,
                                       rows);
            });
        }
    }
}

// Many columns: a tile of strips is expanded for all of them, N_BLOCK blocks at a time.
template <class F> class tile {
public:
    typedef typename F::activations A;

    tile(const char * matrix, int64_t n_block, int64_t first, int n_strip, int64_t n_row, const columns & columns)
        : strips((const typename F::block *) matrix + first * n_block),
          n_block(n_block),
          row(first * L),
          n_strip(n_strip),
          product(columns) {
        for (int s = 0; s < n_strip; ++s) {
            rows[s]   = (int) std::min<int64_t>(L, n_row - row - s * L);
            blocks[s] = room[s];
        }
    }

    void multiply(int64_t c0, int64_t c1) {
        const int64_t n_share = (c1 - c0 + MAX_COLUMNS - 1) / MAX_COLUMNS;
        for (first = 0; first < n_block; first += N_BLOCK) {
            n = (int) std::min<int64_t>(N_BLOCK, n_block - first);
            for (int s = 0; s < n_strip; ++s) {
                for (int i = 0; i < n; ++i) {
                    room[s][i].fill(strips[s * n_block + first + i]);
                }
            }
            for (int64_t share = 0; share < n_share; ++share) { // of equal widths
                multiply_share(c0 + (c1 - c0) * share / n_share, c0 + (c1 - c0) * (share + 1) / n_share);
            }
        }
    }

private:
    static constexpr int N_BLOCK = 512 / A::N;

    const typename F::block * strips;
    int64_t                   n_block;
    int64_t                   row;
    int                       n_strip;
    const columns &           product;
    int64_t                   first; // of a row's blocks, those that are expanded
    int                       n;
    int                       rows[TILE_STRIPS];
    const expanded<F> *       blocks[TILE_STRIPS];
    expanded<F>               room[TILE_STRIPS][N_BLOCK];

    void multiply_share(int64_t begin, int64_t end) {
        const A * activations[MAX_COLUMNS];
        float *   out[MAX_COLUMNS];
        for (int64_t c = begin; c < end; ++c) {
            activations[c - begin] = (const A *) product.activations_of(c) + first;
            out[c - begin]         = product.result_of(c, row);
        }
        for (int s = 0; s < n_strip; s += MAX_STRIPS) {
            dispatch<MAX_COLUMNS>((int) (end - begin), [&](auto nc) {
                dispatch<MAX_STRIPS>(n_strip - s, [&](auto ns) {
                    multiply_expanded<F, ns, nc>(blocks + s, n, first == 0, activations, out, rows + s);
                });
            });
            for (int64_t c = begin; c < end; ++c) {
                out[c - begin] += MAX_STRIPS * L;
            }
        }
    }
};

template <class F>
void multiply(const char * matrix, int64_t n_block, int64_t first, int64_t n_strip, int64_t n_row,
              const columns & columns, int64_t c0, int64_t c1) {
    if (c1 - c0 <= FEW_COLUMNS) {
        multiply_few<F>(matrix, n_block, first, n_strip, n_row, columns, c0, c1);
        return;
    }
    for (int64_t strip = first; strip < first + n_strip; strip += TILE_STRIPS) {
        const int n = (int) std::min<int64_t>(TILE_STRIPS, first + n_strip - strip);
        tile<F>(matrix, n_block, strip, n, n_row, columns).multiply(c0, c1);
    }
}

template <class F> const kernel * make_kernel() {
    static const kernel k = {
        F::activations::N,
        sizeof(typename F::source),
        sizeof(typename F::block),
        sizeof(typename F::activations),
        [](void * out, const void * const * in) {
            F::pack(*(typename F::block *) out, (const typename F::source * const *) in);
        },
        [](const float * x, void * block) { quantize(x, (typename F::activations *) block); },
        multiply<F>,
    };
    return &k;
}

} // namespace pyskip_cpu

#endif // PYSKIP_LANES
