/* Products of whole numbers on the processor's matrix unit. Included by integers.h alone.
 *
 * The unit sums the products of a block as the vectors do, without rounding; what follows is the same, sum after sum. So a row's result
 * does not depend on which of the two it went through.
 */
#ifndef DECODERY_MATRIX_INTEGERS_H
#define DECODERY_MATRIX_INTEGERS_H

#include <immintrin.h>
#include <string.h>

#include "integers.h"

/* Fewer rows than FEWEST_ON_UNIT are as fast as vectors. Weights of so many steps and blocks are made ready at a time. */
enum { FEWEST_ON_UNIT = 12, STEPS_READY = 12, BLOCKS_READY = 2 };

/* Of a block of 32 inputs of 16 rows. */
typedef struct {
    float scale[TILE], total[TILE];
} Factors;

/* Rows in whole numbers, a group of 16 after the other: of each block of 32 inputs 16 rows side by side. The last group may have fewer,
 * and then what stands in the others is of no use. */
static void to_unit(const bf16 *rows, int64_t stride, int64_t count, int64_t inputs, Numbers *to) {
    for (int64_t m = 0; m < count; m++) {
        Factors *factors = (Factors *)to->block + m / TILE * (inputs / DEPTH);
        int8_t *numbers = (int8_t *)to->numbers + m / TILE * TILE * inputs + m % TILE * DEPTH;
        if (m % TILE == 0 && count - m < TILE) memset(factors, 0, (size_t)(inputs / DEPTH) * sizeof *factors);
        for (int64_t at = 0; at < inputs; at += DEPTH, factors++, numbers += TILE_ELEMENTS) {
            Block block = to_block(rows + m * stride + at, numbers);
            factors->scale[m % TILE] = block.scale, factors->total[m % TILE] = block.total;
        }
    }
}

/* The weights of a tile, less what stands for zero: eight vectors, each with four inputs of every output. */
static inline __attribute__((always_inline)) void make_ready(const char *tile, const Form form, int8_t *to) {
    const char *from = tile + head_bytes(form);
    const __m512i zero = _mm512_set1_epi8((char)form.zero);
    UNROLLED
    for (int v = 0; v < form.bits; v++) {
        __m512i numbers = _mm512_loadu_si512(from + 64 * v);
        if (form.bits == 8) {
            _mm512_store_si512(to + 64 * v, _mm512_sub_epi8(numbers, zero));
        } else {
            _mm512_store_si512(to + 64 * v, _mm512_sub_epi8(lower_digits(numbers), zero));
            _mm512_store_si512(to + 64 * (v + 4), _mm512_sub_epi8(upper_digits(numbers), zero));
        }
    }
}

/* The sums over the inputs of each scale of up to STEPS_TOGETHER steps, [16 rows, 16 outputs] after each other. What the unit has
 * stored can be read only a while later, so all of them are under way before the first is. */
enum { STEPS_TOGETHER = 4 };

static inline __attribute__((always_inline)) void sum_steps(
    const int8_t *numbers, const int8_t *weights, const Form form, const int steps, int32_t *to
) {
    const int deep = DEPTH / form.scales, parts = steps * form.scales;
    /* Registers have to be written as numbers. */
#define numbers_of(part) (numbers + (part) / form.scales * TILE_ELEMENTS + (part) % form.scales * deep)
#define SUM(part, first, second, sums)                                 \
    _tile_zero(sums);                                                  \
    _tile_loadd(first, numbers_of(part), DEPTH);                       \
    _tile_loadd(second, weights + (part) * deep * TILE, 64);           \
    _tile_dpbssd(sums, first, second);
#define PART(part, sums)                                               \
    if ((part) < parts) {                                              \
        if (form.scales == 1) { SUM(part, 4, 6, sums) } else { SUM(part, 5, 7, sums) } \
    }
#define STORE(part, sums) \
    if ((part) < parts) _tile_stored(sums, to + (part) * TILE * TILE, 64);
    for (int part = 0; part < parts; part += 4) {
        PART(part, 0) PART(part + 1, 1) PART(part + 2, 2) PART(part + 3, 3)
        STORE(part, 0) STORE(part + 1, 1) STORE(part + 2, 2) STORE(part + 3, 3)
    }
#undef SUM
#undef PART
#undef STORE
#undef numbers_of
}

static inline __attribute__((always_inline)) void sum_next(
    const int8_t *numbers, const int8_t *weights, const Form form, int64_t left, int32_t *to
) {
    if (left >= STEPS_TOGETHER)
        sum_steps(numbers, weights, form, STEPS_TOGETHER, to);
    else
        for (int64_t k = 0; k < left; k++)
            sum_steps(numbers + k * TILE_ELEMENTS, weights + k * TILE_ELEMENTS, form, 1, to + k * form.scales * TILE * TILE);
}

/* Up to sixteen rows by some steps of a block. more: go on with the sums that are in `to`. */
static inline __attribute__((always_inline)) void rows_on_unit(
    const int8_t *numbers, const Factors *factors, const int count, const char *tile, const int8_t *ready, const Form form, int64_t steps,
    float *to, int64_t step, int more
) {
    _Alignas(64) int32_t room[2][STEPS_TOGETHER * 2 * TILE * TILE];
    Real sum[TILE];
    UNROLLED
    for (int m = 0; m < count; m++) sum[m] = more ? load_real(to + m * step) : every_real(0);
    sum_next(numbers, ready, form, steps, room[0]);
    for (int64_t k = 0; k < steps; k++, tile += tile_bytes(form), factors++) {
        if (k % STEPS_TOGETHER == 0) {
            numbers += STEPS_TOGETHER * TILE_ELEMENTS, ready += STEPS_TOGETHER * TILE_ELEMENTS;
            sum_next(numbers, ready, form, steps - k - STEPS_TOGETHER, room[~(k / STEPS_TOGETHER) & 1]);
        }
        const int32_t *products = room[k / STEPS_TOGETHER & 1] + k % STEPS_TOGETHER * form.scales * TILE * TILE;
        Real scale = head_part(tile, form.wide, 0, 0), second = scale, offset = scale;
        if (form.scales == 2) second = head_part(tile, form.wide, 1, 0);
        if (form.offset) offset = head_part(tile, form.wide, form.scales, 0);
        UNROLLED
        for (int m = 0; m < count; m++) {
            Real factor = every_real(factors->scale[m]);
            sum[m] = real_times_plus(to_real(load_whole(products + m * TILE)), real_times(scale, factor), sum[m]);
            if (form.scales == 2)
                sum[m] = real_times_plus(to_real(load_whole(products + (TILE + m) * TILE)), real_times(second, factor), sum[m]);
            if (form.offset) sum[m] = real_times_plus(offset, every_real(factors->total[m]), sum[m]);
        }
    }
    UNROLLED
    for (int m = 0; m < count; m++) store_real(to + m * step, sum[m]);
}

/* As multiply_whole; whole groups of 16 rows are read, and of 4, 8 or 16 written. What some blocks and a group of rows need of a few steps
 * stays in the nearest cache. */
static inline __attribute__((always_inline)) void multiply_on_unit(
    const Numbers *rows, int64_t count, const char *block, const Form form, int64_t depth, int64_t blocks, float *to, int64_t step
) {
    _Alignas(64) int8_t ready[BLOCKS_READY][STEPS_READY * TILE_ELEMENTS];
    const int bytes = tile_bytes(form);
    for (int64_t first = 0, some; first < blocks; first += some, block += some * depth * bytes, to += some * TILE) {
        some = blocks - first < BLOCKS_READY ? blocks - first : BLOCKS_READY;
        for (int64_t k = 0, steps; k < depth; k += steps) {
            steps = depth - k < STEPS_READY ? depth - k : STEPS_READY;
            for (int64_t b = 0; b < some; b++)
                for (int64_t j = 0; j < steps; j++) {
                    const char *tile = block + (b * depth + k + j) * bytes;
                    fetch(tile + STEPS_READY * bytes, bytes);
                    make_ready(tile, form, ready[b] + j * TILE_ELEMENTS);
                }
            written();
            for (int64_t m = 0; m < count; m += TILE)
                for (int64_t b = 0; b < some; b++) {
                    const int8_t *numbers = rows->numbers + (m / TILE * depth + k) * TILE_ELEMENTS;
                    const Factors *factors = (const Factors *)rows->block + m / TILE * depth + k;
                    const char *tile = block + (b * depth + k) * bytes;
                    float *place = to + m * step + b * TILE;
                    if (count - m > 8)
                        rows_on_unit(numbers, factors, 16, tile, ready[b], form, steps, place, step, k > 0);
                    else if (count - m > 4)
                        rows_on_unit(numbers, factors, 8, tile, ready[b], form, steps, place, step, k > 0);
                    else
                        rows_on_unit(numbers, factors, 4, tile, ready[b], form, steps, place, step, k > 0);
                }
        }
    }
}

#endif
