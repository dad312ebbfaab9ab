/* Sixteen lanes: vectors of sixteen floats (`Floats`) and of sixteen integers of 32 bits (`Integers`).
 *
 * What the decoder computes by lanes is written in these few functions, so another processor needs its own form of them, and
 * products that suit it. All forms give the same bits, but for `reciprocal` of AVX-512. Which lanes are meant is said by a bit for each,
 * that of the first being the lowest.
 *
 * Beside them, for single numbers and threads: `half_to_float` and `float_to_half` (the nearest half-precision number, its bits),
 * `fetch_line`, which brings a line of memory into the nearest cache (what is not there does no harm), and `pause_thread`, for who waits
 * for another thread and looks again and again.
 */
#ifndef DECODERY_LANES_H
#define DECODERY_LANES_H

#include <stdint.h>

#include "decoder.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && defined(__AVX512BF16__)
#define DECODERY_AVX512 1
#include "lanes_x86.h"
#include "lanes_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define DECODERY_AVX512 0
#include "lanes_x86.h"
#include "lanes_avx2.h"
#elif defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#define DECODERY_AVX512 0
#define DECODERY_NEON 1
#include "lanes_neon.h"
#else
#error "the native decoder needs a processor with AVX2, FMA and F16C, or with the dot products of Armv8.2"
#endif
#ifndef DECODERY_NEON
#define DECODERY_NEON 0
#endif

static inline Floats load_bf16(const bf16 *from) { return as_floats(shift_left(load_words(from), 16)); }
static inline Floats rounded(Floats x) { return as_floats(shift_left(bf16_bits(x), 16)); }

#endif
