// Q4_K, Q5_K and Q6_K, interleaved: blocks of 256 weights by L rows. A format says how one is packed from the file's
// blocks and, by its `view`, how a kernel reads it:
//
//   group<G>(u)         group G of unit u, a byte a weight: a code, 0 to MAX
//   scale(s)            of sub-block s of SUB weights, as integers, none beyond MAX_SCALE
//   minimum(p)          of sub-blocks 2 p and 2 p + 1 as 16-bit pairs, where HAS_MIN
//   d(), d_min()        what scales and minimums are to be multiplied by
//
// What is read together lies together: memory is read from front to back. A weight is d scale (code - OFFSET) - d_min minimum.

#pragma once

#include "activations.h"
#include "pack.h"

#define GGML_COMMON_DECL_CPP
#include "ggml-common.h"

#ifdef PYSKIP_LANES

namespace pyskip_cpu {

// What Q4_K and Q5_K share: 6-bit scales and minimums of sub-blocks of 32.
struct scales_and_minimums {
    uint16_t d[L];
    uint16_t d_min[L];
    uint8_t  scales[6 * L];
    uint8_t  minimums[6 * L];

    void pack(int row, uint16_t row_d, uint16_t row_d_min) {
        d[row]     = row_d;
        d_min[row] = row_d_min;
    }

    // of L rows, as the file has them
    void pack_scales(const uint8_t * const in[L]) {
        uint8_t sc[8 * L];
        uint8_t mn[8 * L];
        for (int row = 0; row < L; ++row) {
            const uint8_t * s = in[row];
            for (int i = 0; i < 8; ++i) {
                sc[i * L + row]                   = i < 4 ? s[i] & 63 : (s[i + 4] & 15) | (s[i - 4] >> 6 << 4);
                mn[(i / 2 * L + row) * 2 + i % 2] = i < 4 ? s[i + 4] & 63 : (s[i + 4] >> 4) | (s[i] >> 6 << 4);
            }
        }
        pack_6(scales, sc);
        pack_6(minimums, mn);
    }
};

struct scales_and_minimums_view {
    uint8_t sc[8 * L];
    uint8_t mn[8 * L];

    const scales_and_minimums & from;

    explicit scales_and_minimums_view(const scales_and_minimums & from) : from(from) {
        unpack_6(sc, from.scales);
        unpack_6(mn, from.minimums);
    }

    i32v scale(int s) const { return load_u8(sc + s * L); }
    i32v minimum(int p) const { return load_u8_pairs(mn + p * 2 * L); }
    f32v d() const { return load_f16(from.d); }
    f32v d_min() const { return load_f16(from.d_min); }
};

// The low 4 bits of a row's codes.
template <class B> inline void codes_of_4_k(uint8_t codes[256], const B & in) {
    for (int p = 0; p < 4; ++p) {
        for (int i = 0; i < 32; ++i) {
            codes[64 * p + i]      = in.qs[32 * p + i] & 15;
            codes[64 * p + 32 + i] = in.qs[32 * p + i] >> 4;
        }
    }
}

struct format_q4_K {
    typedef activations_256 activations;
    typedef block_q4_K      source;

    static constexpr int  SUB       = 32;
    static constexpr int  MAX       = 15;
    static constexpr int  OFFSET    = 0;
    static constexpr int  MAX_SCALE = 63;
    static constexpr bool HAS_MIN   = true;

    struct block {
        scales_and_minimums scales;
        uint8_t             qs[8][16 * L];
    };

    struct view : scales_and_minimums_view {
        const block & b;

        explicit view(const block & b) : scales_and_minimums_view(b.scales), b(b) {}
        template <int G> u8v group(int u) const { return unpack_low_4<G>(b.qs[u]); }
    };

    static void pack(block & out, const source * const in[L]) {
        uint8_t         codes[L][256];
        const uint8_t * scales[L];
        for (int row = 0; row < L; ++row) {
            out.scales.pack(row, in[row]->data.data.d, in[row]->data.data.dmin);
            scales[row] = in[row]->scales;
            codes_of_4_k(codes[row], *in[row]);
        }
        out.scales.pack_scales(scales);
        for (int u = 0; u < 8; ++u) {
            pack_low_4(out.qs[u], codes[0] + 32 * u, 256);
        }
    }
};

struct format_q5_K {
    typedef activations_256 activations;
    typedef block_q5_K      source;

    static constexpr int  SUB       = 32;
    static constexpr int  MAX       = 31;
    static constexpr int  OFFSET    = 0;
    static constexpr int  MAX_SCALE = 63;
    static constexpr bool HAS_MIN   = true;

    struct block {
        scales_and_minimums scales;
        struct {
            uint8_t qs[16 * L];
            uint8_t qh[4 * L];
        } units[8];
    };

    struct view : scales_and_minimums_view {
        const block & b;

        explicit view(const block & b) : scales_and_minimums_view(b.scales), b(b) {}
        template <int G> u8v group(int u) const {
            return unpack_low_4<G>(b.units[u].qs) | unpack_bit<4, G>(b.units[u].qh);
        }
    };

    static void pack(block & out, const source * const in[L]) {
        uint8_t         codes[L][256];
        const uint8_t * scales[L];
        for (int row = 0; row < L; ++row) {
            out.scales.pack(row, in[row]->data.data.d, in[row]->data.data.dmin);
            scales[row] = in[row]->scales;
            codes_of_4_k(codes[row], *in[row]);
            for (int u = 0; u < 8; ++u) {
                for (int i = 0; i < 32; ++i) {
                    codes[row][32 * u + i] |= (in[row]->qh[i] >> u & 1) << 4;
                }
            }
        }
        out.scales.pack_scales(scales);
        for (int u = 0; u < 8; ++u) {
            pack_low_4(out.units[u].qs, codes[0] + 32 * u, 256);
            pack_bit<4>(out.units[u].qh, codes[0] + 32 * u, 256);
        }
    }
};

struct format_q6_K {
    typedef activations_256 activations;
    typedef block_q6_K      source;

    static constexpr int  SUB       = 16;
    static constexpr int  MAX       = 63;
    static constexpr int  OFFSET    = 32;
    static constexpr int  MAX_SCALE = 128;
    static constexpr bool HAS_MIN   = false;

    struct block {
        uint16_t d[L];
        int8_t   scales[16][L];
        struct {
            uint8_t ql[16 * L];
            uint8_t qh[8 * L];
        } units[8];
    };

    struct view {
        const block & b;

        explicit view(const block & b) : b(b) {}
        template <int G> u8v group(int u) const {
            return unpack_low_4<G>(b.units[u].ql) | unpack_2_bits<4, G>(b.units[u].qh);
        }
        i32v scale(int s) const { return load_i8(b.scales[s]); }
        f32v d() const { return load_f16(b.d); }
    };

    static void pack(block & out, const source * const in[L]) {
        uint8_t codes[L][256];
        for (int row = 0; row < L; ++row) {
            out.d[row] = in[row]->d;
            for (int i = 0; i < 16; ++i) {
                out.scales[i][row] = in[row]->scales[i];
            }
            for (int half = 0; half < 2; ++half) {
                const uint8_t * ql = in[row]->ql + 64 * half;
                const uint8_t * qh = in[row]->qh + 32 * half;
                uint8_t *       q  = codes[row] + 128 * half;
                for (int i = 0; i < 32; ++i) {
                    q[i]      = (ql[i] & 15) | (qh[i] & 3) << 4;
                    q[i + 32] = (ql[i + 32] & 15) | (qh[i] >> 2 & 3) << 4;
                    q[i + 64] = (ql[i] >> 4) | (qh[i] >> 4 & 3) << 4;
                    q[i + 96] = (ql[i + 32] >> 4) | (qh[i] >> 6) << 4;
                }
            }
        }
        for (int u = 0; u < 8; ++u) {
            pack_low_4(out.units[u].ql, codes[0] + 32 * u, 256);
            pack_2_bits<4>(out.units[u].qh, codes[0] + 32 * u, 256);
        }
    }
};

static_assert(sizeof(format_q4_K::block) == L * sizeof(block_q4_K), "interleaved blocks have the bytes of the file's");
static_assert(sizeof(format_q5_K::block) == L * sizeof(block_q5_K), "interleaved blocks have the bytes of the file's");
static_assert(sizeof(format_q6_K::block) == L * sizeof(block_q6_K), "interleaved blocks have the bytes of the file's");

} // namespace pyskip_cpu

#endif // PYSKIP_LANES
