/* Products of whole numbers by the dot products of Armv8.2. Included by integers.h alone, which says what is what. */
#ifndef DECODERY_DOT_PRODUCTS_NEON_H
#define DECODERY_DOT_PRODUCTS_NEON_H

#include "integers.h"

enum { VECTORS = 4, MOST_ROWS = 4 };
typedef int8x16_t Whole; /* of weights and of rows */
typedef float32x4_t Real;

static inline Whole load_whole(const void *from) { return vld1q_s8(from); }
static inline Whole lower_digits(Whole x) { return vandq_s8(x, vdupq_n_s8(15)); }
static inline Whole upper_digits(Whole x) { return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(x), 4)); }
static inline Real load_real_halves(const void *from) { return four_halves(from); }
static inline Real load_real(const float *from) { return vld1q_f32(from); }
static inline void store_real(float *to, Real x) { vst1q_f32(to, x); }
static inline Real every_real(float x) { return vdupq_n_f32(x); }
static inline Real to_real(int32x4_t x) { return vcvtq_f32_s32(x); }
static inline Real real_times(Real a, Real b) { return vmulq_f32(a, b); }
static inline Real real_times_plus(Real a, Real b, Real c) { return vfmaq_f32(c, a, b); }
static inline Real real_minus_times(Real c, Real a, Real b) { return vfmsq_f32(c, a, b); }

/* Both factors of these products have a sign. Weights of eight bits whose zero is 128 get theirs here, the others are below 128. */
static inline Whole load_weights(const void *from, const int zero) {
    Whole x = load_whole(from);
    return zero ? veorq_s8(x, vdupq_n_s8(-128)) : x;
}
static inline int zero_left(const int bits, const int zero) { return bits == 8 ? 0 : zero; }

/* The sums over 4 * count inputs, 16 or 32, of products of weights with a row's numbers. */
static inline __attribute__((always_inline)) int32x4_t dot(const Whole *weights, const int8_t *row, const int count, const int small) {
    (void)small;
    int32x4_t sum = vdupq_n_s32(0);
    for (int v = 0; v < count; v += 4) {
        Whole inputs = load_whole(row + 4 * v);
        sum = vdotq_laneq_s32(sum, weights[v], inputs, 0);
        sum = vdotq_laneq_s32(sum, weights[v + 1], inputs, 1);
        sum = vdotq_laneq_s32(sum, weights[v + 2], inputs, 2);
        sum = vdotq_laneq_s32(sum, weights[v + 3], inputs, 3);
    }
    return sum;
}

#endif
