// The vectors that every kernel is written with, and how many weight rows one of them holds: a register has one 32-bit
// lane for each row. Chosen by the instruction set that the CPU back end is compiled for; without AVX2 there are no
// kernels.
//
// Arithmetic that all instruction sets have is left to the compiler's vector types; only what multiplies 8-bit and
// 16-bit numbers, converts and broadcasts is written by intrinsics.

#pragma once

#if (defined(__GNUC__) || defined(__clang__)) && defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#    if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#        define PYSKIP_LANES 16
#    else
#        define PYSKIP_LANES 8
#    endif
#endif

#ifdef PYSKIP_LANES

#    include <immintrin.h>

#    include <cstdint>
#    include <cstring>

#    if (PYSKIP_LANES == 16 && defined(__AVX512VNNI__)) || (defined(__AVX512VNNI__) && defined(__AVX512VL__)) ||       \
        defined(__AVXVNNI__)
#        define PYSKIP_VNNI 1
#    else
#        define PYSKIP_VNNI 0
#    endif

namespace pyskip_cpu {

constexpr int L = PYSKIP_LANES;

// whole registers, and those of half the size
typedef int32_t  i32v __attribute__((vector_size(4 * L)));
typedef float    f32v __attribute__((vector_size(4 * L)));
typedef uint16_t u16v __attribute__((vector_size(4 * L)));
typedef uint8_t  u8v __attribute__((vector_size(4 * L)));
typedef uint16_t u16h __attribute__((vector_size(2 * L)));

template <class V> inline V load(const void * p) {
    V v;
    std::memcpy(&v, p, sizeof(v));
    return v;
}

template <class V> inline void store(void * p, V v) {
    std::memcpy(p, &v, sizeof(v));
}

inline i32v broadcast(const int32_t * p) {
#    if PYSKIP_LANES == 16
    return (i32v) _mm512_set1_epi32(*p);
#    else
    return (i32v) _mm256_set1_epi32(*p);
#    endif
}

// Four 8-bit numbers, or two of 16 bits, to every lane.
inline i32v broadcast_bytes(const void * p) {
    int32_t word;
    std::memcpy(&word, p, sizeof(word));
    return broadcast(&word);
}

// N times x. The compiler would multiply what x was broadcast from, and move it over from the other registers.
template <int N> inline i32v times(i32v x) {
    asm("" : "+v"(x));
    return x * N;
}

inline f32v broadcast(float x) {
#    if PYSKIP_LANES == 16
    return (f32v) _mm512_set1_ps(x);
#    else
    return (f32v) _mm256_set1_ps(x);
#    endif
}

inline f32v to_float(i32v x) {
#    if PYSKIP_LANES == 16
    return (f32v) _mm512_cvtepi32_ps((__m512i) x);
#    else
    return (f32v) _mm256_cvtepi32_ps((__m256i) x);
#    endif
}

inline f32v multiply_add(f32v a, f32v b, f32v c) {
#    if PYSKIP_LANES == 16
    return (f32v) _mm512_fmadd_ps((__m512) a, (__m512) b, (__m512) c);
#    else
    return (f32v) _mm256_fmadd_ps((__m256) a, (__m256) b, (__m256) c);
#    endif
}

inline f32v load_f16(const uint16_t * p) {
#    if PYSKIP_LANES == 16
    return (f32v) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) p));
#    else
    return (f32v) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p));
#    endif
}

// L bytes, one a lane.
inline i32v load_u8(const uint8_t * p) {
#    if PYSKIP_LANES == 16
    return (i32v) _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *) p));
#    else
    return (i32v) _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *) p));
#    endif
}

inline i32v load_i8(const int8_t * p) {
#    if PYSKIP_LANES == 16
    return (i32v) _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *) p));
#    else
    return (i32v) _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *) p));
#    endif
}

// 2 L bytes, two 16-bit numbers a lane.
inline i32v load_u8_pairs(const uint8_t * p) {
#    if PYSKIP_LANES == 16
    return (i32v) _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *) p));
#    else
    return (i32v) _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *) p));
#    endif
}

// Every byte of `index` (0 to 15) replaced by that byte of the table.
inline u8v look_up(const uint8_t table[16], u8v index) {
    const __m128i t = _mm_loadu_si128((const __m128i *) table);
#    if PYSKIP_LANES == 16
    return (u8v) _mm512_shuffle_epi8(_mm512_broadcast_i32x4(t), (__m512i) index);
#    else
    return (u8v) _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(t), (__m256i) index);
#    endif
}

// sum + a[0] b[0] + a[1] b[1] in every lane, of signed 16-bit numbers.
inline i32v dot_pairs(i32v sum, i32v a, i32v b) {
#    if PYSKIP_LANES == 16 && PYSKIP_VNNI
    return (i32v) _mm512_dpwssd_epi32((__m512i) sum, (__m512i) a, (__m512i) b);
#    elif PYSKIP_LANES == 16
    return sum + (i32v) _mm512_madd_epi16((__m512i) a, (__m512i) b);
#    else
    return sum + (i32v) _mm256_madd_epi16((__m256i) a, (__m256i) b);
#    endif
}

// The first n lanes of memory, n <= L; the others are 0 and stay untouched.
inline f32v load_some(const float * p, int n) {
#    if PYSKIP_LANES == 16
    return (f32v) _mm512_maskz_loadu_ps((__mmask16) ((1u << n) - 1), p);
#    else
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return (f32v) _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lanes));
#    endif
}

inline void store_some(float * p, f32v v, int n) {
#    if PYSKIP_LANES == 16
    _mm512_mask_storeu_ps(p, (__mmask16) ((1u << n) - 1), (__m512) v);
#    else
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_maskstore_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lanes), (__m256) v);
#    endif
}

// Weights beyond 127 are stored as signed numbers where products are summed in 16 bits.
constexpr bool STORED_SIGNED = !PYSKIP_VNNI;

// What a sub-block's dot product is multiplied with, in the form that dot_product wants.
inline i32v factor_of(i32v scale) {
#    if PYSKIP_VNNI
    return scale;
#    else
    return (scale & 0xffff) | scale << 16;
#    endif
}

#    if PYSKIP_VNNI
// sum + the dot product of four 8-bit numbers a lane.
inline i32v dot_bytes(i32v sum, u8v w, i32v a) {
#        if PYSKIP_LANES == 16
    return (i32v) _mm512_dpbusd_epi32((__m512i) sum, (__m512i) w, (__m512i) a);
#        elif defined(__AVX512VNNI__)
    return (i32v) _mm256_dpbusd_epi32((__m256i) sum, (__m256i) w, (__m256i) a);
#        else
    return (i32v) _mm256_dpbusd_avx_epi32((__m256i) sum, (__m256i) w, (__m256i) a);
#        endif
}
#    endif

// total += factor * (start + the dot product of weights and activations), four 8-bit numbers of each a lane and step.
// `step` counts from 0 to STEPS - 1 and is known when compiled, as is the largest weight, MAX.
//
// Without VNNI products are summed in 16 bits for as long as they fit: 127 MAX 2 times the number of steps must stay
// below 2^15. MAX = 255: not even one fits, the weights are signed instead.
template <int MAX, int STEPS> class dot_product {
public:
    dot_product() = default;

#    if PYSKIP_VNNI
    explicit dot_product(i32v start) : sum(start) {}

    void add(int, u8v w, i32v a, i32v, i32v &) { sum = dot_bytes(sum, w, a); }

    void finish(i32v factor, i32v & total) const { total += sum * factor; }

private:
    i32v sum;
#    else
    explicit dot_product(i32v) {}

    void add(int step, u8v w, i32v a, i32v factor, i32v & total) {
        constexpr int fit = MAX <= 15 ? 8 : MAX <= 31 ? 4 : MAX <= 63 ? 2 : 1;
        constexpr int n   = fit < STEPS ? fit : STEPS;
        const u16v    p   = products(w, a);
        part              = step % n == 0 ? p : part + p;
        asm("" : "+v"(part)); // in this order: the compiler would add in pairs, and run out of registers
        if (step % n == n - 1) {
            total = dot_pairs(total, (i32v) part, factor);
            asm("" : "+v"(total));
        }
    }

    void finish(i32v, i32v &) const {}

private:
    u16v part;

    static u16v products(u8v w, i32v a) {
#        if PYSKIP_LANES == 16
        if (MAX == 255) {
            const __mmask64 negative = _mm512_movepi8_mask((__m512i) w);
            a = (i32v) _mm512_mask_sub_epi8((__m512i) a, negative, _mm512_setzero_si512(), (__m512i) a);
            w = (u8v) _mm512_abs_epi8((__m512i) w);
        }
        return (u16v) _mm512_maddubs_epi16((__m512i) w, (__m512i) a);
#        else
        if (MAX == 255) {
            a = (i32v) _mm256_sign_epi8((__m256i) a, (__m256i) w);
            w = (u8v) _mm256_abs_epi8((__m256i) w);
        }
        return (u16v) _mm256_maddubs_epi16((__m256i) w, (__m256i) a);
#        endif
    }
#    endif
};

} // namespace pyskip_cpu

#endif // PYSKIP_LANES
