// Products of interleaved weights with quantised activations: one block of NS strips (of L rows each) with NC columns at
// a time. Weights come from a view: of the packed block itself, where columns are few, or of one that was expanded to a
// byte a weight before, where many columns share that work. Both give the same bits: everything within a block is
// summed as integers.

#pragma once

#include "activations.h"
#include "lanes.h"

#ifdef PYSKIP_LANES

#    include <type_traits>
#    include <utility>

#    define PYSKIP_INLINE __attribute__((always_inline))

namespace pyskip_cpu {

template <class Fn, int... I> PYSKIP_INLINE inline void unrolled(Fn fn, std::integer_sequence<int, I...>) {
    (fn(std::integral_constant<int, I>()), ...);
}

// fn(0), fn(1), ... fn(N - 1), each argument known when compiled
template <int N, class Fn> PYSKIP_INLINE inline void unrolled(Fn fn) {
    unrolled(fn, std::make_integer_sequence<int, N>());
}

// Weights' offsets are subtracted for a whole block, as minimums are: the scales of two sub-blocks, as 16-bit pairs, times
// sums of activations.
template <class F, class View> inline i32v offset_of(const View & view, int p) {
    return (view.scale(2 * p) & 0xffff) | view.scale(2 * p + 1) << 16;
}

// Weights of few bits times their scales fit in a byte where a product takes any byte: then a block needs no factors. Those
// with an offset can be negative: SHIFT is added, and as many sums of activations are subtracted.
template <class F>
constexpr bool folds = PYSKIP_VNNI && (F::MAX - F::OFFSET) * F::MAX_SCALE < 128 && F::OFFSET * F::MAX_SCALE <= 128;
template <class F> constexpr int SHIFT = F::OFFSET ? 127 : 0;

template <class F> inline u8v fold(u8v codes, i32v scale) {
    const u16v factor = (u16v) ((scale & 0xffff) | scale << 16);
    const u16v even   = ((u16v) codes & 0xff) * factor;
    const u16v odd    = ((u16v) codes >> 8) * factor;
    const u16v shift  = SHIFT<F> - F::OFFSET * factor;
    return (u8v) (((even + shift) & 0xff) | (odd + shift) << 8);
}

// How far ahead of what is multiplied memory is asked for, in bytes. With some columns so much is computed between two reads
// that the processor's own prefetching falls behind.
constexpr int AHEAD = 10 * 1024;

// A view of a packed block that gives what a kernel asks for.
template <class F> struct packed_view : F::view {
    static constexpr bool IS_FOLDED = false;

    const char * packed;

    explicit packed_view(const typename F::block & block) : F::view(block), packed((const char *) &block) {}

    // Part i of n of what follows. An address beyond the matrix does no harm.
    template <int N> PYSKIP_INLINE void ask_ahead(int i) const {
        constexpr int LINE    = 64;
        constexpr int N_LINES = ((int) sizeof(typename F::block) + LINE * N - 1) / (LINE * N);
        for (int line = i * N_LINES; line < (i + 1) * N_LINES; ++line) {
            __builtin_prefetch(packed + AHEAD + LINE * line, 0, 2);
        }
    }

    i32v factor(int s) const { return factor_of(this->scale(s)); }
    i32v offset(int p) const { return offset_of<F>(*this, p); }
};

// One block of 256 in the layout that `group`, `factor` and `minimum` of a view need, a byte a weight.
template <class F, int N = F::activations::N> struct expanded;

template <class F> struct expanded<F, 256> {
    static constexpr bool IS_FOLDED = folds<F>;

    template <int N> void ask_ahead(int) const {} // it was just written

    u8v  groups[64];
    i32v factors[IS_FOLDED ? 1 : 256 / F::SUB];
    i32v offsets[F::OFFSET && !IS_FOLDED ? 128 / F::SUB : 1];
    i32v minimums[F::HAS_MIN ? 128 / F::SUB : 1];
    f32v own_d;
    f32v own_d_min;

    template <int G> u8v group(int u) const { return groups[8 * u + G]; }
    i32v                 factor(int s) const { return factors[s]; }
    i32v                 offset(int p) const { return offsets[p]; }
    i32v                 minimum(int p) const { return minimums[p]; }
    f32v                 d() const { return own_d; }
    f32v                 d_min() const { return own_d_min; }

    void fill(const typename F::block & block) {
        const typename F::view view(block);
        for (int u = 0; u < 8; ++u) {
            unrolled<8>([&](auto g) PYSKIP_INLINE {
                const u8v codes   = view.template group<g>(u);
                groups[8 * u + g] = IS_FOLDED ? fold<F>(codes, view.scale((32 * u + 4 * g) / F::SUB)) : codes;
            });
        }
        for (int s = 0; s < 256 / F::SUB && !IS_FOLDED; ++s) {
            factors[s] = factor_of(view.scale(s));
        }
        if constexpr (F::OFFSET && !IS_FOLDED) {
            for (int p = 0; p < 128 / F::SUB; ++p) {
                offsets[p] = offset_of<F>(view, p);
            }
        }
        own_d = view.d();
        if constexpr (F::HAS_MIN) {
            for (int p = 0; p < 128 / F::SUB; ++p) {
                minimums[p] = view.minimum(p);
            }
            own_d_min = view.d_min();
        }
    }
};

// The same of a block of 32, of which one row has one scale, and a minimum where HAS_MIN.
template <class F> struct expanded<F, 32> {
    template <int N> void ask_ahead(int) const {}

    u8v  groups[8];
    f32v own_d;
    f32v own_minimum;

    template <int G> u8v group() const { return groups[G]; }
    f32v                 d() const { return own_d; }
    f32v                 minimum() const { return own_minimum; }

    void fill(const typename F::block & block) {
        const typename F::view view(block);
        unrolled<8>([&](auto g) PYSKIP_INLINE { groups[g] = view.template group<g>(); });
        own_d = view.d();
        if constexpr (F::HAS_MIN) {
            own_minimum = view.minimum();
        }
    }
};

// sum[s][c] = a block of folded weights of strip s times column c
template <class F, int NS, int NC, class View>
PYSKIP_INLINE inline void sum_folded(i32v (&sum)[NS][NC], const View * const (&view)[NS],
                                     const activations_256 * const (&a)[NC]) {
    for (int c = 0; c < NC; ++c) {
        for (int s = 0; s < NS; ++s) {
            sum[s][c] = SHIFT<F> ? times<SHIFT<F>>(broadcast(&a[c]->minus_sum)) : i32v{};
        }
    }
    for (int u = 0; u < 8; ++u) {
        unrolled<8>([&](auto g) PYSKIP_INLINE {
            for (int c = 0; c < NC; ++c) {
                const i32v q = broadcast_bytes(a[c]->q + 32 * u + 4 * g);
                for (int s = 0; s < NS; ++s) {
                    sum[s][c] = dot_bytes(sum[s][c], view[s]->template group<g>(u), q);
                }
            }
        });
    }
}

// The same by sub-blocks, each times its scale.
template <class F, int NS, int NC, class View>
PYSKIP_INLINE inline void sum_scaled(i32v (&sum)[NS][NC], const View * const (&view)[NS],
                                     const activations_256 * const (&a)[NC]) {
    constexpr int N_SUB = 32 / F::SUB; // sub-blocks a unit

    for (int u = 0; u < 8; ++u) {
        for (int s = 0; s < NS; ++s) {
            view[s]->template ask_ahead<8>(u);
        }
        unrolled<N_SUB>([&](auto sub) PYSKIP_INLINE {
            const int                      s8 = N_SUB * u + sub;
            dot_product<F::MAX, 8 / N_SUB> dot[NS][NC];
            i32v                           factor[NS];
            for (int s = 0; s < NS; ++s) {
                factor[s] = view[s]->factor(s8);
            }
            for (int c = 0; c < NC; ++c) {
                for (int s = 0; s < NS; ++s) {
                    dot[s][c] = dot_product<F::MAX, 8 / N_SUB>(i32v{});
                }
            }
            unrolled<8 / N_SUB>([&](auto step) PYSKIP_INLINE {
                constexpr int g = 8 / N_SUB * sub + step;
                u8v           w[NS];
                for (int s = 0; s < NS; ++s) {
                    w[s] = view[s]->template group<g>(u);
                }
                for (int c = 0; c < NC; ++c) {
                    const i32v q = broadcast_bytes(a[c]->q + 32 * u + 4 * g);
                    for (int s = 0; s < NS; ++s) {
                        dot[s][c].add(step, w[s], q, factor[s], sum[s][c]);
                    }
                }
            });
            for (int s = 0; s < NS; ++s) {
                for (int c = 0; c < NC; ++c) {
                    dot[s][c].finish(factor[s], sum[s][c]);
                }
            }
        });
    }
}

// acc[s][c] += strip s times column c
template <class F, int NS, int NC, class View>
PYSKIP_INLINE inline void add_block(f32v (&acc)[NS][NC], const View * const (&view)[NS],
                                    const activations_256 * const (&a)[NC]) {
    i32v sum[NS][NC] = {};
    if constexpr (View::IS_FOLDED) {
        sum_folded<F>(sum, view, a);
    } else {
        sum_scaled<F>(sum, view, a);
    }
    // of all sub-blocks, times sums of activations
    const auto with_sums = [&](int c, auto pair) PYSKIP_INLINE {
        const int16_t * sums = F::SUB == 16 ? a[c]->sum_16 : a[c]->sum_32;
        i32v            sum  = {};
        for (int p = 0; p < 128 / F::SUB; ++p) {
            sum = dot_pairs(sum, pair(p), broadcast_bytes(sums + 2 * p));
        }
        return sum;
    };
    for (int s = 0; s < NS; ++s) {
        if constexpr (F::OFFSET && !View::IS_FOLDED) {
            i32v offsets[128 / F::SUB];
            for (int p = 0; p < 128 / F::SUB; ++p) {
                offsets[p] = view[s]->offset(p);
            }
            for (int c = 0; c < NC; ++c) {
                sum[s][c] -= F::OFFSET * with_sums(c, [&](int p) PYSKIP_INLINE { return offsets[p]; });
            }
        }
        const f32v d = view[s]->d();
        for (int c = 0; c < NC; ++c) {
            acc[s][c] = multiply_add(to_float(sum[s][c]), d * broadcast(a[c]->d), acc[s][c]);
        }
    }
    if constexpr (F::HAS_MIN) {
        for (int s = 0; s < NS; ++s) {
            const f32v d_min = view[s]->d_min();
            for (int c = 0; c < NC; ++c) {
                const i32v sum_min = with_sums(c, [&](int p) PYSKIP_INLINE { return view[s]->minimum(p); });
                acc[s][c]          = multiply_add(to_float(sum_min), d_min * broadcast(-a[c]->d), acc[s][c]);
            }
        }
    }
}

template <class F, int NS, int NC, class View>
PYSKIP_INLINE inline void add_block(f32v (&acc)[NS][NC], const View * const (&view)[NS],
                                    const activations_32 * const (&a)[NC]) {
    for (int s = 0; s < NS; ++s) {
        view[s]->template ask_ahead<1>(0);
    }
    const i32v             one = factor_of(i32v{} + 1);
    dot_product<F::MAX, 8> dot[NS][NC];
    i32v                   sum[NS][NC];
    for (int c = 0; c < NC; ++c) {
        const i32v start = F::OFFSET ? times<F::OFFSET>(broadcast(&a[c]->minus_sum)) : i32v{};
        for (int s = 0; s < NS; ++s) {
            dot[s][c] = dot_product<F::MAX, 8>(start);
            sum[s][c] = PYSKIP_VNNI ? i32v{} : start;
        }
    }
    unrolled<8>([&](auto g) PYSKIP_INLINE {
        u8v w[NS];
        for (int s = 0; s < NS; ++s) {
            w[s] = view[s]->template group<g>();
        }
        for (int c = 0; c < NC; ++c) {
            const i32v q = broadcast_bytes(a[c]->q + 4 * g);
            for (int s = 0; s < NS; ++s) {
                dot[s][c].add(g, w[s], q, one, sum[s][c]);
            }
        }
    });
    for (int s = 0; s < NS; ++s) {
        const f32v d = view[s]->d();
        for (int c = 0; c < NC; ++c) {
            dot[s][c].finish(one, sum[s][c]); // by 1: the compiler leaves the multiplication out
            acc[s][c] = multiply_add(to_float(sum[s][c]), d * broadcast(a[c]->d), acc[s][c]);
        }
        if constexpr (F::HAS_MIN) {
            const f32v minimum = view[s]->minimum();
            for (int c = 0; c < NC; ++c) {
                acc[s][c] = multiply_add(minimum, broadcast(a[c]->d_sum), acc[s][c]);
            }
        }
    }
}

// A block of NC columns of the product, for strips whose weights are read as they are packed.
template <class F, int NC>
void multiply_packed(const char * strip, int64_t n_block, const void * const * activations, float * const * out,
                     int n_row) {
    typedef typename F::activations A;
    const typename F::block *       blocks = (const typename F::block *) strip;

    const A * a[NC];
    for (int c = 0; c < NC; ++c) {
        a[c] = (const A *) activations[c];
    }
    f32v acc[1][NC] = {};
    for (int64_t i = 0; i < n_block; ++i) {
        const packed_view<F>         view(blocks[i]);
        const packed_view<F> * const views[1] = { &view };
        add_block<F, 1, NC>(acc, views, a);
        for (int c = 0; c < NC; ++c) {
            ++a[c];
        }
    }
    for (int c = 0; c < NC; ++c) {
        store_some(out[c], acc[0][c], n_row);
    }
}

// The same for NS strips of expanded weights; adds to what is in `out` unless it is the first of a row's blocks.
template <class F, int NS, int NC>
void multiply_expanded(const expanded<F> * const * blocks, int n_block, bool is_first,
                       const typename F::activations * const * activations, float * const * out, const int * n_row) {
    typedef typename F::activations A;

    f32v                acc[NS][NC];
    const expanded<F> * view[NS];
    const A *           a[NC];
    for (int s = 0; s < NS; ++s) {
        view[s] = blocks[s];
        for (int c = 0; c < NC; ++c) {
            acc[s][c] = is_first ? f32v{} : load_some(out[c] + s * L, n_row[s]);
        }
    }
    for (int c = 0; c < NC; ++c) {
        a[c] = activations[c];
    }
    for (int i = 0; i < n_block; ++i) {
        add_block<F, NS, NC>(acc, view, a);
        for (int s = 0; s < NS; ++s) {
            ++view[s];
        }
        for (int c = 0; c < NC; ++c) {
            ++a[c];
        }
    }
    for (int s = 0; s < NS; ++s) {
        for (int c = 0; c < NC; ++c) {
            store_some(out[c] + s * L, acc[s][c], n_row[s]);
        }
    }
}

} // namespace pyskip_cpu

#endif // PYSKIP_LANES
