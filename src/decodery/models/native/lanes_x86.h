/* What the lanes of AVX2 and of AVX-512 have in common. Included by lanes.h alone, which says what is what. */
#ifndef DECODERY_LANES_X86_H
#define DECODERY_LANES_X86_H

#include <immintrin.h>
#include <stdint.h>

static inline void pause_thread(void) { _mm_pause(); }
static inline void fetch_line(const void *at) { _mm_prefetch((const char *)at, _MM_HINT_T0); }
static inline float half_to_float(uint16_t bits) { return _cvtsh_ss(bits); }
static inline uint16_t float_to_half(float value) { return (uint16_t)_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }

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

#endif
