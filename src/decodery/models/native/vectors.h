/* Products of vectors of bfloat16, for processors without a matrix unit. Included by products.h alone. */
#ifndef DECODERY_VECTORS_H
#define DECODERY_VECTORS_H

#include <string.h>

#include "arithmetic.h"
#include "weights.h"


/* Up to 16 rows by 1, 2 or 4 blocks of a group. Each sum waits for the one before it, so many of them go on side by side. Tiles are
 * read one after the other, as the processor expects it that fetches lines ahead by itself; of few rows that is better than to tell it. */
static inline __attribute__((always_inline)) void some_rows(
    const bf16 *rows, int64_t stride, const int count, const char *block, int64_t along, const int bytes, const int blocks,
    int64_t depth, const char *after, float *to, int64_t step
) {
    _Alignas(64) bf16 room[MOST_GROUP][TILE_ELEMENTS];
    Floats sum[MOST_GROUP][TILE];
    for (int b = 0; b < blocks; b++)
        for (int m = 0; m < count; m++) sum[b][m] = zeros();
    for (int64_t k = 0; k < depth; k++) {
        const bf16 *tile[MOST_GROUP];
        const char *next = soon(block, k, along, blocks, depth, after);
        for (int b = 0; b < blocks; b++) {
            if (bytes != BYTES_BF16 || count > 8) fetch(next + b * bytes, bytes);
            tile[b] = read_tile(block + k * along + b * bytes, bytes, room[b], 0);
        }
        for (int b = 0; b < blocks; b++)
            for (int pair = 0; pair < TILE; pair++) {
                __m512bh weights = (__m512bh)load_integers(tile[b] + pair * DEPTH);
                for (int m = 0; m < count; m++) {
                    int32_t two;
                    memcpy(&two, rows + m * stride + k * DEPTH + 2 * pair, sizeof two);
                    sum[b][m] = _mm512_dpbf16_ps(sum[b][m], weights, (__m512bh)every_integer(two));
                }
            }
    }
    for (int b = 0; b < blocks; b++)
        for (int m = 0; m < count; m++) store(to + b * TILE + m * step, sum[b][m]);
}

/* The same by a whole group, as many blocks at once as there are registers for their sums. */
static inline __attribute__((always_inline)) void rows_by_group(
    const bf16 *rows, int64_t stride, const int count, const char *block, int64_t group, const int bytes, int64_t depth,
    const char *after, float *to, int64_t step
) {
    enum { SUMS = 16 };
    int64_t along = group * bytes, together = group < SUMS / count ? group : SUMS / count;
    for (int64_t b = 0; b < group; b += together, to += together * TILE) {
        const char *from = block + b * bytes, *next = b + together < group ? from + together * bytes : after;
        if (4 * count <= SUMS && together == 4)
            some_rows(rows, stride, count, from, along, bytes, 4, depth, next, to, step);
        else if (2 * count <= SUMS && together == 2)
            some_rows(rows, stride, count, from, along, bytes, 2, depth, next, to, step);
        else
            some_rows(rows, stride, count, from, along, bytes, 1, depth, next, to, step);
    }
}

static inline __attribute__((always_inline)) void multiply_packed(
    const Rows *entering, Matrix matrix, const int bytes, int64_t depth, int64_t blocks, const char *after, float *to, int64_t step
) {
    int64_t stride = entering->stride, group = matrix.group;
    /* Rows that are whole pages apart share one set of the nearest cache, which holds eight lines or a few more. */
    int64_t most = stride % 2048 ? TILE : TILE / 2;
    for (int64_t i = 0; i < blocks; i += group) {
        const char *block = (const char *)matrix.tiles + i * depth * bytes;
        const char *next = i + group < blocks ? block + group * depth * bytes : after;
        for (int64_t m = 0; m < entering->count; m += most) {
            const bf16 *rows = entering->rows + m * stride;
            float *place = to + i * TILE + m * step;
            int64_t rest = entering->count - m;
            /* Rows up to a power of two: what is read and written beyond the last one is nobody's. */
            if (rest > 8 && most > 8)
                rows_by_group(rows, stride, 16, block, group, bytes, depth, next, place, step);
            else if (rest > 4)
                rows_by_group(rows, stride, 8, block, group, bytes, depth, next, place, step);
            else if (rest > 2)
                rows_by_group(rows, stride, 4, block, group, bytes, depth, next, place, step);
            else if (rest > 1)
                rows_by_group(rows, stride, 2, block, group, bytes, depth, next, place, step);
            else
                rows_by_group(rows, stride, 1, block, group, bytes, depth, next, place, step);
        }
    }
}

static inline void key_products(const bf16 *keys, int64_t width, int64_t columns, const bf16 *queries, int64_t lanes, float *to) {
    (void)lanes;
    for (int64_t column = 0; column < columns; column += TILE) {
        const bf16 *some = keys + column * width;
        for (int64_t half = 0; half < TILE; half += 8) /* more rows at once come no sooner from memory */
            some_rows(
                some + half * width, width, 8, (const char *)queries, BYTES_BF16, BYTES_BF16, 1, width / DEPTH, (const char *)queries,
                to + (column + half) * TILE, TILE
            );
    }
}

/* A span after the other, whose values stay in the nearest cache for all lanes. */
static inline void add_values(
    const bf16 *weights, const bf16 *const *span, int64_t place, int64_t apart, int64_t steps, int64_t lanes, float *to
) {
    memset(to, 0, (size_t)lanes * 64 * sizeof *to);
    for (int64_t step = 0, next; step < steps; step = next) {
        next = step + SPAN / DEPTH < steps ? step + SPAN / DEPTH : steps;
        if (next < steps) fetch_rows(values_of(span, place, apart, next), apart, SPAN / 2);
        for (int64_t lane = 0; lane < lanes; lane++) {
            Floats sum[4];
            for (int part = 0; part < 4; part++) sum[part] = load(to + lane * 64 + part * TILE);
            for (int64_t one = step; one < next; one++) {
                const bf16 *values = values_of(span, place, apart, one);
                for (int pair = 0; pair < TILE; pair++) {
                    int32_t two;
                    memcpy(&two, weights + one * TILE_ELEMENTS + lane * DEPTH + 2 * pair, sizeof two);
                    for (int part = 0; part < 4; part++) {
                        const bf16 *value = values + pair * apart + part * DEPTH;
                        sum[part] = _mm512_dpbf16_ps(sum[part], (__m512bh)load_integers(value), (__m512bh)every_integer(two));
                    }
                }
            }
            for (int part = 0; part < 4; part++) store(to + lane * 64 + part * TILE, sum[part]);
        }
    }
}

#endif
