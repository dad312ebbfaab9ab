/* Sixteen lanes as two registers of AVX2. Included by lanes.h alone, which says what is what. */
#ifndef DECODERY_LANES_AVX2_H
#define DECODERY_LANES_AVX2_H

#include "lanes.h"

typedef struct {
    __m256 low, high;
} Floats;

typedef struct {
    __m256i low, high;
} Integers;

/* All bits of the lanes that are meant. */
static inline __m256i chosen_eight(int lanes) {
    const __m256i own = _mm256_set_epi32(128, 64, 32, 16, 8, 4, 2, 1);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(lanes), own), own);
}
static inline Integers chosen(uint16_t lanes) { return (Integers){chosen_eight(lanes), chosen_eight(lanes >> 8)}; }

static inline Floats load(const float *from) { return (Floats){_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
static inline Floats load_some(uint16_t lanes, const float *from) { /* the others: 0 */
    Integers some = chosen(lanes);
    return (Floats){_mm256_maskload_ps(from, some.low), _mm256_maskload_ps(from + 8, some.high)};
}
static inline void store(float *to, Floats x) { _mm256_storeu_ps(to, x.low), _mm256_storeu_ps(to + 8, x.high); }
static inline void store_some(float *to, uint16_t lanes, Floats x) {
    Integers some = chosen(lanes);
    _mm256_maskstore_ps(to, some.low, x.low), _mm256_maskstore_ps(to + 8, some.high, x.high);
}
static inline Floats every(float x) { return (Floats){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline Floats zeros(void) { return (Floats){_mm256_setzero_ps(), _mm256_setzero_ps()}; }

static inline Floats plus(Floats a, Floats b) { return (Floats){_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
static inline Floats minus(Floats a, Floats b) { return (Floats){_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
static inline Floats times(Floats a, Floats b) { return (Floats){_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
static inline Floats over(Floats a, Floats b) { return (Floats){_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
static inline Floats times_plus(Floats a, Floats b, Floats c) { /* a * b + c */
    return (Floats){_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
static inline Floats times_minus(Floats a, Floats b, Floats c) { /* a * b - c */
    return (Floats){_mm256_fmsub_ps(a.low, b.low, c.low), _mm256_fmsub_ps(a.high, b.high, c.high)};
}
static inline Floats minus_times(Floats c, Floats a, Floats b) { /* c - a * b */
    return (Floats){_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}
static inline Floats larger(Floats a, Floats b) { /* b where one is no number */
    return (Floats){_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
static inline Floats smaller(Floats a, Floats b) { return (Floats){_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
static inline Floats size_of(Floats x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return (Floats){_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
}
static inline Floats nearest(Floats x) {
    enum { NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };
    return (Floats){_mm256_round_ps(x.low, NEAREST), _mm256_round_ps(x.high, NEAREST)};
}
static inline Floats as_floats(Integers bits) { return (Floats){_mm256_castsi256_ps(bits.low), _mm256_castsi256_ps(bits.high)}; }
static inline Floats choose(uint16_t lanes, Floats there, Floats elsewhere) {
    Floats some = as_floats(chosen(lanes));
    return (Floats){_mm256_blendv_ps(elsewhere.low, there.low, some.low), _mm256_blendv_ps(elsewhere.high, there.high, some.high)};
}
static inline Floats keep(uint16_t lanes, Floats x) {
    Floats some = as_floats(chosen(lanes));
    return (Floats){_mm256_and_ps(some.low, x.low), _mm256_and_ps(some.high, x.high)};
}
static inline uint16_t lanes_of(__m256 low, __m256 high) {
    return (uint16_t)(_mm256_movemask_ps(low) | _mm256_movemask_ps(high) << 8);
}
static inline uint16_t above(Floats a, Floats b) {
    return lanes_of(_mm256_cmp_ps(a.low, b.low, _CMP_GT_OQ), _mm256_cmp_ps(a.high, b.high, _CMP_GT_OQ));
}
static inline uint16_t unlike(Floats a, Floats b) {
    return lanes_of(_mm256_cmp_ps(a.low, b.low, _CMP_NEQ_UQ), _mm256_cmp_ps(a.high, b.high, _CMP_NEQ_UQ));
}

static inline float sum_of(Floats x) { return sum_of_eight(_mm256_add_ps(x.high, x.low)); }
static inline float least_of(Floats x) { return least_of_eight(_mm256_min_ps(x.high, x.low)); }
static inline float most_of(Floats x) { return most_of_eight(_mm256_max_ps(x.high, x.low)); }

static inline Integers load_integers(const void *from) {
    return (Integers){_mm256_loadu_si256((const __m256i *)from), _mm256_loadu_si256((const __m256i *)from + 1)};
}
static inline Integers load_bytes(const void *from) { /* signed */
    __m128i all = _mm_loadu_si128((const __m128i *)from);
    return (Integers){_mm256_cvtepi8_epi32(all), _mm256_cvtepi8_epi32(_mm_srli_si128(all, 8))};
}
static inline Integers load_words(const void *from) {
    const __m128i *part = (const __m128i *)from;
    return (Integers){_mm256_cvtepu16_epi32(_mm_loadu_si128(part)), _mm256_cvtepu16_epi32(_mm_loadu_si128(part + 1))};
}
static inline void store_integers(void *to, Integers x) {
    _mm256_storeu_si256((__m256i *)to, x.low), _mm256_storeu_si256((__m256i *)to + 1, x.high);
}
/* Sixteen words, of sixteen lanes below 2^16. */
static inline __m256i words_of(Integers x) { return _mm256_permute4x64_epi64(_mm256_packus_epi32(x.low, x.high), 0xd8); }
static inline void store_bytes(void *to, Integers x) { /* -128 to 127 */
    __m256i words = _mm256_packs_epi32(x.low, x.high);
    words = _mm256_permute4x64_epi64(words, 0xd8);
    _mm_storeu_si128((__m128i *)to, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
static inline Integers every_integer(int32_t x) { return (Integers){_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
static inline Integers both(Integers a, Integers b) { return (Integers){_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)}; }
static inline Integers either(Integers a, Integers b) { return (Integers){_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)}; }
static inline Integers shift_left(Integers x, int bits) {
    return (Integers){_mm256_slli_epi32(x.low, bits), _mm256_slli_epi32(x.high, bits)};
}
static inline Integers shift_right(Integers x, int bits) {
    return (Integers){_mm256_srli_epi32(x.low, bits), _mm256_srli_epi32(x.high, bits)};
}
static inline Integers count_in(Integers x, uint16_t lanes) { /* what is chosen is -1 */
    Integers some = chosen(lanes);
    return (Integers){_mm256_sub_epi32(x.low, some.low), _mm256_sub_epi32(x.high, some.high)};
}
static inline uint16_t at_least(Integers a, Integers b) {
    __m256i low = _mm256_cmpgt_epi32(b.low, a.low), high = _mm256_cmpgt_epi32(b.high, a.high);
    return (uint16_t)~lanes_of(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high));
}
static inline Integers larger_integers(Integers a, Integers b) {
    return (Integers){_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)};
}
static inline int32_t most_of_integers(Integers x) {
    __m256i eight = _mm256_max_epi32(x.low, x.high);
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1)));
}
static inline int32_t sum_of_integers(Integers x) {
    __m256i eight = _mm256_add_epi32(x.low, x.high);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}
static inline Floats to_floats(Integers x) { return (Floats){_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }
static inline Integers to_integers(Floats x) { return (Integers){_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; } /* nearest */

/* x * 2^n for whole n up to 128, also where that has fewer digits: in two steps, for 2^n alone may be no number. What is no number, times
 * 2^-infinity, is 0. */
static inline __m256 scaled_eight(__m256 x, __m256 n) {
    const __m256i bias = _mm256_set1_epi32(127);
    const __m256 least = _mm256_set1_ps(-250.0f);
    __m256i power = _mm256_cvtps_epi32(_mm256_max_ps(least, n)), half = _mm256_srai_epi32(power, 1);
    __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    __m256i second = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(power, half), bias), 23);
    x = _mm256_andnot_ps(_mm256_cmp_ps(n, least, _CMP_LT_OQ), x);
    return _mm256_mul_ps(_mm256_mul_ps(x, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
}
static inline Floats scaled(Floats x, Floats n) { return (Floats){scaled_eight(x.low, n.low), scaled_eight(x.high, n.high)}; }

static inline Floats reciprocal(Floats x) { return over(every(1.0f), x); }

static inline Floats load_halves(const void *from) {
    const __m128i *part = (const __m128i *)from;
    return (Floats){_mm256_cvtph_ps(_mm_loadu_si128(part)), _mm256_cvtph_ps(_mm_loadu_si128(part + 1))};
}
static inline void store_halves(void *to, Floats x) {
    _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph(x.low, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i *)to + 1, _mm256_cvtps_ph(x.high, _MM_FROUND_TO_NEAREST_INT));
}

/* As the instruction does it that is missing here: bits of the nearest bfloat16, in the upper half of each lane, below them rubbish; even
 * where two are near. Numbers below 2^-126 become zero; what is no number stays none. */
static inline __m256i rounded_eight(__m256 x) {
    __m256i bits = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i near = _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff));
    const __m256 sign = _mm256_set1_ps(-0.0f), least = _mm256_set1_ps(0x1p-126f);
    __m256 tiny = _mm256_cmp_ps(_mm256_andnot_ps(sign, x), least, _CMP_LT_OQ), none = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    __m256 kept = _mm256_blendv_ps(_mm256_castsi256_ps(near), _mm256_and_ps(x, sign), tiny);
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    return _mm256_castps_si256(_mm256_blendv_ps(kept, _mm256_castsi256_ps(quiet), none));
}
static inline Integers rounded_bits(Floats x) { return (Integers){rounded_eight(x.low), rounded_eight(x.high)}; }
static inline Integers bf16_bits(Floats x) { return shift_right(rounded_bits(x), 16); }
static inline void store_bf16(bf16 *to, Floats x) { _mm256_storeu_si256((__m256i *)to, words_of(bf16_bits(x))); }
static inline void store_two_bf16(bf16 *to, Floats first, Floats second) { store_bf16(to, first), store_bf16(to + 16, second); }

/* In each lane two bfloat16 numbers, the first in the lower half. */
static inline Integers pairs_of(Floats first, Floats second) {
    return either(bf16_bits(first), both(rounded_bits(second), every_integer((int32_t)0xffff0000)));
}

/* What a register holds, for sums that need as many of them as there are: eight lanes. */
typedef __m256 Part;
enum { PART = 8 };

static inline Part load_part(const float *from) { return _mm256_loadu_ps(from); }
static inline void store_part(float *to, Part x) { _mm256_storeu_ps(to, x); }
static inline Part every_part(float x) { return _mm256_set1_ps(x); }
static inline Part part_times_plus(Part a, Part b, Part c) { return _mm256_fmadd_ps(a, b, c); }
/* Of pairs of bfloat16 numbers, the first and the second ones. */
static inline Part first_of_part(const bf16 *pairs) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256((const __m256i *)pairs), 16));
}
static inline Part second_of_part(const bf16 *pairs) {
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256((const __m256i *)pairs), _mm256_set1_epi32((int)0xffff0000)));
}

/* Transpose 8 x 8 numbers of 32 bits. */
static inline void transpose_eight(__m256i x[8]) {
    __m256i y[8];
    for (int i = 0; i < 8; i += 2) {
        y[i] = _mm256_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm256_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        x[i] = _mm256_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm256_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm256_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm256_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        y[i] = _mm256_permute2x128_si256(x[i], x[i + 4], 0x20);
        y[i + 4] = _mm256_permute2x128_si256(x[i], x[i + 4], 0x31);
    }
    for (int i = 0; i < 8; i++) x[i] = y[i];
}

/* Transpose 16 x 16 numbers of 32 bits, a quarter after the other. */
static inline void transpose(Integers x[16]) {
    __m256i corner[4][8];
    for (int i = 0; i < 8; i++) {
        corner[0][i] = x[i].low, corner[1][i] = x[i].high;
        corner[2][i] = x[i + 8].low, corner[3][i] = x[i + 8].high;
    }
    for (int i = 0; i < 4; i++) transpose_eight(corner[i]);
    for (int i = 0; i < 8; i++) x[i] = (Integers){corner[0][i], corner[2][i]}, x[i + 8] = (Integers){corner[1][i], corner[3][i]};
}

#endif
