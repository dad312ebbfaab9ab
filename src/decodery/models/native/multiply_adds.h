/* Products by multiply-adds in float32, for processors without products of bfloat16. Included by products.h alone.
 *
 * Of each pair of inputs the second is multiplied and added first, then the first, each in one rounding: so AVX-512 does it, and sums are
 * the same bits there.
 */
#ifndef DECODERY_MULTIPLY_ADDS_H
#define DECODERY_MULTIPLY_ADDS_H

#include <string.h>

#include "arithmetic.h"
#include "weights.h"


enum { BLOCK_PARTS = TILE / PART };

/* As many sums at once as there are registers for; each waits for the one before it. They have names, for what stands in an array
 * compilers keep in memory. */
#define EACH_SUM(DO) \
    DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11) DO(12) DO(13) DO(14) DO(15)
/* Of rows and weights, the fewer stay while the others pass by. */
#define ROW(i) (parts > count ? i % count : i / parts)
#define OF_ROW(i) (parts > count ? i / count : i % parts)
#define SUM(i) (sums + ROW(i) * step + OF_ROW(i) * PART)
#define LOAD_SUM(i) Part sum##i = i < count * parts ? load_part(SUM(i)) : every_part(0);
#define STORE_SUM(i) if (i < count * parts) store_part(SUM(i), sum##i);
#define ADD_PRODUCT(i) \
    if (i < count * parts) { \
        const float *row = rows + ROW(i) * DEPTH; \
        const bf16 *two = pairs + OF_ROW(i) / BLOCK_PARTS * along + OF_ROW(i) % BLOCK_PARTS * 2 * PART; \
        sum##i = part_times_plus(every_part(row[1]), second_of_part(two), sum##i); \
        sum##i = part_times_plus(every_part(row[0]), first_of_part(two), sum##i); \
    }

/* sums [count rows, parts] += rows [count, 32] times weights in pairs [16, outputs, 2]: from one pair to the next there are `apart`
 * elements, from one block of 16 outputs to the next `along`. step: numbers from one row of sums to the next. count * parts: at most 8, of four lanes 16. */
static inline __attribute__((always_inline)) void add_products(
    const float *rows, const int count, const bf16 *pairs, int64_t apart, const int along, const int parts, float *sums, int64_t step
) {
    EACH_SUM(LOAD_SUM)
    for (int64_t pair = 0; pair < DEPTH / 2; pair++, pairs += apart, rows += 2) { EACH_SUM(ADD_PRODUCT) }
    EACH_SUM(STORE_SUM)
}

/* The same for some rows and all of up to four blocks. */
static inline __attribute__((always_inline)) void add_all_products(
    const float *rows, int64_t count, const bf16 *pairs, int64_t apart, const int along, int64_t blocks, float *sums, int64_t step
) {
    if (count == 1 && blocks == 4) {
        add_products(rows, 1, pairs, apart, along, 4 * BLOCK_PARTS, sums, step);
        return;
    }
    for (; count >= 3 || (count > 0 && blocks == 1); rows += 4 * DEPTH, sums += 4 * step, count -= 4)
        for (int64_t b = 0; b < blocks; b++) {
            const bf16 *block = pairs + b * along;
            switch (count) {
            case 1: add_products(rows, 1, block, apart, along, BLOCK_PARTS, sums + b * TILE, step); break;
            case 2: add_products(rows, 2, block, apart, along, BLOCK_PARTS, sums + b * TILE, step); break;
            case 3: add_products(rows, 3, block, apart, along, BLOCK_PARTS, sums + b * TILE, step); break;
            default: add_products(rows, 4, block, apart, along, BLOCK_PARTS, sums + b * TILE, step);
            }
        }
    for (int64_t b = 0; count > 0 && b < blocks; b += 2)
        if (count == 1)
            add_products(rows, 1, pairs + b * along, apart, along, 2 * BLOCK_PARTS, sums + b * TILE, step);
        else
            add_products(rows, 2, pairs + b * along, apart, along, 2 * BLOCK_PARTS, sums + b * TILE, step);
}

/* Blocks of a packed matrix, whose tiles follow each other. */
static void add_tiles(const float *rows, int64_t count, const bf16 *tiles, int64_t blocks, float *to, int64_t step) {
    add_all_products(rows, count, tiles, DEPTH, TILE_ELEMENTS, blocks, to, step);
}

/* 32 numbers of some rows in float32 [count, 32]. */
static inline void widen(const bf16 *rows, int64_t stride, int64_t count, float *to) {
    for (int64_t m = 0; m < count; m++)
        for (int i = 0; i < DEPTH; i += TILE) store(to + m * DEPTH + i, load_bf16(rows + m * stride + i));
}

static inline __attribute__((always_inline)) void multiply_packed(
    const Rows *entering, Matrix matrix, const int bytes, int64_t depth, int64_t blocks, const char *after, float *to, int64_t step
) {
    enum { ROWS = 2 * TILE }; /* whose sums stay in the nearest cache */
    _Alignas(64) bf16 room[MOST_GROUP][TILE_ELEMENTS];
    _Alignas(64) float wide[ROWS * DEPTH];
    int64_t group = matrix.group, along = group * bytes, stride = entering->stride;
    for (int64_t i = 0; i < blocks; i += group) {
        const char *block = (const char *)matrix.tiles + i * depth * bytes;
        const char *next = i + group < blocks ? block + group * depth * bytes : after;
        for (int64_t first = 0; first < entering->count; first += ROWS) {
            int64_t count = entering->count - first < ROWS ? entering->count - first : ROWS;
            const bf16 *rows = entering->rows + first * stride;
            float *sums = to + i * TILE + first * step;
            for (int64_t m = 0; m < count; m++) memset(sums + m * step, 0, (size_t)(group * TILE) * sizeof *sums);
            for (int64_t k = 0; k < depth; k++) {
                const char *tiles = block + k * along;
                widen(rows + k * DEPTH, stride, count, wide);
                if (bytes == BYTES_BF16) { /* one after the other, as what fetches lines ahead of their use expects it */
                    for (int64_t b = 0; b < group; b++)
                        add_tiles(wide, count, (const bf16 *)tiles + b * TILE_ELEMENTS, 1, sums + b * TILE, step);
                    continue;
                }
                const char *later = soon(block, k, along, (int)group, depth, next);
                for (int64_t b = 0; b < group; b++) {
                    fetch(later + b * bytes, bytes);
                    read_tile(tiles + b * bytes, bytes, room[b], 0);
                }
                add_tiles(wide, count, room[0], group, sums, step);
            }
        }
    }
}

/* to [columns, 16]: row j, column i = keys[j] . queries[i]; width: a multiple of 32; queries packed as one block. Reads and
 * writes whole groups of 16 columns. lanes: what is beyond them is zero, or nobody's. */
static void key_products(const bf16 *keys, int64_t width, int64_t columns, const bf16 *queries, int64_t lanes, float *to) {
    _Alignas(64) float wide[TILE * DEPTH];
    for (int64_t column = 0; column < columns; column += TILE) {
        float *sums = to + column * TILE;
        memset(sums, 0, TILE * TILE * sizeof *sums);
        for (int64_t k = 0; k < width / DEPTH; k++) {
            const bf16 *pairs = queries + k * TILE_ELEMENTS;
            widen(keys + column * width + k * DEPTH, width, TILE, wide);
            if (lanes <= TILE / 2) /* one request and few query heads: half of the lanes are nobody's */
                for (int j = 0; j < TILE; j += 8) add_products(wide + j * DEPTH, 8, pairs, DEPTH, 0, BLOCK_PARTS / 2, sums + j * TILE, TILE);
            else
                for (int j = 0; j < TILE; j += 4) add_products(wide + j * DEPTH, 4, pairs, DEPTH, 0, BLOCK_PARTS, sums + j * TILE, TILE);
        }
    }
}

/* to [lanes, 64] = weights [lanes, 32 * steps] @ values [32 * steps, 64]; values at a place in each span, in pairs of rows, which are so
 * many elements apart. A span after the other, whose values stay in the nearest cache for all lanes. */
static void add_values(
    const bf16 *weights, const bf16 *const *span, int64_t place, int64_t apart, int64_t steps, int64_t lanes, float *to
) {
    _Alignas(64) float wide[TILE * DEPTH];
    memset(to, 0, (size_t)lanes * 64 * sizeof *to);
    for (int64_t step = 0; step < steps; step++) {
        if (step * DEPTH % SPAN == 0 && step + SPAN / DEPTH < steps)
            fetch_rows(values_of(span, place, apart, step + SPAN / DEPTH), apart, SPAN / 2);
        widen(weights + step * TILE_ELEMENTS, DEPTH, lanes, wide);
        add_all_products(wide, lanes, values_of(span, place, apart, step), apart, DEPTH, 64 / TILE, to, 64);
    }
}

#endif
