/* Products of whole numbers: rows rounded to eight bits, weights as their file has them.
 *
 * A row is cut into blocks of 32 inputs; each is a scale times numbers from -127 to 127, as in GGUF's Q8_0. Weights have blocks of 32
 * inputs as well, of 16 in one form: a scale, perhaps an offset, and numbers of four or eight bits. The products of a block are
 * summed in 32 bits, without rounding, and these sums, times both scales, in float32, block after block. So a row's result depends on
 * nothing but the row, and is the same, bit for bit, on every set of instructions.
 *
 * Tiles have 16 outputs by 32 inputs. Numbers of eight bits lie in eight vectors of 64 bytes; vector v holds for each output the inputs
 * 4 v to 4 v + 3. Those of four bits lie in four: vector v holds in its lower halves of bytes the inputs from 4 v, in its upper halves
 * those from 16 + 4 v, which is how Q4_0 and Q4_1 order them, too. All numbers are kept as if they were not negative; `zero` is taken
 * off the sums.
 */
#ifndef DECODERY_INTEGERS_H
#define DECODERY_INTEGERS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "arithmetic.h"
#include "weights.h"

/* --- forms ---------------------------------------------------------------------------------------------------------------- */

/* What a tile begins with: scales of the 16 outputs, twice where each has 16 inputs, and offsets; then the numbers. */
typedef struct {
    int bits;   /* of a number: 4 or 8 */
    int wide;   /* scales and offsets are float32, not half precision */
    int scales; /* 1, or 2: one for each 16 inputs */
    int offset; /* 1: weight = scale * number + offset */
    int zero;   /* the number that stands for zero, without an offset */
} Form;

static const Form integer_form[] = {
    {4, 0, 1, 0, 8},   /* Q4_0 */
    {4, 0, 1, 1, 0},   /* Q4_1 */
    {4, 1, 1, 1, 0},   /* Q4_K */
    {8, 0, 1, 0, 128}, /* Q8_0, Q5_0, IQ4_NL */
    {8, 0, 1, 1, 0},   /* Q5_1 */
    {8, 1, 1, 1, 0},   /* Q5_K */
    {8, 1, 2, 0, 128}, /* Q6_K */
};

static inline __attribute__((always_inline)) int head_bytes(const Form f) {
    return (f.scales + f.offset) * TILE * (f.wide ? 4 : 2);
}

static inline __attribute__((always_inline)) int tile_bytes(const Form f) { return head_bytes(f) + TILE_ELEMENTS * f.bits / 8; }

/* Small tiles are read sooner than they have come, so as many are on their way as hide that. */
enum { TILES_AHEAD = DECODERY_AMX ? 24 : 8 };

/* Where the tiles of step k of some blocks lie, so many tiles further on: of their last steps, at the beginning of what is read after
 * them. */
static inline __attribute__((always_inline)) const char *soon(
    const char *block, int64_t k, int64_t along, const int blocks, int64_t depth, const char *after
) {
    int64_t later = k + TILES_AHEAD / blocks;
    return later < depth ? block + later * along : after + (later - depth) * along;
}

/* --- sets of instructions ------------------------------------------------------------------------------------------------- */

/* What has a form of its own for each set: vectors of weights (`Whole`) and of sums (`Real`) of as many outputs, of which VECTORS make 16;
 * `load_weights` of eight bits, `lower_digits` and `upper_digits` of four, `dot`, and `zero_left`: what of a form's zero is still to
 * be taken off the sums of `dot`. MOST_ROWS: as many sums as there are registers for. */
#if DECODERY_NEON
#include "dot_products_neon.h"
#else
#include "dot_products_x86.h"
#endif
enum { OUTPUTS = TILE / VECTORS, VECTOR_BYTES = 64 / VECTORS, FETCHED = DECODERY_AMX ? 8192 : 4096 };

/* --- rows ----------------------------------------------------------------------------------------------------------------- */

/* What a block of 32 inputs of a row is beside its numbers; sums are of these numbers. */
typedef struct {
    float scale, total; /* total: scale * sum */
    float sum, upper;   /* of all, and of the upper 16 */
} Block;

/* Rows in whole numbers: so many numbers, and so many blocks, from one to the next. Neither is a power of two, or the rows would
 * all want the same places of the nearest cache. For the matrix unit `block` holds something else, see Factors. */
typedef struct {
    const int8_t *numbers;
    const Block *block;
    int64_t stride, apart;
} Numbers;

/* 32 inputs in whole numbers. What is no number, or infinite, makes the scale so. Below 4e-37 all are zero. */
static inline Block to_block(const bf16 *inputs, int8_t *numbers) {
    const Integers unsigned_bits = every_integer(0x7fffffff);
    Integers lower = shift_left(load_words(inputs), 16), upper = shift_left(load_words(inputs + TILE), 16);
    /* As whole numbers, so that one that is no number counts as the largest. */
    int32_t largest = most_of_integers(larger_integers(both(lower, unsigned_bits), both(upper, unsigned_bits)));
    float amount, inverse;
    memcpy(&amount, &largest, sizeof amount);
    inverse = amount > 0 ? 127.0f / amount : 0;
    int usable = largest < 0x7f800000 && inverse < INFINITY;
    Integers kept = every_integer(usable ? -1 : 0);
    Floats factor = every(usable ? inverse : 0);
    lower = to_integers(times(as_floats(both(lower, kept)), factor));
    upper = to_integers(times(as_floats(both(upper, kept)), factor));
    store_bytes(numbers, lower), store_bytes(numbers + TILE, upper);
    float scale = amount / 127.0f, of_upper = (float)sum_of_integers(upper), sum = (float)sum_of_integers(lower) + of_upper;
    return (Block){scale, scale * sum, sum, of_upper};
}

static void to_numbers(const bf16 *row, int64_t inputs, int8_t *numbers, Block *block) {
    for (int64_t at = 0; at < inputs; at += DEPTH) *block++ = to_block(row + at, numbers + at);
}

/* --- products ------------------------------------------------------------------------------------------------------------- */

static inline __attribute__((always_inline)) Real head_part(const char *head, const int wide, const int index, const int part) {
    int at = index * TILE + part * OUTPUTS;
    return wide ? load_real((const float *)head + at) : load_real_halves(head + 2 * at);
}

/* Sums have to be in registers: so loops over them are unrolled, whatever a compiler thinks of their length. */
#define UNROLLED _Pragma("GCC unroll 16")

/* Up to eight rows by a block. ahead: how many bytes before they are needed weights are fetched. */
static inline __attribute__((always_inline)) void whole_rows(
    const Numbers *rows, const int count, const char *tile, const Form form, int64_t depth, int64_t ahead, float *to, int64_t step
) {
    const int bytes = tile_bytes(form), steps = DEPTH / 4, zero_of_sums = zero_left(form.bits, form.zero);
    const Real zero = every_real((float)zero_of_sums);
    Real sum[MOST_ROWS][VECTORS];
    UNROLLED
    for (int m = 0; m < count; m++)
        UNROLLED
        for (int part = 0; part < VECTORS; part++) sum[m][part] = every_real(0);
    for (int64_t k = 0; k < depth; k++, tile += bytes) {
        const int8_t *inputs = rows->numbers + k * DEPTH;
        const Block *about = rows->block + k;
        fetch(tile + ahead, bytes);
        UNROLLED
        for (int part = 0; part < VECTORS; part++) {
            Whole weights[DEPTH / 4];
            const char *from = tile + head_bytes(form) + part * VECTOR_BYTES;
            if (form.bits == 4)
                UNROLLED
                for (int v = 0; v < steps / 2; v++) {
                    Whole both = load_whole(from + 64 * v);
                    weights[v] = lower_digits(both), weights[v + steps / 2] = upper_digits(both);
                }
            else
                UNROLLED
                for (int v = 0; v < steps; v++) weights[v] = load_weights(from + 64 * v, form.zero);
            Real scale = head_part(tile, form.wide, 0, part), second = scale, offset = scale;
            if (form.scales == 2) second = head_part(tile, form.wide, 1, part);
            if (form.offset) offset = head_part(tile, form.wide, form.scales, part);
            UNROLLED
            for (int m = 0; m < count; m++) {
                const int8_t *row = inputs + m * rows->stride;
                const Block *of_row = about + m * rows->apart;
                Real factor = every_real(of_row->scale), *result = &sum[m][part];
                if (form.scales == 2) {
                    Real lower = to_real(dot(weights, row, steps / 2, form.bits == 4));
                    Real upper = to_real(dot(weights + steps / 2, row + DEPTH / 2, steps / 2, form.bits == 4));
                    if (zero_of_sums) {
                        lower = real_minus_times(lower, zero, every_real(of_row->sum - of_row->upper));
                        upper = real_minus_times(upper, zero, every_real(of_row->upper));
                    }
                    *result = real_times_plus(lower, real_times(scale, factor), *result);
                    *result = real_times_plus(upper, real_times(second, factor), *result);
                    continue;
                }
                Real product = to_real(dot(weights, row, steps, form.bits == 4));
                if (zero_of_sums) product = real_minus_times(product, zero, every_real(of_row->sum));
                *result = real_times_plus(product, real_times(scale, factor), *result);
                if (form.offset) *result = real_times_plus(offset, every_real(of_row->total), *result);
            }
        }
    }
    UNROLLED
    for (int m = 0; m < count; m++)
        UNROLLED
        for (int part = 0; part < VECTORS; part++) store_real(to + m * step + part * OUTPUTS, sum[m][part]);
}

/* All rows by blocks, one after the other, as they lie in memory: the first rows read a block from there, the others find it in the
 * nearest cache. */
static inline __attribute__((always_inline)) void multiply_whole(
    const Numbers *rows, int64_t count, const char *block, const Form form, int64_t depth, int64_t blocks, float *to, int64_t step
) {
    for (int64_t i = 0; i < blocks; i++, block += depth * tile_bytes(form), to += TILE) {
        int64_t ahead = FETCHED;
        for (int64_t m = 0, taken; m < count; m += taken, ahead = 0) {
            Numbers some = {rows->numbers + m * rows->stride, rows->block + m * rows->apart, rows->stride, rows->apart};
            float *place = to + m * step;
            int64_t rest = count - m;
            if (MOST_ROWS >= 8 && rest >= 8)
                taken = 8, whole_rows(&some, 8, block, form, depth, ahead, place, step);
            else if (rest >= 4)
                taken = 4, whole_rows(&some, 4, block, form, depth, ahead, place, step);
            else if (rest >= 2)
                taken = 2, whole_rows(&some, 2, block, form, depth, ahead, place, step);
            else
                taken = 1, whole_rows(&some, 1, block, form, depth, ahead, place, step);
        }
    }
}

#if DECODERY_AMX
#include "matrix_integers.h"
#endif

/* Rows of bfloat16, `stride` apart, in whole numbers, to where `to` says. */
static void enter_numbers(const bf16 *rows, int64_t stride, int64_t count, int64_t inputs, Numbers *to) {
#if DECODERY_AMX
    if (count >= FEWEST_ON_UNIT) {
        to_unit(rows, stride, count, inputs, to);
        return;
    }
#endif
    for (int64_t m = 0; m < count; m++)
        to_numbers(rows + m * stride, inputs, (int8_t *)to->numbers + m * to->stride, (Block *)to->block + m * to->apart);
}

static inline __attribute__((always_inline)) void multiply_form(
    const Numbers *rows, int64_t count, const char *block, const Form form, int64_t depth, int64_t blocks, float *to, int64_t step
) {
#if DECODERY_AMX
    if (count >= FEWEST_ON_UNIT) {
        multiply_on_unit(rows, count, block, form, depth, blocks, to, step);
        return;
    }
#endif
    multiply_whole(rows, count, block, form, depth, blocks, to, step);
}

/* to [count, 16 * blocks] = rows @ matrix.T. Where there is a matrix unit, whole groups of 16 rows are read, and written. */
static void multiply_numbers(
    const Numbers *rows, int64_t count, Matrix matrix, int64_t depth, int64_t blocks, float *to, int64_t step
) {
#define CASE(number) \
    case number: multiply_form(rows, count, matrix.tiles, integer_form[number - 1], depth, blocks, to, step); break;
    switch (matrix.form) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) }
#undef CASE
}

#endif
