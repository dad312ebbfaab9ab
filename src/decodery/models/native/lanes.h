/* Sixteen lanes: vectors of sixteen floats (`Floats`) and of sixteen integers of 32 bits (`Integers`).
 *
 * What the decoder computes by lanes is written in these few functions, so another processor needs its own form of them, and
 * products that suit it. All forms give the same bits, but for `reciprocal`. Which lanes are meant is said by a bit for each, that of
 * the first being the lowest.
 */
#ifndef DECODERY_LANES_H
#define DECODERY_LANES_H

#include <immintrin.h>
#include <stdint.h>

#include "decoder.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && defined(__AVX512BF16__)
#define DECODERY_AVX512 1
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define DECODERY_AVX512 0
#else
#error "the native decoder needs a processor with AVX2, FMA and F16C"
#endif

/* Sums and extremes of eight lanes; of sixteen the upper eight are first joined with the lower. */
static inline float sum_of_eight(__m256 x) {
    __m128 four = _mm_add_ps(_mm256_extractf128_ps(x, 1), _mm256_castps256_ps128(x)), two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

static inline float least_of_eight(__m256 x) {
    __m128 four = _mm_min_ps(_mm256_extractf128_ps(x, 1), _mm256_castps256_ps128(x)), two = _mm_min_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)));
}

static inline float most_of_eight(__m256 x) {
    __m128 four = _mm_max_ps(_mm256_extractf128_ps(x, 1), _mm256_castps256_ps128(x)), two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

#if DECODERY_AVX512
#include "lanes_avx512.h"
#else
#include "lanes_avx2.h"
#endif

static inline Floats load_bf16(const bf16 *from) { return as_floats(shift_left(load_words(from), 16)); }
static inline Floats rounded(Floats x) { return as_floats(shift_left(bf16_bits(x), 16)); }

#endif
