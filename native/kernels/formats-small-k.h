// Q2_K, Q3_K and IQ4_XS, interleaved: as in formats-k.h.

#pragma once

#include "activations.h"
#include "pack.h"

#define GGML_COMMON_DECL_CPP
#include "ggml-common.h"

#ifdef PYSKIP_LANES

namespace pyskip_cpu {

// The low 2 bits of a row's codes.
template <class B> inline void codes_of_2(uint8_t codes[256], const B & in) {
    for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 32; ++i) {
            for (int j = 0; j < 4; ++j) {
                codes[128 * half + 32 * j + i] = in.qs[32 * half + i] >> 2 * j & 3;
            }
        }
    }
}

struct format_q2_K {
    typedef activations_256 activations;
    typedef block_q2_K      source;

    static constexpr int  SUB       = 16;
    static constexpr int  MAX       = 3;
    static constexpr int  OFFSET    = 0;
    static constexpr int  MAX_SCALE = 15;
    static constexpr bool HAS_MIN   = true;

    struct block {
        uint16_t d[L];
        uint16_t d_min[L];
        uint8_t  scales[8 * L];   // of sub-blocks 0 to 7 in the low halves, of 8 to 15 in the high ones
        uint8_t  minimums[8 * L]; // likewise, in pairs
        uint8_t  qs[8][8 * L];
    };

    struct view {
        const block & b;

        uint8_t sc[16 * L];
        uint8_t mn[16 * L];

        explicit view(const block & b) : b(b) {
            unpack_halves(sc, b.scales);
            unpack_halves(mn, b.minimums);
        }

        static void unpack_halves(uint8_t out[16 * L], const uint8_t in[8 * L]) {
            for (int i = 0; i < 2; ++i) {
                const u16v both = load<u16v>(in + i * 4 * L);
                store(out + i * 4 * L, both & 0x0f0f);
                store(out + (i + 2) * 4 * L, both >> 4 & 0x0f0f);
            }
        }

        template <int G> u8v group(int u) const { return unpack_2_bits<0, G>(b.qs[u]); }
        i32v                 scale(int s) const { return load_u8(sc + s * L); }
        i32v                 minimum(int p) const { return load_u8_pairs(mn + p * 2 * L); }
        f32v                 d() const { return load_f16(b.d); }
        f32v                 d_min() const { return load_f16(b.d_min); }
    };

    static void pack(block & out, const source * const in[L]) {
        uint8_t codes[L][256];
        for (int row = 0; row < L; ++row) {
            out.d[row]     = in[row]->data.data.d;
            out.d_min[row] = in[row]->data.data.dmin;
            for (int s = 0; s < 8; ++s) {
                const uint8_t low                           = in[row]->scales[s];
                const uint8_t high                          = in[row]->scales[s + 8];
                out.scales[s * L + row]                     = (uint8_t) ((low & 15) | (high & 15) << 4);
                out.minimums[(s / 2 * L + row) * 2 + s % 2] = (uint8_t) (low >> 4 | (high >> 4) << 4);
            }
            codes_of_2(codes[row], *in[row]);
        }
        for (int u = 0; u < 8; ++u) {
            pack_2_bits<0>(out.qs[u], codes[0] + 32 * u, 256);
        }
    }
};

struct format_q3_K {
    typedef activations_256 activations;
    typedef block_q3_K      source;

    static constexpr int  SUB       = 16;
    static constexpr int  MAX       = 7;
    static constexpr int  OFFSET    = 4;
    static constexpr int  MAX_SCALE = 32;
    static constexpr bool HAS_MIN   = false;

    struct block {
        uint16_t d[L];
        uint8_t  scales[2][6 * L]; // with 32 added
        struct {
            uint8_t qs[8 * L];
            uint8_t qh[4 * L];
        } units[8];
    };

    struct view {
        const block & b;

        uint8_t sc[16 * L];

        explicit view(const block & b) : b(b) {
            unpack_6(sc, b.scales[0]);
            unpack_6(sc + 8 * L, b.scales[1]);
        }

        template <int G> u8v group(int u) const {
            return unpack_2_bits<0, G>(b.units[u].qs) | unpack_bit<2, G>(b.units[u].qh);
        }
        i32v scale(int s) const { return load_u8(sc + s * L) - 32; }
        f32v d() const { return load_f16(b.d); }
    };

    static void pack(block & out, const source * const in[L]) {
        uint8_t codes[L][256];
        uint8_t sc[16 * L];
        for (int row = 0; row < L; ++row) {
            out.d[row] = in[row]->d;
            for (int i = 0; i < 16; ++i) {
                const uint8_t * s    = in[row]->scales;
                const int       low  = i < 8 ? s[i] & 15 : s[i - 8] >> 4;
                const int       high = s[8 + i % 4] >> (2 * (i / 4)) & 3;
                sc[i * L + row]      = (uint8_t) (low | high << 4);
            }
            codes_of_2(codes[row], *in[row]);
            for (int u = 0; u < 8; ++u) {
                for (int i = 0; i < 32; ++i) {
                    codes[row][32 * u + i] |= (in[row]->hmask[i] >> u & 1) << 2;
                }
            }
        }
        pack_6(out.scales[0], sc);
        pack_6(out.scales[1], sc + 8 * L);
        for (int u = 0; u < 8; ++u) {
            pack_2_bits<0>(out.units[u].qs, codes[0] + 32 * u, 256);
            pack_bit<2>(out.units[u].qh, codes[0] + 32 * u, 256);
        }
    }
};

struct format_iq4_xs {
    typedef activations_256 activations;
    typedef block_iq4_xs    source;

    static constexpr int  SUB       = 32;
    static constexpr int  MAX       = 255;
    static constexpr int  OFFSET    = CODE_SHIFT;
    static constexpr int  MAX_SCALE = 32;
    static constexpr bool HAS_MIN   = false;

    struct block {
        uint16_t d[L];
        uint8_t  scales[6 * L]; // with 32 added
        uint8_t  qs[8][16 * L];
    };

    struct view {
        const block & b;

        uint8_t sc[8 * L];

        explicit view(const block & b) : b(b) { unpack_6(sc, b.scales); }
        template <int G> u8v group(int u) const { return look_up(IQ4_CODES, unpack_low_4<G>(b.qs[u])); }
        i32v                 scale(int s) const { return load_u8(sc + s * L) - 32; }
        f32v                 d() const { return load_f16(b.d); }
    };

    static void pack(block & out, const source * const in[L]) {
        uint8_t codes[L][256];
        uint8_t sc[8 * L];
        for (int row = 0; row < L; ++row) {
            out.d[row] = in[row]->d;
            for (int i = 0; i < 8; ++i) {
                const int low   = in[row]->scales_l[i / 2] >> (i % 2 * 4) & 15;
                const int high  = in[row]->scales_h >> 2 * i & 3;
                sc[i * L + row] = (uint8_t) (low | high << 4);
            }
            for (int u = 0; u < 8; ++u) {
                for (int i = 0; i < 16; ++i) {
                    codes[row][32 * u + i]      = in[row]->qs[16 * u + i] & 15;
                    codes[row][32 * u + 16 + i] = in[row]->qs[16 * u + i] >> 4;
                }
            }
        }
        pack_6(out.scales, sc);
        for (int u = 0; u < 8; ++u) {
            pack_low_4(out.qs[u], codes[0] + 32 * u, 256);
        }
    }
};

static_assert(sizeof(format_q2_K::block) == L * sizeof(block_q2_K), "interleaved blocks have the bytes of the file's");
static_assert(sizeof(format_q3_K::block) == L * sizeof(block_q3_K), "interleaved blocks have the bytes of the file's");
static_assert(sizeof(format_iq4_xs::block) == L * sizeof(block_iq4_xs),
              "interleaved blocks have the bytes of the file's");

} // namespace pyskip_cpu

#endif // PYSKIP_LANES
