/* Products of whole numbers by AVX2, AVX-VNNI or AVX-512 VNNI. Included by integers.h alone, which says what is what. */
#ifndef DECODERY_DOT_PRODUCTS_X86_H
#define DECODERY_DOT_PRODUCTS_X86_H

#include <string.h>

#include "integers.h"

#if DECODERY_AVX512 && defined(__AVX512VNNI__)
enum { VECTORS = 1 };
typedef __m512i Whole;
typedef __m512 Real;
#define VECTOR(name) _mm512_##name
static inline Whole load_whole(const void *from) { return _mm512_loadu_si512(from); }
static inline Whole lower_digits(Whole x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
static inline Whole no_sum(void) { return _mm512_setzero_si512(); }
static inline Real load_real_halves(const void *from) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from)); }
#else
enum { VECTORS = 2 };
typedef __m256i Whole;
typedef __m256 Real;
#define VECTOR(name) _mm256_##name
static inline Whole load_whole(const void *from) { return _mm256_loadu_si256((const __m256i *)from); }
static inline Whole lower_digits(Whole x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
static inline Whole no_sum(void) { return _mm256_setzero_si256(); }
static inline Real load_real_halves(const void *from) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from)); }
#endif
enum { MOST_ROWS = 8 / VECTORS };

static inline Whole upper_digits(Whole x) { return lower_digits(VECTOR(srli_epi16)(x, 4)); }
static inline Real load_real(const float *from) { return VECTOR(loadu_ps)(from); }
static inline void store_real(float *to, Real x) { VECTOR(storeu_ps)(to, x); }
static inline Real every_real(float x) { return VECTOR(set1_ps)(x); }
static inline Real to_real(Whole x) { return VECTOR(cvtepi32_ps)(x); }
static inline Real real_times(Real a, Real b) { return VECTOR(mul_ps)(a, b); }
static inline Real real_times_plus(Real a, Real b, Real c) { return VECTOR(fmadd_ps)(a, b, c); }
static inline Real real_minus_times(Real c, Real a, Real b) { return VECTOR(fnmadd_ps)(a, b, c); }

/* These instructions take weights as they are, so their zero is left to be taken off the sums. */
static inline Whole load_weights(const void *from, const int zero) {
    (void)zero;
    return load_whole(from);
}
static inline int zero_left(const int bits, const int zero) {
    (void)bits;
    return zero;
}

static inline Whole four_inputs(const int8_t *from) {
    int32_t four;
    memcpy(&four, from, sizeof four);
    return VECTOR(set1_epi32)(four);
}

/* The sums over 4 * count inputs of products of weights, which are not negative, with a row's numbers. small: weights are below 16. */
static inline __attribute__((always_inline)) Whole dot(const Whole *weights, const int8_t *row, const int count, const int small) {
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
    (void)small;
    Whole sum = no_sum();
    for (int v = 0; v < count; v++)
#ifdef __AVX512VNNI__
        sum = _mm512_dpbusd_epi32(sum, weights[v], four_inputs(row + 4 * v));
#else
        sum = _mm256_dpbusd_avx_epi32(sum, weights[v], four_inputs(row + 4 * v));
#endif
    return sum;
#else
    const Whole ones = _mm256_set1_epi16(1);
    if (small) { /* all pairs of all vectors stay below 2^15: 8 * 2 * 15 * 127 */
        Whole sum = _mm256_maddubs_epi16(weights[0], four_inputs(row));
        for (int v = 1; v < count; v++) sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights[v], four_inputs(row + 4 * v)));
        return _mm256_madd_epi16(sum, ones);
    }
    /* Pairs of numbers up to 255 do not fit; their lower seven bits and the highest one do. */
    const Whole seven = _mm256_set1_epi8(127);
    Whole low = no_sum(), high = no_sum();
    for (int v = 0; v < count; v++) {
        Whole inputs = four_inputs(row + 4 * v);
        Whole top = _mm256_and_si256(_mm256_srli_epi16(weights[v], 7), _mm256_set1_epi8(1));
        low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_and_si256(weights[v], seven), inputs), ones));
        high = _mm256_add_epi16(high, _mm256_maddubs_epi16(top, inputs)); /* at most 8 * 2 * 127 */
    }
    return _mm256_add_epi32(low, _mm256_slli_epi32(_mm256_madd_epi16(high, ones), 7));
#endif
}

#endif
