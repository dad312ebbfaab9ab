/* Vectors of sixteen numbers.
 *
 * Every function here computes a row from that row alone, always in the same order, so that a row's result is the same bit for
 * bit whatever is computed beside it. All of speculative decoding in bfloat16 rests on this.
 */
#ifndef DECODERY_ARITHMETIC_H
#define DECODERY_ARITHMETIC_H

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "decoder.h"
#include "lanes.h"

#if DECODERY_AVX512 && defined(__AMX_TILE__) && defined(__AMX_BF16__)
#define DECODERY_AMX 1
#else
#define DECODERY_AMX 0
#endif

enum { TILE = 16, DEPTH = 32, TILE_ELEMENTS = TILE * DEPTH };

#define LOG2_E 1.44269504f

/* 2 to the power x, x at most 127.9: 2^n * 2^f with f in [-1/2, 1/2] and the polynomial nearest to 2^f of those that are 1 at 0; relative
 * error below 3e-6, a thousandth of what bfloat16 rounds. Of minus infinity it is 0. */
static inline Floats power_of_two(Floats x) {
    Floats n = nearest(x), f = minus(x, n);
    Floats sum = every(9.58538242e-3f);
    sum = times_plus(sum, f, every(5.59066273e-2f));
    sum = times_plus(sum, f, every(2.40240380e-1f));
    sum = times_plus(sum, f, every(6.93124175e-1f));
    sum = times_plus(sum, f, every(1.0f));
    return scaled(sum, n);
}

/* e to the power x, up to nearly the largest number. */
static inline Floats exponential(Floats x) { return power_of_two(smaller(times(x, every(LOG2_E)), every(127.9f))); }

static inline Floats silu(Floats x) { return times(x, reciprocal(plus(every(1.0f), exponential(minus(zeros(), x))))); }

/* gelu with the tanh approximation, written with the logistic function: x * s(2 * sqrt(2 / pi) * (x + 0.044715 x^3)). */
static inline Floats gelu(Floats x) {
    Floats cube = times(times(x, x), x);
    Floats inner = times(times_plus(cube, every(0.044715f), x), every(-1.59576912f));
    return times(x, reciprocal(plus(every(1.0f), exponential(inner))));
}

static inline float root_mean_square_inverse(Floats squares, int64_t count, float epsilon) {
    float mean = sum_of(squares) / (float)count + epsilon;
    return 1.0f / sqrtf(mean);
}

/* 1 / root mean square of a row. count: a multiple of 16. */
static inline float inverse_scale(const float *row, int64_t count, float epsilon) {
    Floats sum = zeros();
    for (int64_t i = 0; i < count; i += TILE) {
        Floats x = load(row + i);
        sum = times_plus(x, x, sum);
    }
    return root_mean_square_inverse(sum, count, epsilon);
}

static inline void normalise(const bf16 *row, const float *weight, int64_t count, float epsilon, bf16 *to) {
    Floats sum = zeros();
    for (int64_t i = 0; i < count; i += TILE) {
        Floats x = load_bf16(row + i);
        sum = times_plus(x, x, sum);
    }
    Floats scale = every(root_mean_square_inverse(sum, count, epsilon));
    for (int64_t i = 0; i < count; i += TILE)
        store_bf16(to + i, times(times(load_bf16(row + i), scale), load(weight + i)));
}

/* Scores of 32 columns [32, 16 lanes] as one tile of weights [16 lanes, 32] in bfloat16. */
static inline void pack_weights(const float *scores, bf16 *to) {
    Integers pair[TILE]; /* each lane's two columns side by side */
    for (int i = 0; i < TILE; i++) pair[i] = pairs_of(load(scores + 2 * i * TILE), load(scores + (2 * i + 1) * TILE));
    transpose(pair);
    for (int lane = 0; lane < TILE; lane++) store_integers(to + lane * DEPTH, pair[lane]);
}

/* Values lie in the cache in pairs of rows, for each width the numbers of both side by side: so the matrix unit takes them as they
 * are. A vector of pairs has 16 widths. */
static inline Floats first_of_pairs(Integers pairs) { return as_floats(shift_left(pairs, 16)); }
static inline Floats second_of_pairs(Integers pairs) { return as_floats(both(pairs, every_integer((int32_t)0xffff0000))); }

static inline Floats load_from_pairs(const bf16 *values, int64_t width, int64_t row, int64_t at) {
    Integers pairs = load_integers(values + (row / 2 * width + at) * 2);
    return row % 2 ? second_of_pairs(pairs) : first_of_pairs(pairs);
}

static inline void store_in_pairs(bf16 *values, int64_t width, int64_t row, int64_t at, Floats value) {
    bf16 *to = values + (row / 2 * width + at) * 2;
    Integers numbers = bf16_bits(value), pairs = load_integers(to);
    if (row % 2)
        pairs = either(both(pairs, every_integer(0xffff)), shift_left(numbers, 16));
    else
        pairs = either(both(pairs, every_integer((int32_t)0xffff0000)), numbers);
    store_integers(to, pairs);
}

#endif
