/* Products on the processor's matrix unit. Included by products.h alone. */
#ifndef DECODERY_MATRIX_UNIT_H
#define DECODERY_MATRIX_UNIT_H

#include <string.h>

#include "arithmetic.h"
#include "weights.h"

/* Up to sixteen rows by 1, 2 or 4 blocks of a group: each has a tile of sums, which wait for their own products only. along: bytes
 * from one tile of a block to the next. after: the weights that are read next. */
static inline __attribute__((always_inline)) void few_rows(
    const bf16 *rows, int64_t stride, const char *block, int64_t along, const int blocks, int64_t depth, const char *after, float *to,
    int64_t step
) {
    const int size = BYTES_BF16;
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    for (int64_t k = 0; k < depth; k++) {
        const char *tile = block + k * along, *next = soon(block, k, along, blocks, depth, after);
        _tile_loadd(4, rows + k * DEPTH, stride * 2);
        fetch(next, size); _tile_loadd(5, tile, 64); _tile_dpbf16ps(0, 4, 5);
        if (blocks > 1) { fetch(next + size, size); _tile_loadd(6, tile + size, 64); _tile_dpbf16ps(1, 4, 6); }
        if (blocks > 2) {
            fetch(next + 2 * size, size); _tile_loadd(7, tile + 2 * size, 64); _tile_dpbf16ps(2, 4, 7);
            fetch(next + 3 * size, size); _tile_loadd(5, tile + 3 * size, 64); _tile_dpbf16ps(3, 4, 5);
        }
    }
    _tile_stored(0, to, step * 4);
    if (blocks > 1) _tile_stored(1, to + TILE, step * 4);
    if (blocks > 2) { _tile_stored(2, to + 2 * TILE, step * 4); _tile_stored(3, to + 3 * TILE, step * 4); }
}

/* One tile of sums [16 outputs, 16 rows] to its place in `to`. */
static inline void turn_back(const float *sums, int64_t count, float *to, int64_t step) {
    if (count == 1) {
        const __m512i every = _mm512_mullo_epi32(
            _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(TILE)
        );
        _mm512_storeu_ps(to, _mm512_i32gather_ps(every, sums, 4));
        return;
    }
    __m512i lines[TILE];
    for (int i = 0; i < TILE; i++) lines[i] = _mm512_load_si512(sums + i * TILE);
    transpose(lines);
    for (int64_t i = 0; i < count && i < TILE; i++) _mm512_storeu_ps(to + i * step, (__m512)lines[i]);
}

/* Up to sixteen or thirty-two rows by some blocks of a group of a packed matrix, with the parts of rows and weights
 * exchanged: as the first factor, a tile is wanted output by output, which is how it can be unpacked fastest. groups: of 16
 * rows; groups * blocks: at most 4. Tiles are unpacked a step before they are multiplied: a tile load waits until what it loads has
 * left the processor's queue of stores, which happens in order. */
static inline __attribute__((always_inline)) void few_turned(
    const Rows *rows, const int groups, const char *block, int64_t along, const int bytes, const int blocks, int64_t depth,
    const char *after, float *to, int64_t step
) {
    _Alignas(64) bf16 room[2][4][TILE_ELEMENTS];
    _Alignas(64) float sums[4][TILE * TILE];
    for (int b = 0; b < blocks; b++) unpack(block + b * bytes, bytes, room[0][b]);
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    for (int64_t k = 0; k < depth; k++) {
        const char *next = block + (k + 1) * along, *later = soon(block, k + 1, along, blocks, depth, after);
        const bf16 *turned = rows->turned + k * groups * TILE_ELEMENTS;
        bf16(*tile)[TILE_ELEMENTS] = room[k & 1], (*place)[TILE_ELEMENTS] = room[~k & 1];
        _tile_loadd(4, turned, 64);
        if (groups == 2) _tile_loadd(5, turned + TILE_ELEMENTS, 64);
        for (int b = 0; b < blocks; b++) {
            fetch(later + b * bytes, bytes);
            if (k + 1 < depth) unpack(next + b * bytes, bytes, place[b]);
            switch (groups * 4 + b) { /* registers are constants */
            case 4: _tile_loadd(6, tile[0], 64); _tile_dpbf16ps(0, 6, 4); break;
            case 5: _tile_loadd(7, tile[1], 64); _tile_dpbf16ps(1, 7, 4); break;
            case 6: _tile_loadd(6, tile[2], 64); _tile_dpbf16ps(2, 6, 4); break;
            case 7: _tile_loadd(7, tile[3], 64); _tile_dpbf16ps(3, 7, 4); break;
            case 8: _tile_loadd(6, tile[0], 64); _tile_dpbf16ps(0, 6, 4); _tile_dpbf16ps(1, 6, 5); break;
            case 9: _tile_loadd(7, tile[1], 64); _tile_dpbf16ps(2, 7, 4); _tile_dpbf16ps(3, 7, 5); break;
            }
        }
    }
    _tile_stored(0, sums[0], 64); _tile_stored(1, sums[1], 64); _tile_stored(2, sums[2], 64); _tile_stored(3, sums[3], 64);
    written();
    for (int i = 0; i < groups * blocks; i++) {
        int64_t first = i % groups * TILE;
        turn_back(sums[i], rows->count - first, to + i / groups * TILE + first * step, step);
    }
}

/* Thirty-two rows by one or two blocks: a tile of weights serves two tiles of rows. size, along: elements from block to
 * block, and from tile to tile. more: go on with the sums that are in `to`. fresh: the weights come from memory. */
static inline __attribute__((always_inline)) void twice_as_many(
    const bf16 *rows, int64_t stride, const bf16 *block, int64_t size, int64_t along, const int blocks, int64_t depth, float *to,
    int64_t step, int more, const int fresh
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
        const char *tile = (const char *)(block + k * along);
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

/* Many rows by a group of blocks: slices of the inputs that stay in the nearer caches while all rows pass by. With short slices the
 * sums come and go too often. */
enum { SLICE = 18 };

static inline __attribute__((always_inline)) void many_rows(
    const bf16 *rows, int64_t stride, int64_t count, const char *matrix, const int bytes, int64_t group, int64_t depth, float *to,
    int64_t step
) {
    _Alignas(64) bf16 room[MOST_GROUP * SLICE][TILE_ELEMENTS];
    const int packed = bytes != BYTES_BF16;
    int64_t size = packed ? SLICE * TILE_ELEMENTS : TILE_ELEMENTS, along = packed ? TILE_ELEMENTS : group * TILE_ELEMENTS;
    for (int64_t k = 0; k < depth; k += SLICE) {
        int64_t steps = depth - k < SLICE ? depth - k : SLICE;
        const char *tiles = matrix + k * group * bytes;
        const bf16 *slice = packed ? room[0] : (const bf16 *)tiles;
        if (packed)
            for (int64_t i = 0; i < steps; i++)
                for (int64_t b = 0; b < group; b++) read_tile(tiles + (i * group + b) * bytes, bytes, room[b * SLICE + i], 1);
        for (int64_t row = 0; row < count; row += 2 * TILE) {
            const bf16 *from = rows + row * stride + k * DEPTH;
            for (int64_t b = 0; b < group; b += 2) {
                const bf16 *blocks = slice + b * size;
                float *place = to + row * step + b * TILE;
                if (b + 1 == group)
                    twice_as_many(from, stride, blocks, size, along, 1, steps, place, step, k > 0, !packed);
                else if (row || packed)
                    twice_as_many(from, stride, blocks, size, along, 2, steps, place, step, k > 0, 0);
                else
                    twice_as_many(from, stride, blocks, size, along, 2, steps, place, step, k > 0, 1);
            }
        }
    }
}

static inline __attribute__((always_inline)) void multiply_packed(
    const Rows *rows, Matrix matrix, const int bytes, int64_t depth, int64_t blocks, const char *after, float *to, int64_t step
) {
    int64_t group = matrix.group, along = group * bytes, count = rows->count;
    for (int64_t block = 0; block < blocks; block += group) {
        const char *tiles = (const char *)matrix.tiles + block * depth * bytes;
        const char *next = block + group < blocks ? tiles + group * depth * bytes : after;
        float *place = to + block * TILE;
        if (bytes == BYTES_BF16 && count <= TILE) {
            if (group == 4) few_rows(rows->rows, rows->stride, tiles, along, 4, depth, next, place, step);
            if (group == 2) few_rows(rows->rows, rows->stride, tiles, along, 2, depth, next, place, step);
            if (group == 1) few_rows(rows->rows, rows->stride, tiles, along, 1, depth, next, place, step);
        } else if (!rows->turned) {
            many_rows(rows->rows, rows->stride, count, tiles, bytes, group, depth, place, step);
        } else if (count > TILE) {
            for (int64_t b = 0; b + 2 <= group; b += 2) {
                const char *half = b + 2 < group ? tiles + (b + 2) * bytes : next;
                few_turned(rows, 2, tiles + b * bytes, along, bytes, 2, depth, half, place + b * TILE, step);
            }
            if (group == 1) few_turned(rows, 2, tiles, along, bytes, 1, depth, next, place, step);
        } else {
            if (group == 4) few_turned(rows, 1, tiles, along, bytes, 4, depth, next, place, step);
            if (group == 2) few_turned(rows, 1, tiles, along, bytes, 2, depth, next, place, step);
            if (group == 1) few_turned(rows, 1, tiles, along, bytes, 1, depth, next, place, step);
        }
    }
}

/* to [columns, 16]: row j, column i = keys[j] . queries[i]; width: a multiple of 32; queries packed as one block. Reads and
 * writes whole groups of 16 columns. Four groups together share the loads of the queries and do not wait for each other. */
static inline void key_products(const bf16 *keys, int64_t width, int64_t columns, const bf16 *queries, int64_t lanes, float *to) {
    (void)lanes;
    const int64_t four = 4 * TILE, block = TILE * width;
    written();
    int64_t column = 0;
    for (; column + 3 * TILE < columns; column += four) {
        const bf16 *from = keys + column * width;
        float *sums = to + column * TILE;
        _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
        for (int64_t k = 0; k < width / DEPTH; k++) {
            const bf16 *key = from + k * DEPTH;
            _tile_loadd(4, queries + k * TILE_ELEMENTS, 64);
            _tile_loadd(5, key, width * 2); _tile_dpbf16ps(0, 5, 4);
            _tile_loadd(6, key + block, width * 2); _tile_dpbf16ps(1, 6, 4);
            _tile_loadd(7, key + 2 * block, width * 2); _tile_dpbf16ps(2, 7, 4);
            _tile_loadd(5, key + 3 * block, width * 2); _tile_dpbf16ps(3, 5, 4);
        }
        _tile_stored(0, sums, 64); _tile_stored(1, sums + 256, 64); _tile_stored(2, sums + 512, 64); _tile_stored(3, sums + 768, 64);
    }
    for (; column < columns; column += TILE) {
        _tile_zero(0);
        for (int64_t k = 0; k < width / DEPTH; k++) {
            _tile_loadd(4, queries + k * TILE_ELEMENTS, 64);
            _tile_loadd(5, keys + column * width + k * DEPTH, width * 2); _tile_dpbf16ps(0, 5, 4);
        }
        _tile_stored(0, to + column * TILE, 64);
    }
}

/* Fetch 16 lines, so many elements apart. */
static inline __attribute__((always_inline)) void fetch_lines(const bf16 *lines, int64_t apart) {
    for (int64_t i = 0; i < TILE; i++) _mm_prefetch((const char *)(lines + i * apart), _MM_HINT_T0);
}

/* to [lanes, 64] = weights [lanes, 32 * steps] @ values [32 * steps, 64]; values at a place in each span, in pairs of rows, which are so
 * many elements apart. Room for 16 lanes. */
static inline void add_values(
    const bf16 *weights, const bf16 *const *span, int64_t place, int64_t apart, int64_t steps, int64_t lanes, float *to
) {
    (void)lanes;
    written();
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    for (int64_t step = 0; step < steps; step++) {
        _tile_loadd(4, weights + step * TILE_ELEMENTS, 64);
        const bf16 *tile = values_of(span, place, apart, step);
        const bf16 *later = step + 2 < steps ? values_of(span, place, apart, step + 2) : tile;
        fetch_lines(later, apart); _tile_loadd(5, tile, apart * 2); _tile_dpbf16ps(0, 4, 5);
        fetch_lines(later + DEPTH, apart); _tile_loadd(6, tile + DEPTH, apart * 2); _tile_dpbf16ps(1, 4, 6);
        fetch_lines(later + 2 * DEPTH, apart); _tile_loadd(7, tile + 2 * DEPTH, apart * 2); _tile_dpbf16ps(2, 4, 7);
        fetch_lines(later + 3 * DEPTH, apart); _tile_loadd(5, tile + 3 * DEPTH, apart * 2); _tile_dpbf16ps(3, 4, 5);
    }
    _tile_stored(0, to, 256); _tile_stored(1, to + 16, 256); _tile_stored(2, to + 32, 256); _tile_stored(3, to + 48, 256);
}

#endif
