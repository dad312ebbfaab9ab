/* Sixteen lanes as one register of AVX-512. Included by lanes.h alone, which says what is what. */
#ifndef DECODERY_LANES_AVX512_H
#define DECODERY_LANES_AVX512_H

#include "lanes.h"

typedef __m512 Floats;
typedef __m512i Integers;

static inline Floats load(const float *from) { return _mm512_loadu_ps(from); }
static inline Floats load_some(uint16_t lanes, const float *from) { return _mm512_maskz_loadu_ps(lanes, from); } /* the others: 0 */
static inline void store(float *to, Floats x) { _mm512_storeu_ps(to, x); }
static inline void store_some(float *to, uint16_t lanes, Floats x) { _mm512_mask_storeu_ps(to, lanes, x); }
static inline Floats every(float x) { return _mm512_set1_ps(x); }
static inline Floats zeros(void) { return _mm512_setzero_ps(); }

static inline Floats plus(Floats a, Floats b) { return _mm512_add_ps(a, b); }
static inline Floats minus(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
static inline Floats times(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
static inline Floats over(Floats a, Floats b) { return _mm512_div_ps(a, b); }
static inline Floats times_plus(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }       /* a * b + c */
static inline Floats times_minus(Floats a, Floats b, Floats c) { return _mm512_fmsub_ps(a, b, c); }  /* a * b - c */
static inline Floats minus_times(Floats c, Floats a, Floats b) { return _mm512_fnmadd_ps(a, b, c); } /* c - a * b */
static inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }   /* b where one is no number */
static inline Floats smaller(Floats a, Floats b) { return _mm512_min_ps(a, b); }
static inline Floats size_of(Floats x) { return _mm512_abs_ps(x); }
static inline Floats nearest(Floats x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline Floats choose(uint16_t lanes, Floats there, Floats elsewhere) { return _mm512_mask_mov_ps(elsewhere, lanes, there); }
static inline Floats keep(uint16_t lanes, Floats x) { return _mm512_maskz_mov_ps(lanes, x); }
static inline uint16_t above(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
static inline uint16_t unlike(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ); }

static inline __m256 upper_half(Floats x) { return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1)); }
static inline float sum_of(Floats x) { return sum_of_eight(_mm256_add_ps(upper_half(x), _mm512_castps512_ps256(x))); }
static inline float least_of(Floats x) { return least_of_eight(_mm256_min_ps(upper_half(x), _mm512_castps512_ps256(x))); }
static inline float most_of(Floats x) { return most_of_eight(_mm256_max_ps(upper_half(x), _mm512_castps512_ps256(x))); }

/* x * 2^n for whole n, also where that has fewer digits. What is no number, times 2^-infinity, is 0. */
static inline Floats scaled(Floats x, Floats n) { return _mm512_scalef_ps(x, n); }

/* 1 / x by an estimate of 14 bits and a step of Newton's method; relative error below 1e-7. */
static inline Floats reciprocal(Floats x) {
    Floats guess = _mm512_rcp14_ps(x);
    return times(guess, minus_times(every(2.0f), x, guess));
}

static inline Integers load_integers(const void *from) { return _mm512_loadu_si512(from); }
static inline Integers load_bytes(const void *from) { return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)); } /* signed */
static inline Integers load_words(const void *from) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)); }
static inline void store_integers(void *to, Integers x) { _mm512_storeu_si512(to, x); }
static inline void store_bytes(void *to, Integers x) { _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8(x)); } /* -128 to 127 */
static inline Integers every_integer(int32_t x) { return _mm512_set1_epi32(x); }
static inline Integers both(Integers a, Integers b) { return _mm512_and_si512(a, b); }
static inline Integers either(Integers a, Integers b) { return _mm512_or_si512(a, b); }
static inline Integers shift_left(Integers x, int bits) { return _mm512_slli_epi32(x, (unsigned)bits); }
static inline Integers shift_right(Integers x, int bits) { return _mm512_srli_epi32(x, (unsigned)bits); }
static inline Integers count_in(Integers x, uint16_t lanes) { return _mm512_mask_add_epi32(x, lanes, x, _mm512_set1_epi32(1)); }
static inline uint16_t at_least(Integers a, Integers b) { return _mm512_cmpge_epi32_mask(a, b); }
static inline Integers larger_integers(Integers a, Integers b) { return _mm512_max_epi32(a, b); }
static inline int32_t most_of_integers(Integers x) { return _mm512_reduce_max_epi32(x); }
static inline int32_t sum_of_integers(Integers x) { return _mm512_reduce_add_epi32(x); }
static inline Floats to_floats(Integers x) { return _mm512_cvtepi32_ps(x); }
static inline Integers to_integers(Floats x) { return _mm512_cvtps_epi32(x); } /* nearest */
static inline Floats as_floats(Integers bits) { return _mm512_castsi512_ps(bits); }

static inline Floats load_halves(const void *from) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from)); }
static inline void store_halves(void *to, Floats x) {
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

/* Bits of the nearest bfloat16, in the lower half of each lane; even where two are near. Numbers below 2^-126 become zero. */
static inline Integers bf16_bits(Floats x) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)); }
static inline void store_bf16(bf16 *to, Floats x) { _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x)); }
static inline void store_two_bf16(bf16 *to, Floats first, Floats second) {
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

/* In each lane two bfloat16 numbers, the first in the lower half. */
static inline Integers pairs_of(Floats first, Floats second) {
    static const uint16_t turns[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                       8,  24, 9,  25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_loadu_si512(turns), (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

/* Transpose 16 x 16 numbers of 32 bits. */
static inline void transpose(Integers x[16]) {
    __m512i y[16];
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; j++) {
            y[i + j] = _mm512_shuffle_i32x4(x[i + j], x[i + j + 4], 0x88);
            y[i + j + 4] = _mm512_shuffle_i32x4(x[i + j], x[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        x[j] = _mm512_shuffle_i32x4(y[j], y[j + 8], 0x88);
        x[j + 8] = _mm512_shuffle_i32x4(y[j], y[j + 8], 0xdd);
    }
}

#endif
