// Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and IQ4_NL, interleaved: blocks of 32 weights by L rows. As in formats-k.h, but a block is
// one unit:
//
//   group<G>()      group G, a byte a weight
//   d(), minimum()  of the rows
//
// A weight is d (code - OFFSET) + minimum.

#pragma once

#include "activations.h"
#include "pack.h"

#define GGML_COMMON_DECL_CPP
#include "ggml-common.h"

#ifdef PYSKIP_LANES

namespace pyskip_cpu {

// 32 codes of a block, those of the low halves of its bytes first; 8 at a time.
template <class B> inline void codes_of_4(uint8_t * codes, const B & in) {
    for (int i = 0; i < 16; i += 8) {
        const uint64_t both = load<uint64_t>(in.qs + i);
        store(codes + i, both & 0x0f0f0f0f0f0f0f0f);
        store(codes + i + 16, both >> 4 & 0x0f0f0f0f0f0f0f0f);
    }
}

template <class B> inline void codes_of_5(uint8_t * codes, const B & in) {
    codes_of_4(codes, in);
    for (int i = 0; i < 4; ++i) {
        // bit j of a byte comes to byte j, where adding 127 carries it to the highest place
        const uint64_t bits = (in.qh[i] * 0x0101010101010101u) & 0x8040201008040201;
        const uint64_t high = ((bits + 0x7f7f7f7f7f7f7f7f) & 0x8080808080808080) >> 3;
        store(codes + 8 * i, load<uint64_t>(codes + 8 * i) | high);
    }
}

struct format_q4_0 {
    typedef activations_32 activations;
    typedef block_q4_0     source;

    static constexpr int  MAX     = 15;
    static constexpr int  OFFSET  = 8;
    static constexpr bool HAS_MIN = false;

    struct block {
        uint16_t d[L];
        uint8_t  qs[16 * L];
    };

    struct view {
        const block & b;

        explicit view(const block & b) : b(b) {}
        template <int G> u8v group() const { return unpack_low_4<G>(b.qs); }
        f32v                 d() const { return load_f16(b.d); }
    };

    static void pack(block & out, const source * const in[L]) {
        uint8_t codes[L][32];
        for (int row = 0; row < L; ++row) {
            out.d[row] = in[row]->d;
            codes_of_4(codes[row], *in[row]);
        }
        pack_low_4(out.qs, codes[0], 32);
    }
};

struct format_q4_1 {
    typedef activations_32 activations;
    typedef block_q4_1     source;

    static constexpr int  MAX     = 15;
    static constexpr int  OFFSET  = 0;
    static constexpr bool HAS_MIN = true;

    struct block {
        uint16_t d[L];
        uint16_t m[L];
        uint8_t  qs[16 * L];
    };

    struct view {
        const block & b;

        explicit view(const block & b) : b(b) {}
        template <int G> u8v group() const { return unpack_low_4<G>(b.qs); }
        f32v                 d() const { return load_f16(b.d); }
        f32v                 minimum() const { return load_f16(b.m); }
    };

    static void pack(block & out, const source * const in[L]) {
        uint8_t codes[L][32];
        for (int row = 0; row < L; ++row) {
            out.d[row] = in[row]->data.data.d;
            out.m[row] = in[row]->data.data.m;
            codes_of_4(codes[row], *in[row]);
        }
        pack_low_4(out.qs, codes[0], 32);
    }
};

struct format_q5_0 {
    typedef activations_32 activations;
    typedef block_q5_0     source;

    static constexpr int  MAX     = 31;
    static constexpr int  OFFSET  = 16;
    static constexpr bool HAS_MIN = false;

    struct block {
        uint16_t d[L];
        uint8_t  qh[4 * L];
        uint8_t  qs[16 * L];
    };

    struct view {
        const block & b;

        explicit view(const block & b) : b(b) {}
        template <int G> u8v group() const { return unpack_low_4<G>(b.qs) | unpack_bit<4, G>(b.qh); }
        f32v                 d() const { return load_f16(b.d); }
    };

    static void pack(block & out, const source * const in[L]) {
        uint8_t codes[L][32];
        for (int row = 0; row < L; ++row) {
            out.d[row] = in[row]->d;
            codes_of_5(codes[row], *in[row]);
        }
        pack_low_4(out.qs, codes[0], 32);
        pack_bit<4>(out.qh, codes[0], 32);
    }
};

struct format_q5_1 {
    typedef activations_32 activations;
    typedef block_q5_1     source;

    static constexpr int  MAX     = 31;
    static constexpr int  OFFSET  = 0;
    static constexpr bool HAS_MIN = true;

    struct block {
        uint16_t d[L];
        uint16_t m[L];
        uint8_t  qh[4 * L];
        uint8_t  qs[16 * L];
    };

    struct view {
        const block & b;

        explicit view(const block & b) : b(b) {}
        template <int G> u8v group() const { return unpack_low_4<G>(b.qs) | unpack_bit<4, G>(b.qh); }
        f32v                 d() const { return load_f16(b.d); }
        f32v                 minimum() const { return load_f16(b.m); }
    };

    static void pack(block & out, const source * const in[L]) {
        uint8_t codes[L][32];
        for (int row = 0; row < L; ++row) {
            out.d[row] = in[row]->data.data.d;
            out.m[row] = in[row]->data.data.m;
            codes_of_5(codes[row], *in[row]);
        }
        pack_low_4(out.qs, codes[0], 32);
        pack_bit<4>(out.qh, codes[0], 32);
    }
};

struct format_q8_0 {
    typedef activations_32 activations;
    typedef block_q8_0     source;

    static constexpr int  MAX     = 255;
    static constexpr int  OFFSET  = CODE_SHIFT;
    static constexpr bool HAS_MIN = false;

    struct block {
        uint16_t d[L];
        uint8_t  q[8][4 * L];
    };

    struct view {
        const block & b;

        explicit view(const block & b) : b(b) {}
        template <int G> u8v group() const { return load<u8v>(b.q[G]); }
        f32v                 d() const { return load_f16(b.d); }
    };

    static void pack(block & out, const source * const in[L]) {
        for (int row = 0; row < L; ++row) {
            out.d[row] = in[row]->d;
            for (int g = 0; g < 8; ++g) {
                // adding 128 flips the highest bit
                const uint32_t flip = CODE_SHIFT * 0x01010101u;
                store(&out.q[g][4 * row], group_of((const uint8_t *) in[row]->qs, g) ^ flip);
            }
        }
    }
};

struct format_iq4_nl {
    typedef activations_32 activations;
    typedef block_iq4_nl   source;

    static constexpr int  MAX     = 255;
    static constexpr int  OFFSET  = CODE_SHIFT;
    static constexpr bool HAS_MIN = false;

    struct block {
        uint16_t d[L];
        uint8_t  qs[16 * L];
    };

    struct view {
        const block & b;

        explicit view(const block & b) : b(b) {}
        template <int G> u8v group() const { return look_up(IQ4_CODES, unpack_low_4<G>(b.qs)); }
        f32v                 d() const { return load_f16(b.d); }
    };

    static void pack(block & out, const source * const in[L]) {
        uint8_t codes[L][32];
        for (int row = 0; row < L; ++row) {
            out.d[row] = in[row]->d;
            codes_of_4(codes[row], *in[row]);
        }
        pack_low_4(out.qs, codes[0], 32);
    }
};

static_assert(sizeof(format_q4_0::block) == L * sizeof(block_q4_0), "interleaved blocks have the bytes of the file's");
static_assert(sizeof(format_q4_1::block) == L * sizeof(block_q4_1), "interleaved blocks have the bytes of the file's");
static_assert(sizeof(format_q5_0::block) == L * sizeof(block_q5_0), "interleaved blocks have the bytes of the file's");
static_assert(sizeof(format_q5_1::block) == L * sizeof(block_q5_1), "interleaved blocks have the bytes of the file's");
static_assert(sizeof(format_q8_0::block) == L * sizeof(block_q8_0), "interleaved blocks have the bytes of the file's");
static_assert(sizeof(format_iq4_nl::block) == L * sizeof(block_iq4_nl),
              "interleaved blocks have the bytes of the file's");

} // namespace pyskip_cpu

#endif // PYSKIP_LANES
