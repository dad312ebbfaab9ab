/* Vectors of sixteen numbers.
 *
 * Every function here computes a row from that row alone, always in the same order, so that a row's result is the same bit for
 * bit whatever is computed beside it. All of speculative decoding in bfloat16 rests on this.
 */
#ifndef DECODERY_ARITHMETIC_H
#define DECODERY_ARITHMETIC_H

#include <immintrin.h>
#include <stddef.h>
#include <string.h>

#include "decoder.h"

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512BF16__)
#error "the native decoder needs a processor with AVX-512 and its bfloat16 instructions"
#endif
#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && !defined(DECODERY_NO_AMX)
#define DECODERY_AMX 1
#else
#define DECODERY_AMX 0
#endif

enum { TILE = 16, DEPTH = 32, TILE_ELEMENTS = TILE * DEPTH };

static inline __m512 load_bf16(const bf16 *from) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

static inline void store_bf16(bf16 *to, __m512 value) {
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(value));
}

static inline __m512 rounded(__m512 value) {
    __m512i wide = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(value));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

#define LOG2_E 1.44269504f

/* 2 to the power x, x at most 127: 2^n * 2^f with f in [-1/2, 1/2] and the polynomial nearest to 2^f of those that are 1 at 0; relative
 * error below 3e-6, a thousandth of what bfloat16 rounds. Of minus infinity it is 0: what is no number, times 2^-infinity, scalef takes for 0. */
static inline __m512 power_of_two(__m512 x) {
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 part = _mm512_sub_ps(x, whole);
    __m512 sum = _mm512_set1_ps(9.58538242e-3f);
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(5.59066273e-2f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(2.40240380e-1f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(6.93124175e-1f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(sum, whole);
}

/* e to the power x, up to nearly the largest number. */
static inline __m512 exponential(__m512 x) {
    return power_of_two(_mm512_min_ps(_mm512_mul_ps(x, _mm512_set1_ps(LOG2_E)), _mm512_set1_ps(127.9f)));
}

/* 1 / x by an estimate of 14 bits and a step of Newton's method; relative error below 1e-7. */
static inline __m512 reciprocal(__m512 x) {
    __m512 guess = _mm512_rcp14_ps(x);
    return _mm512_mul_ps(guess, _mm512_fnmadd_ps(x, guess, _mm512_set1_ps(2.0f)));
}

static inline __m512 silu(__m512 x) {
    __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_mul_ps(x, reciprocal(_mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x)))));
}

/* gelu with the tanh approximation, written with the logistic function: x * s(2 * sqrt(2 / pi) * (x + 0.044715 x^3)). */
static inline __m512 gelu(__m512 x) {
    __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
    __m512 inner = _mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x);
    inner = _mm512_mul_ps(inner, _mm512_set1_ps(-1.59576912f));
    return _mm512_mul_ps(x, reciprocal(_mm512_add_ps(_mm512_set1_ps(1.0f), exponential(inner))));
}

static inline float root_mean_square_inverse(__m512 squares, int64_t count, float epsilon) {
    float mean = _mm512_reduce_add_ps(squares) / (float)count + epsilon;
    return _mm_cvtss_f32(_mm_div_ss(_mm_set_ss(1.0f), _mm_sqrt_ss(_mm_set_ss(mean))));
}

/* 1 / root mean square of a row. count: a multiple of 16. */
static inline float inverse_scale(const float *row, int64_t count, float epsilon) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i += TILE) {
        __m512 x = _mm512_loadu_ps(row + i);
        sum = _mm512_fmadd_ps(x, x, sum);
    }
    return root_mean_square_inverse(sum, count, epsilon);
}

static inline void normalise(const bf16 *row, const float *weight, int64_t count, float epsilon, bf16 *to) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i += TILE) {
        __m512 x = load_bf16(row + i);
        sum = _mm512_fmadd_ps(x, x, sum);
    }
    __m512 scale = _mm512_set1_ps(root_mean_square_inverse(sum, count, epsilon));
    for (int64_t i = 0; i < count; i += TILE)
        store_bf16(to + i, _mm512_mul_ps(_mm512_mul_ps(load_bf16(row + i), scale), _mm512_loadu_ps(weight + i)));
}

/* Transpose 16 x 16 numbers of 32 bits. */
static inline void transpose(__m512i x[16]) {
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

/* Scores of 32 columns [32, 16 lanes] as one tile of weights [16 lanes, 32] in bfloat16. */
static inline void pack_weights(const float *scores, bf16 *to) {
    /* Each lane's two columns side by side: the first in the low half. */
    static const uint16_t turns[DEPTH] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                          8,  24, 9,  25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i by_turns = _mm512_loadu_si512(turns);
    __m512i pair[16];
    for (int i = 0; i < 16; i++) {
        __m512 first = _mm512_loadu_ps(scores + 2 * i * TILE), second = _mm512_loadu_ps(scores + (2 * i + 1) * TILE);
        pair[i] = _mm512_permutexvar_epi16(by_turns, (__m512i)_mm512_cvtne2ps_pbh(second, first));
    }
    transpose(pair);
    for (int lane = 0; lane < 16; lane++) _mm512_storeu_si512(to + lane * DEPTH, pair[lane]);
}

/* Values lie in the cache in pairs of rows, for each width the numbers of both side by side: so the matrix unit takes them as they
 * are. A vector of pairs has 16 widths. */
static inline __m512 first_of_pairs(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }

static inline __m512 second_of_pairs(__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
}

static inline __m512 load_from_pairs(const bf16 *values, int64_t width, int64_t row, int64_t at) {
    __m512i pairs = _mm512_loadu_si512(values + (row / 2 * width + at) * 2);
    return row % 2 ? second_of_pairs(pairs) : first_of_pairs(pairs);
}

static inline void store_in_pairs(bf16 *values, int64_t width, int64_t row, int64_t at, __m512 value) {
    bf16 *to = values + (row / 2 * width + at) * 2;
    __m512i numbers = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(value)), pairs = _mm512_loadu_si512(to);
    if (row % 2)
        pairs = _mm512_mask_mov_epi16(pairs, 0xaaaaaaaa, _mm512_slli_epi32(numbers, 16));
    else
        pairs = _mm512_mask_mov_epi16(pairs, 0x55555555, numbers);
    _mm512_storeu_si512(to, pairs);
}

#endif
