/* Products of rows with packed matrices, on the processor's matrix unit where it has one. */
#ifndef DECODERY_PRODUCTS_H
#define DECODERY_PRODUCTS_H

#include <string.h>

#include "arithmetic.h"
#include "weights.h"

/* `rows` are bfloat16 with `stride` elements between them, read in groups of 16; `to` is float32 with `step` elements between its
 * rows. weights.h says how a matrix of `blocks` blocks of `depth` tiles lies, in tiles of `bytes` bytes. */

#if DECODERY_AMX

static inline void tiles_on(void) {
    struct {
        uint8_t palette, start, zero[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } __attribute__((packed)) shape = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shape.bytes[i] = 64;
        shape.rows[i] = 16;
    }
    _tile_loadconfig(&shape);
}

static inline void tiles_off(void) { _tile_release(); }

/* Up to sixteen rows by 1, 2 or 4 blocks: each has a tile of sums, which wait for their own products only. */
static inline __attribute__((always_inline)) void few_rows(
    const bf16 *rows, int64_t stride, const char *block, const int bytes, const int blocks, int64_t depth, float *to, int64_t step
) {
    _Alignas(64) bf16 room[2][4][TILE_ELEMENTS];
    int64_t size = depth * bytes;
    _tile_zero(0);
    if (blocks > 1) _tile_zero(1);
    if (blocks > 2) { _tile_zero(2); _tile_zero(3); }
    for (int64_t k = 0; k < depth; k++) {
        const char *tile = block + k * bytes;
        bf16(*place)[TILE_ELEMENTS] = room[k & 1];
        _tile_loadd(4, rows + k * DEPTH, stride * 2);
        _tile_loadd(5, read_tile(tile, bytes, place[0], 1), 64); _tile_dpbf16ps(0, 4, 5);
        if (blocks > 1) { _tile_loadd(6, read_tile(tile + size, bytes, place[1], 1), 64); _tile_dpbf16ps(1, 4, 6); }
        if (blocks > 2) {
            _tile_loadd(7, read_tile(tile + 2 * size, bytes, place[2], 1), 64); _tile_dpbf16ps(2, 4, 7);
            _tile_loadd(5, read_tile(tile + 3 * size, bytes, place[3], 1), 64); _tile_dpbf16ps(3, 4, 5);
        }
    }
    _tile_stored(0, to, step * 4);
    if (blocks > 1) _tile_stored(1, to + TILE, step * 4);
    if (blocks > 2) { _tile_stored(2, to + 2 * TILE, step * 4); _tile_stored(3, to + 3 * TILE, step * 4); }
}

/* Thirty-two rows by one or two blocks: a tile of weights serves two tiles of rows. size: elements between the two blocks. more: go
 * on with the sums that are in `to`. fresh: the weights come from memory. */
static inline __attribute__((always_inline)) void twice_as_many(
    const bf16 *rows, int64_t stride, const bf16 *block, int64_t size, const int blocks, int64_t depth, float *to, int64_t step,
    int more, const int fresh
) {
    const bf16 *below = rows + TILE * stride;
    float *under = to + TILE * step;
    if (more) {
        _tile_loadd(0, to, step * 4); _tile_loadd(2, under, step * 4);
        if (blocks > 1) { _tile_loadd(1, to + TILE, step * 4); _tile_loadd(3, under + TILE, step * 4); }
    } else {
        _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    }
    for (int64_t k = 0; k < depth; k++) {
        const char *tile = (const char *)(block + k * TILE_ELEMENTS);
        _tile_loadd(4, rows + k * DEPTH, stride * 2); _tile_loadd(5, below + k * DEPTH, stride * 2);
        _tile_loadd(6, read_tile(tile, BYTES_BF16, NULL, fresh), 64);
        _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(2, 5, 6);
        if (blocks > 1) {
            _tile_loadd(7, read_tile(tile + 2 * size, BYTES_BF16, NULL, fresh), 64);
            _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, to, step * 4); _tile_stored(2, under, step * 4);
    if (blocks > 1) { _tile_stored(1, to + TILE, step * 4); _tile_stored(3, under + TILE, step * 4); }
}

/* Many rows by up to four blocks: slices of the inputs so small that their tiles stay in the first cache while all rows pass by. */
enum { SLICE = 6, TOGETHER_BLOCKS = 4 };

static inline __attribute__((always_inline)) void many_rows(
    const bf16 *rows, int64_t stride, int64_t count, const char *matrix, const int bytes, int64_t depth, int64_t blocks, float *to,
    int64_t step
) {
    _Alignas(64) bf16 room[TOGETHER_BLOCKS * SLICE][TILE_ELEMENTS];
    const int packed = bytes != BYTES_BF16;
    int64_t size = packed ? SLICE * TILE_ELEMENTS : depth * TILE_ELEMENTS;
    for (int64_t k = 0; k < depth; k += SLICE) {
        int64_t steps = depth - k < SLICE ? depth - k : SLICE;
        const bf16 *slice = packed ? room[0] : (const bf16 *)(matrix + k * bytes);
        if (packed)
            for (int64_t b = 0; b < blocks; b++)
                for (int64_t i = 0; i < steps; i++) read_tile(matrix + (b * depth + k + i) * bytes, bytes, room[b * SLICE + i], 1);
        for (int64_t row = 0; row < count; row += 2 * TILE) {
            const bf16 *from = rows + row * stride + k * DEPTH;
            for (int64_t b = 0; b < blocks; b += 2) {
                float *place = to + row * step + b * TILE;
                if (b + 1 == blocks)
                    twice_as_many(from, stride, slice + b * size, size, 1, steps, place, step, k > 0, !packed);
                else if (row || packed)
                    twice_as_many(from, stride, slice + b * size, size, 2, steps, place, step, k > 0, 0);
                else
                    twice_as_many(from, stride, slice + b * size, size, 2, steps, place, step, k > 0, 1);
            }
        }
    }
}

static inline __attribute__((always_inline)) void multiply_packed(
    const bf16 *rows, int64_t stride, int64_t count, const char *matrix, const int bytes, int64_t depth, int64_t blocks, float *to,
    int64_t step
) {
    int64_t block = 0, size = depth * bytes;
    if (count > TILE) {
        for (; block < blocks; block += TOGETHER_BLOCKS) {
            int64_t some = blocks - block < TOGETHER_BLOCKS ? blocks - block : TOGETHER_BLOCKS;
            many_rows(rows, stride, count, matrix + block * size, bytes, depth, some, to + block * TILE, step);
        }
        return;
    }
    for (; block + 4 <= blocks; block += 4) few_rows(rows, stride, matrix + block * size, bytes, 4, depth, to + block * TILE, step);
    for (; block + 2 <= blocks; block += 2) few_rows(rows, stride, matrix + block * size, bytes, 2, depth, to + block * TILE, step);
    for (; block < blocks; block++) few_rows(rows, stride, matrix + block * size, bytes, 1, depth, to + block * TILE, step);
}

/* to [columns, 16]: row j, column i = keys[j] . queries[i]; width: a multiple of 32; queries packed as one block. Reads and
 * writes whole groups of 16 columns. */
static inline void key_products(const bf16 *keys, int64_t width, int64_t columns, const bf16 *queries, float *to) {
    for (int64_t column = 0; column < columns; column += TILE) {
        _tile_zero(0);
        for (int64_t k = 0; k < width / DEPTH; k++) {
            _tile_loadd(4, keys + column * width + k * DEPTH, width * 2);
            _tile_loadd(5, queries + k * TILE_ELEMENTS, 64);
            _tile_dpbf16ps(0, 4, 5);
        }
        _tile_stored(0, to + column * TILE, 64);
    }
}

/* to [16, 64] (+)= weights [16, 32] @ values [32, 64]; values in tiles of pairs, four of them. */
static inline void add_values(const bf16 *weights, const bf16 *values, int64_t steps, float *to) {
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    for (int64_t step = 0; step < steps; step++) {
        _tile_loadd(4, weights + step * TILE_ELEMENTS, 64);
        const bf16 *tile = values + step * 4 * TILE_ELEMENTS;
        _tile_loadd(5, tile, 64); _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, tile + TILE_ELEMENTS, 64); _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(7, tile + 2 * TILE_ELEMENTS, 64); _tile_dpbf16ps(2, 4, 7);
        _tile_loadd(5, tile + 3 * TILE_ELEMENTS, 64); _tile_dpbf16ps(3, 4, 5);
    }
    _tile_stored(0, to, 256); _tile_stored(1, to + 16, 256); _tile_stored(2, to + 32, 256); _tile_stored(3, to + 48, 256);
}

#else

static inline void tiles_on(void) {}
static inline void tiles_off(void) {}

static inline __attribute__((always_inline)) void some_rows(
    const bf16 *rows, int64_t stride, const int count, const char *block, const int bytes, int64_t depth, float *to, int64_t step
) {
    _Alignas(64) bf16 room[TILE_ELEMENTS];
    __m512 sum[8];
    for (int m = 0; m < count; m++) sum[m] = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k++) {
        const bf16 *tile = read_tile(block + k * bytes, bytes, room, 1);
        for (int pair = 0; pair < TILE; pair++) {
            __m512bh weights = (__m512bh)_mm512_loadu_si512(tile + pair * DEPTH);
            for (int m = 0; m < count; m++) {
                int32_t two;
                memcpy(&two, rows + m * stride + k * DEPTH + 2 * pair, sizeof two);
                sum[m] = _mm512_dpbf16_ps(sum[m], weights, (__m512bh)_mm512_set1_epi32(two));
            }
        }
    }
    for (int m = 0; m < count; m++) _mm512_storeu_ps(to + m * step, sum[m]);
}

static inline __attribute__((always_inline)) void multiply_packed(
    const bf16 *rows, int64_t stride, int64_t count, const char *matrix, const int bytes, int64_t depth, int64_t blocks, float *to,
    int64_t step
) {
    for (int64_t i = 0; i < blocks; i++) {
        const char *block = matrix + i * depth * bytes;
        float *place = to + i * TILE;
        int64_t m = 0;
        for (; m + 8 <= count; m += 8) some_rows(rows + m * stride, stride, 8, block, bytes, depth, place + m * step, step);
        for (; m + 2 <= count; m += 2) some_rows(rows + m * stride, stride, 2, block, bytes, depth, place + m * step, step);
        for (; m < count; m++) some_rows(rows + m * stride, stride, 1, block, bytes, depth, place + m * step, step);
    }
}

static inline void key_products(const bf16 *keys, int64_t width, int64_t columns, const bf16 *queries, float *to) {
    for (int64_t column = 0; column < columns; column += TILE)
        multiply_packed(
            keys + column * width, width, TILE, (const char *)queries, BYTES_BF16, width / DEPTH, 1, to + column * TILE, TILE
        );
}

static inline void add_values(const bf16 *weights, const bf16 *values, int64_t steps, float *to) {
    for (int lane = 0; lane < TILE; lane++) {
        __m512 sum[4];
        for (int part = 0; part < 4; part++) sum[part] = _mm512_setzero_ps();
        for (int64_t step = 0; step < steps; step++)
            for (int pair = 0; pair < TILE; pair++) {
                int32_t two;
                memcpy(&two, weights + step * TILE_ELEMENTS + lane * DEPTH + 2 * pair, sizeof two);
                for (int part = 0; part < 4; part++) {
                    const bf16 *value = values + (step * 4 + part) * TILE_ELEMENTS + pair * DEPTH;
                    sum[part] = _mm512_dpbf16_ps(sum[part], (__m512bh)_mm512_loadu_si512(value), (__m512bh)_mm512_set1_epi32(two));
                }
            }
        for (int part = 0; part < 4; part++) _mm512_storeu_ps(to + lane * 64 + part * TILE, sum[part]);
    }
}

#endif

/* to [count, 16 * blocks] = rows @ matrix.T, in float32. Whole groups of 16 rows are read and written, of 32 where there are more. */
static void multiply(
    const bf16 *rows, int64_t stride, int64_t count, Matrix matrix, int64_t depth, int64_t blocks, float *to, int64_t step
) {
    const char *tiles = matrix.tiles;
    switch (matrix.bytes) {
    case BYTES_FOUR: multiply_packed(rows, stride, count, tiles, BYTES_FOUR, depth, blocks, to, step); break;
    case BYTES_EIGHT: multiply_packed(rows, stride, count, tiles, BYTES_EIGHT, depth, blocks, to, step); break;
    default: multiply_packed(rows, stride, count, tiles, BYTES_BF16, depth, blocks, to, step);
    }
}

#endif
