/* Sixteen lanes as four registers of NEON. Included by lanes.h alone, which says what is what. */
#ifndef DECODERY_LANES_NEON_H
#define DECODERY_LANES_NEON_H

#include <arm_neon.h>
#include <string.h>

#include "lanes.h"

typedef struct {
    float32x4_t part[4];
} Floats;

typedef struct {
    uint32x4_t part[4];
} Integers;

/* A function of registers, of all four. */
#define OF_NONE(type, f, ...) ((type){{f(__VA_ARGS__), f(__VA_ARGS__), f(__VA_ARGS__), f(__VA_ARGS__)}})
#define OF_ONE(type, f, x) ((type){{f((x).part[0]), f((x).part[1]), f((x).part[2]), f((x).part[3])}})
#define OF_TWO(type, f, x, y) \
    ((type){{f((x).part[0], (y).part[0]), f((x).part[1], (y).part[1]), f((x).part[2], (y).part[2]), f((x).part[3], (y).part[3])}})
#define OF_THREE(type, f, x, y, z) \
    ((type){{f((x).part[0], (y).part[0], (z).part[0]), f((x).part[1], (y).part[1], (z).part[1]), \
             f((x).part[2], (y).part[2], (z).part[2]), f((x).part[3], (y).part[3], (z).part[3])}})

/* Of Arm's two instructions for it, `yield` does nothing on most processors. */
static inline void pause_thread(void) { __asm__ volatile("isb" ::: "memory"); }
static inline void fetch_line(const void *at) { __builtin_prefetch(at); }
static inline float half_to_float(uint16_t bits) {
    __fp16 half;
    memcpy(&half, &bits, sizeof half);
    return (float)half;
}
static inline uint16_t float_to_half(float value) {
    __fp16 half = (__fp16)value;
    uint16_t bits;
    memcpy(&bits, &half, sizeof bits);
    return bits;
}

/* All bits of the lanes that are meant, and back. */
static inline uint32x4_t chosen_four(int lanes) {
    const uint32x4_t own = {1, 2, 4, 8};
    return vtstq_u32(vdupq_n_u32((uint32_t)lanes), own);
}
static inline Integers chosen(uint16_t lanes) {
    return (Integers){{chosen_four(lanes), chosen_four(lanes >> 4), chosen_four(lanes >> 8), chosen_four(lanes >> 12)}};
}
static inline uint16_t lanes_of(Integers all_bits) {
    const Integers own = {{{1, 2, 4, 8}, {16, 32, 64, 128}, {256, 512, 1024, 2048}, {4096, 8192, 16384, 32768}}};
    Integers x = OF_TWO(Integers, vandq_u32, all_bits, own);
    return (uint16_t)vaddvq_u32(vorrq_u32(vorrq_u32(x.part[0], x.part[1]), vorrq_u32(x.part[2], x.part[3])));
}

static inline Floats load(const float *from) {
    return (Floats){{vld1q_f32(from), vld1q_f32(from + 4), vld1q_f32(from + 8), vld1q_f32(from + 12)}};
}
static inline void store(float *to, Floats x) {
    for (int i = 0; i < 4; i++) vst1q_f32(to + 4 * i, x.part[i]);
}
static inline void store_some(float *to, uint16_t lanes, Floats x) {
    float all[16];
    if (lanes == 0xffff) {
        store(to, x);
        return;
    }
    store(all, x);
    for (unsigned left = lanes; left; left &= left - 1) to[__builtin_ctz(left)] = all[__builtin_ctz(left)];
}
static inline Floats load_some(uint16_t lanes, const float *from) { /* the others: 0; they may not be there */
    float all[16] = {0};
    if (lanes == 0xffff) return load(from);
    for (unsigned left = lanes; left; left &= left - 1) all[__builtin_ctz(left)] = from[__builtin_ctz(left)];
    return load(all);
}
static inline Floats every(float x) { return OF_NONE(Floats, vdupq_n_f32, x); }
static inline Floats zeros(void) { return every(0); }

/* The order of what is multiplied and added: as on x86. */
static inline float32x4_t four_times_plus(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(c, a, b); }
static inline float32x4_t four_times_minus(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(vnegq_f32(c), a, b); }
/* As x86 has them: the second where one is no number, or both are zero. */
static inline float32x4_t larger_four(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
static inline float32x4_t smaller_four(float32x4_t a, float32x4_t b) { return vbslq_f32(vcltq_f32(a, b), a, b); }

static inline Floats plus(Floats a, Floats b) { return OF_TWO(Floats, vaddq_f32, a, b); }
static inline Floats minus(Floats a, Floats b) { return OF_TWO(Floats, vsubq_f32, a, b); }
static inline Floats times(Floats a, Floats b) { return OF_TWO(Floats, vmulq_f32, a, b); }
static inline Floats over(Floats a, Floats b) { return OF_TWO(Floats, vdivq_f32, a, b); }
static inline Floats times_plus(Floats a, Floats b, Floats c) { return OF_THREE(Floats, four_times_plus, a, b, c); }   /* a * b + c */
static inline Floats times_minus(Floats a, Floats b, Floats c) { return OF_THREE(Floats, four_times_minus, a, b, c); } /* a * b - c */
static inline Floats minus_times(Floats c, Floats a, Floats b) { return OF_THREE(Floats, vfmsq_f32, c, a, b); }        /* c - a * b */
static inline Floats larger(Floats a, Floats b) { return OF_TWO(Floats, larger_four, a, b); } /* b where one is no number */
static inline Floats smaller(Floats a, Floats b) { return OF_TWO(Floats, smaller_four, a, b); }
static inline Floats size_of(Floats x) { return OF_ONE(Floats, vabsq_f32, x); }
static inline Floats nearest(Floats x) { return OF_ONE(Floats, vrndnq_f32, x); }
static inline Floats as_floats(Integers bits) { return OF_ONE(Floats, vreinterpretq_f32_u32, bits); }
static inline Integers bits_of(Floats x) { return OF_ONE(Integers, vreinterpretq_u32_f32, x); }
static inline Floats choose(uint16_t lanes, Floats there, Floats elsewhere) {
    return OF_THREE(Floats, vbslq_f32, chosen(lanes), there, elsewhere);
}
static inline Floats keep(uint16_t lanes, Floats x) { return as_floats(OF_TWO(Integers, vandq_u32, chosen(lanes), bits_of(x))); }
static inline uint16_t above(Floats a, Floats b) { return lanes_of(OF_TWO(Integers, vcgtq_f32, a, b)); }
static inline uint16_t unlike(Floats a, Floats b) { return (uint16_t)~lanes_of(OF_TWO(Integers, vceqq_f32, a, b)); }

/* All lanes in the order of the other forms: the upper eight with the lower, of eight the upper four with the lower, and so on. */
#define JOINED(f, x) \
    float32x4_t four = f(f((x).part[3], (x).part[1]), f((x).part[2], (x).part[0])), two = f(four, vextq_f32(four, four, 2)); \
    return vgetq_lane_f32(f(two, vdupq_laneq_f32(two, 1)), 0)
static inline float sum_of(Floats x) { JOINED(vaddq_f32, x); }
static inline float least_of(Floats x) { JOINED(smaller_four, x); }
static inline float most_of(Floats x) { JOINED(larger_four, x); }

static inline Integers load_integers(const void *from) {
    const uint8_t *at = from; /* which may lie anywhere */
    return (Integers){{vreinterpretq_u32_u8(vld1q_u8(at)), vreinterpretq_u32_u8(vld1q_u8(at + 16)),
                       vreinterpretq_u32_u8(vld1q_u8(at + 32)), vreinterpretq_u32_u8(vld1q_u8(at + 48))}};
}
static inline void store_integers(void *to, Integers x) {
    for (int i = 0; i < 4; i++) vst1q_u8((uint8_t *)to + 16 * i, vreinterpretq_u8_u32(x.part[i]));
}
static inline Integers load_bytes(const void *from) { /* signed */
    int8x16_t all = vld1q_s8(from);
    int16x8_t low = vmovl_s8(vget_low_s8(all)), high = vmovl_high_s8(all);
    return (Integers){{vreinterpretq_u32_s32(vmovl_s16(vget_low_s16(low))), vreinterpretq_u32_s32(vmovl_high_s16(low)),
                       vreinterpretq_u32_s32(vmovl_s16(vget_low_s16(high))), vreinterpretq_u32_s32(vmovl_high_s16(high))}};
}
static inline Integers load_words(const void *from) {
    uint16x8_t low = vreinterpretq_u16_u8(vld1q_u8(from)), high = vreinterpretq_u16_u8(vld1q_u8((const uint8_t *)from + 16));
    return (Integers){{vmovl_u16(vget_low_u16(low)), vmovl_high_u16(low), vmovl_u16(vget_low_u16(high)), vmovl_high_u16(high)}};
}
static inline void store_bytes(void *to, Integers x) { /* -128 to 127 */
    uint16x8_t low = vmovn_high_u32(vmovn_u32(x.part[0]), x.part[1]), high = vmovn_high_u32(vmovn_u32(x.part[2]), x.part[3]);
    vst1q_u8(to, vmovn_high_u16(vmovn_u16(low), high));
}
static inline Integers every_integer(int32_t x) { return OF_NONE(Integers, vdupq_n_u32, (uint32_t)x); }
static inline Integers both(Integers a, Integers b) { return OF_TWO(Integers, vandq_u32, a, b); }
static inline Integers either(Integers a, Integers b) { return OF_TWO(Integers, vorrq_u32, a, b); }
/* As operators, for which compilers take the forms of instructions that hold the number of bits. */
static inline Integers shift_left(Integers x, int bits) {
    uint32x4_t by = vdupq_n_u32((uint32_t)bits);
    return (Integers){{x.part[0] << by, x.part[1] << by, x.part[2] << by, x.part[3] << by}};
}
static inline Integers shift_right(Integers x, int bits) {
    uint32x4_t by = vdupq_n_u32((uint32_t)bits);
    return (Integers){{x.part[0] >> by, x.part[1] >> by, x.part[2] >> by, x.part[3] >> by}};
}
static inline Integers count_in(Integers x, uint16_t lanes) { /* what is chosen is -1 */
    return OF_TWO(Integers, vsubq_u32, x, chosen(lanes));
}
static inline uint32x4_t four_at_least(uint32x4_t a, uint32x4_t b) { return vcgeq_s32(vreinterpretq_s32_u32(a), vreinterpretq_s32_u32(b)); }
static inline uint32x4_t larger_four_integers(uint32x4_t a, uint32x4_t b) {
    return vreinterpretq_u32_s32(vmaxq_s32(vreinterpretq_s32_u32(a), vreinterpretq_s32_u32(b)));
}
static inline float32x4_t four_to_floats(uint32x4_t x) { return vcvtq_f32_s32(vreinterpretq_s32_u32(x)); }
/* As on x86, what no integer is near to becomes -2^31. */
static inline uint32x4_t four_to_integers(float32x4_t x) {
    uint32x4_t near = vreinterpretq_u32_s32(vcvtnq_s32_f32(x));
    return vbslq_u32(vcltq_f32(x, vdupq_n_f32(0x1p31f)), near, vdupq_n_u32(0x80000000));
}
static inline uint16_t at_least(Integers a, Integers b) { return lanes_of(OF_TWO(Integers, four_at_least, a, b)); }
static inline Integers larger_integers(Integers a, Integers b) { return OF_TWO(Integers, larger_four_integers, a, b); }
static inline int32_t most_of_integers(Integers x) {
    return vmaxvq_s32(vreinterpretq_s32_u32(larger_four_integers(larger_four_integers(x.part[0], x.part[1]), larger_four_integers(x.part[2], x.part[3]))));
}
static inline int32_t sum_of_integers(Integers x) {
    return (int32_t)vaddvq_u32(vaddq_u32(vaddq_u32(x.part[0], x.part[1]), vaddq_u32(x.part[2], x.part[3])));
}
static inline Floats to_floats(Integers x) { return OF_ONE(Floats, four_to_floats, x); }
static inline Integers to_integers(Floats x) { return OF_ONE(Integers, four_to_integers, x); } /* nearest */

/* x * 2^n for whole n up to 128, also where that has fewer digits: in two steps, for 2^n alone may be no number. What is no number, times
 * 2^-infinity, is 0. */
static inline float32x4_t four_scaled(float32x4_t x, float32x4_t n) {
    const float32x4_t least = vdupq_n_f32(-250.0f);
    const int32x4_t bias = vdupq_n_s32(127);
    int32x4_t power = vreinterpretq_s32_u32(four_to_integers(larger_four(least, n))), half = vshrq_n_s32(power, 1);
    float32x4_t first = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, bias), 23));
    float32x4_t second = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vsubq_s32(power, half), bias), 23));
    x = vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(x), vcltq_f32(n, least)));
    return vmulq_f32(vmulq_f32(x, first), second);
}
static inline Floats scaled(Floats x, Floats n) { return OF_TWO(Floats, four_scaled, x, n); }

static inline Floats reciprocal(Floats x) { return over(every(1.0f), x); }

static inline float32x4_t four_halves(const void *from) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(from))); }
static inline Floats load_halves(const void *from) {
    const char *at = from;
    return (Floats){{four_halves(at), four_halves(at + 8), four_halves(at + 16), four_halves(at + 24)}};
}
static inline void store_halves(void *to, Floats x) {
    for (int i = 0; i < 4; i++) vst1_u8((uint8_t *)to + 8 * i, vreinterpret_u8_f16(vcvt_f16_f32(x.part[i])));
}

/* Bits of the nearest bfloat16, in the upper half of each lane, below them rubbish; even where two are near. Of finite numbers that are
 * not below 2^-126. */
static inline uint32x4_t four_rounded(float32x4_t x) {
    uint32x4_t bits = vreinterpretq_u32_f32(x), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    return vaddq_u32(vaddq_u32(bits, odd), vdupq_n_u32(0x7fff));
}
/* Of all numbers, as x86 does it: those below 2^-126 become zero; what is no number stays none. */
static inline uint32x4_t any_four_rounded(float32x4_t x) {
    uint32x4_t bits = vreinterpretq_u32_f32(x), sign = vandq_u32(bits, vdupq_n_u32(0x80000000));
    uint32x4_t kept = vbslq_u32(vcaltq_f32(x, vdupq_n_f32(0x1p-126f)), sign, four_rounded(x));
    return vbslq_u32(vceqq_f32(x, x), kept, vorrq_u32(bits, vdupq_n_u32(0x400000)));
}
static inline Integers rounded_bits(Floats x) { return OF_ONE(Integers, any_four_rounded, x); }
static inline Integers bf16_bits(Floats x) { return shift_right(rounded_bits(x), 16); }
static inline void store_bf16(bf16 *to, Floats x) {
    Integers bits = rounded_bits(x);
    vst1q_u16(to, vshrn_high_n_u32(vshrn_n_u32(bits.part[0], 16), bits.part[1], 16));
    vst1q_u16(to + 8, vshrn_high_n_u32(vshrn_n_u32(bits.part[2], 16), bits.part[3], 16));
}
static inline void store_two_bf16(bf16 *to, Floats first, Floats second) { store_bf16(to, first), store_bf16(to + 16, second); }

/* In each lane two bfloat16 numbers, the first in the lower half. */
static inline Integers pairs_of(Floats first, Floats second) {
    return either(bf16_bits(first), both(rounded_bits(second), every_integer((int32_t)0xffff0000)));
}

/* What a register holds, for sums that need as many of them as there are: four lanes. */
typedef float32x4_t Part;
enum { PART = 4 };

static inline Part load_part(const float *from) { return vld1q_f32(from); }
static inline void store_part(float *to, Part x) { vst1q_f32(to, x); }
static inline Part every_part(float x) { return vdupq_n_f32(x); }
static inline Part part_times_plus(Part a, Part b, Part c) { return vfmaq_f32(c, a, b); }
/* Of pairs of bfloat16 numbers, the first and the second ones. */
static inline Part first_of_part(const bf16 *pairs) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u16(vld1q_u16(pairs)), 16));
}
static inline Part second_of_part(const bf16 *pairs) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u16(vld1q_u16(pairs)), vdupq_n_u32(0xffff0000)));
}

/* Transpose 16 x 16 numbers of 32 bits, by squares of four. */
static inline void transpose(Integers x[16]) {
    Integers y[16];
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 4; j++) {
            uint64x2_t even[2], odd[2];
            for (int k = 0; k < 2; k++) {
                uint32x4_t a = x[i + 2 * k].part[j], b = x[i + 2 * k + 1].part[j];
                even[k] = vreinterpretq_u64_u32(vtrn1q_u32(a, b)), odd[k] = vreinterpretq_u64_u32(vtrn2q_u32(a, b));
            }
            y[4 * j].part[i / 4] = vreinterpretq_u32_u64(vtrn1q_u64(even[0], even[1]));
            y[4 * j + 1].part[i / 4] = vreinterpretq_u32_u64(vtrn1q_u64(odd[0], odd[1]));
            y[4 * j + 2].part[i / 4] = vreinterpretq_u32_u64(vtrn2q_u64(even[0], even[1]));
            y[4 * j + 3].part[i / 4] = vreinterpretq_u32_u64(vtrn2q_u64(odd[0], odd[1]));
        }
    for (int i = 0; i < 16; i++) x[i] = y[i];
}

#endif
