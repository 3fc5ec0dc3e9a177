// How rows of weights are interleaved. A row's block is cut into units of 32 weights and these into 8 groups of 4; the
// same group of L rows makes one register, a row in each lane, so that a group of activations is multiplied with L rows
// at once. Bits that do not fill a byte are packed so that a shift and a mask take a group out. Every format needs
// exactly the bytes that its blocks have in the file.
//
// `codes` here are L rows of 32 (or 256) weights, one a byte, as the file has them.

#pragma once

#include "lanes.h"

#ifdef PYSKIP_LANES

namespace pyskip_cpu {

inline uint32_t group_of(const uint8_t * codes, int group) {
    uint32_t word;
    std::memcpy(&word, codes + 4 * group, sizeof(word));
    return word;
}

// One unit: the low 4 bits of groups 0 to 3 in the low halves of 4 registers, those of groups 4 to 7 in the high halves.
inline void pack_low_4(uint8_t * out, const uint8_t * codes, size_t stride) {
    for (int row = 0; row < L; ++row) {
        for (int g = 0; g < 4; ++g) {
            const uint32_t low  = group_of(codes + row * stride, g) & 0x0f0f0f0f;
            const uint32_t high = group_of(codes + row * stride, g + 4) & 0x0f0f0f0f;
            store(out + (g * L + row) * 4, low | high << 4);
        }
    }
}

template <int G> inline u8v unpack_low_4(const uint8_t * in) {
    const u16v bits = load<u16v>(in + (G % 4) * 4 * L);
    return (u8v) ((G < 4 ? bits : bits >> 4) & 0x0f0f);
}

// One unit: bit B of all 8 groups in one register.
template <int B> inline void pack_bit(uint8_t * out, const uint8_t * codes, size_t stride) {
    for (int row = 0; row < L; ++row) {
        uint32_t word = 0;
        for (int g = 0; g < 8; ++g) {
            word |= (group_of(codes + row * stride, g) >> B & 0x01010101) << g;
        }
        store(out + row * 4, word);
    }
}

template <int B, int G> inline u8v unpack_bit(const uint8_t * in) {
    const u16v bits = load<u16v>(in);
    return (u8v) ((G <= B ? bits << (B > G ? B - G : 0) : bits >> (G > B ? G - B : 0)) & (uint16_t) (0x0101 << B));
}

// One unit: bits B and B + 1 of groups 0 to 3 in one register, of groups 4 to 7 in another.
template <int B> inline void pack_2_bits(uint8_t * out, const uint8_t * codes, size_t stride) {
    for (int half = 0; half < 2; ++half) {
        for (int row = 0; row < L; ++row) {
            uint32_t word = 0;
            for (int g = 0; g < 4; ++g) {
                word |= (group_of(codes + row * stride, 4 * half + g) >> B & 0x03030303) << 2 * g;
            }
            store(out + (half * L + row) * 4, word);
        }
    }
}

template <int B, int G> inline u8v unpack_2_bits(const uint8_t * in) {
    constexpr int at   = 2 * (G % 4);
    const u16v    bits = load<u16v>(in + (G / 4) * 4 * L);
    return (u8v) ((at <= B ? bits << (B > at ? B - at : 0) : bits >> (at > B ? at - B : 0)) & (uint16_t) (0x0303 << B));
}

// 8 L numbers of 6 bits in 6 L bytes: their low halves, then their high 2 bits.
inline void pack_6(uint8_t * out, const uint8_t numbers[8 * L]) {
    std::memset(out, 0, 6 * L);
    for (int i = 0; i < 8 * L; ++i) {
        out[i % (4 * L)] |= (uint8_t) ((numbers[i] & 0x0f) << (i < 4 * L ? 0 : 4));
        out[4 * L + i % (2 * L)] |= (uint8_t) (numbers[i] >> 4 << 2 * (i / (2 * L)));
    }
}

inline void unpack_6(uint8_t numbers[8 * L], const uint8_t * in) {
    const u16h first  = load<u16h>(in);
    const u16h second = load<u16h>(in + 2 * L);
    const u16h high   = load<u16h>(in + 4 * L);
    store(numbers + 0 * L, (first & 0x0f0f) | (high << 4 & 0x3030));
    store(numbers + 2 * L, (second & 0x0f0f) | (high << 2 & 0x3030));
    store(numbers + 4 * L, (first >> 4 & 0x0f0f) | (high & 0x3030));
    store(numbers + 6 * L, (second >> 4 & 0x0f0f) | (high >> 2 & 0x3030));
}

// The weights that IQ4_NL and IQ4_XS store as codes; not negative, since 128 are added, where products need that.
constexpr int     CODE_SHIFT    = STORED_SIGNED ? 0 : 128;
constexpr uint8_t IQ4_CODES[16] = {
    uint8_t(CODE_SHIFT - 127), uint8_t(CODE_SHIFT - 104), uint8_t(CODE_SHIFT - 83), uint8_t(CODE_SHIFT - 65),
    uint8_t(CODE_SHIFT - 49),  uint8_t(CODE_SHIFT - 35),  uint8_t(CODE_SHIFT - 22), uint8_t(CODE_SHIFT - 10),
    uint8_t(CODE_SHIFT + 1),   uint8_t(CODE_SHIFT + 13),  uint8_t(CODE_SHIFT + 25), uint8_t(CODE_SHIFT + 38),
    uint8_t(CODE_SHIFT + 53),  uint8_t(CODE_SHIFT + 69),  uint8_t(CODE_SHIFT + 89), uint8_t(CODE_SHIFT + 113),
};

} // namespace pyskip_cpu

#endif // PYSKIP_LANES
