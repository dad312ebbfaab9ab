/* Vectors of sixteen numbers, and products of packed matrices on the processor's matrix unit.
 *
 * Every function here computes a row from that row alone, always in the same order, so that a row's result is the same bit for
 * bit whatever is computed beside it. All of speculative decoding in bfloat16 rests on this.
 */
#ifndef DECODERY_ARITHMETIC_H
#define DECODERY_ARITHMETIC_H

#include <immintrin.h>
#include <stddef.h>
#include <string.h>

#include "decoder.h"

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512BF16__)
#error "the native decoder needs a processor with AVX-512 and its bfloat16 instructions"
#endif
#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && !defined(DECODERY_NO_AMX)
#define DECODERY_AMX 1
#else
#define DECODERY_AMX 0
#endif

enum { TILE = 16, DEPTH = 32, TILE_ELEMENTS = TILE * DEPTH };

static inline __m512 load_bf16(const bf16 *from) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

static inline void store_bf16(bf16 *to, __m512 value) {
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(value));
}

static inline __m512 rounded(__m512 value) {
    __m512i wide = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(value));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

/* e to the power x: 2^n * 2^f with f in [-1/2, 1/2] and a polynomial for 2^f; relative error below 1e-7. */
static inline __m512 exponential(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-104.0f));
    x = _mm512_mul_ps(_mm512_min_ps(x, _mm512_set1_ps(88.7f)), _mm512_set1_ps(1.44269504f));
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 part = _mm512_sub_ps(x, whole);
    __m512 sum = _mm512_set1_ps(1.54035304e-4f);
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(1.33335581e-3f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(9.61812911e-3f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(5.55041087e-2f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(2.40226507e-1f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(6.93147181e-1f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(sum, whole);
}

/* 1 / x by an estimate of 14 bits and a step of Newton's method; relative error below 1e-7. */
static inline __m512 reciprocal(__m512 x) {
    __m512 guess = _mm512_rcp14_ps(x);
    return _mm512_mul_ps(guess, _mm512_fnmadd_ps(x, guess, _mm512_set1_ps(2.0f)));
}

static inline __m512 silu(__m512 x) {
    __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_mul_ps(x, reciprocal(_mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x)))));
}

/* gelu with the tanh approximation, written with the logistic function: x * s(2 * sqrt(2 / pi) * (x + 0.044715 x^3)). */
static inline __m512 gelu(__m512 x) {
    __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
    __m512 inner = _mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x);
    inner = _mm512_mul_ps(inner, _mm512_set1_ps(-1.59576912f));
    return _mm512_mul_ps(x, reciprocal(_mm512_add_ps(_mm512_set1_ps(1.0f), exponential(inner))));
}

/* 1 / root mean square of a row. count: a multiple of 16. */
static inline float inverse_scale(const float *row, int64_t count, float epsilon) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i += TILE) {
        __m512 x = _mm512_loadu_ps(row + i);
        sum = _mm512_fmadd_ps(x, x, sum);
    }
    float mean = _mm512_reduce_add_ps(sum) / (float)count + epsilon;
    return _mm_cvtss_f32(_mm_div_ss(_mm_set_ss(1.0f), _mm_sqrt_ss(_mm_set_ss(mean))));
}

static inline void normalise(const float *row, const float *weight, int64_t count, float epsilon, bf16 *to) {
    __m512 scale = _mm512_set1_ps(inverse_scale(row, count, epsilon));
    for (int64_t i = 0; i < count; i += TILE) {
        __m512 x = _mm512_mul_ps(_mm512_loadu_ps(row + i), scale);
        store_bf16(to + i, _mm512_mul_ps(x, _mm512_loadu_ps(weight + i)));
    }
}

/* Products. A packed matrix [outputs, inputs] is a list of blocks of 16 outputs; a block is a list of tiles of 32 inputs; a tile
 * holds for each of 16 pairs of inputs the pair of each output. `rows` are bfloat16 with `stride` elements between them, read in
 * groups of 16; `to` is float32 with `step` elements between its rows. */

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

static inline void ahead(const bf16 *tile) {
    for (int line = 0; line < TILE_ELEMENTS; line += 32) _mm_prefetch((const char *)(tile + line), _MM_HINT_T0);
}

enum { AHEAD = 8 * TILE_ELEMENTS };

static inline void four_blocks(const bf16 *rows, int64_t stride, const bf16 *block, int64_t depth, float *to, int64_t step) {
    const bf16 *second = block + depth * TILE_ELEMENTS, *third = second + depth * TILE_ELEMENTS;
    const bf16 *fourth = third + depth * TILE_ELEMENTS;
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    for (int64_t k = 0; k < depth; k++) {
        int64_t tile = k * TILE_ELEMENTS;
        _tile_loadd(4, rows + k * DEPTH, stride * 2);
        ahead(block + tile + AHEAD), ahead(second + tile + AHEAD), ahead(third + tile + AHEAD), ahead(fourth + tile + AHEAD);
        _tile_loadd(5, block + tile, 64); _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, second + tile, 64); _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(7, third + tile, 64); _tile_dpbf16ps(2, 4, 7);
        _tile_loadd(5, fourth + tile, 64); _tile_dpbf16ps(3, 4, 5);
    }
    _tile_stored(0, to, step * 4); _tile_stored(1, to + 16, step * 4);
    _tile_stored(2, to + 32, step * 4); _tile_stored(3, to + 48, step * 4);
}

static inline void one_block(const bf16 *rows, int64_t stride, const bf16 *block, int64_t depth, float *to, int64_t step) {
    _tile_zero(0);
    for (int64_t k = 0; k < depth; k++) {
        _tile_loadd(4, rows + k * DEPTH, stride * 2);
        ahead(block + k * TILE_ELEMENTS + AHEAD);
        _tile_loadd(5, block + k * TILE_ELEMENTS, 64);
        _tile_dpbf16ps(0, 4, 5);
    }
    _tile_stored(0, to, step * 4);
}

/* Thirty-two rows at a time: a tile of weights serves two tiles of rows. size: elements between the two blocks. more: go on with
 * the sums that are in `to`. fresh: the weights come from memory. */
static inline __attribute__((always_inline)) void two_blocks_twice(
    const bf16 *rows, int64_t stride, const bf16 *block, int64_t size, int64_t depth, float *to, int64_t step, int more,
    const int fresh
) {
    const bf16 *second = block + size, *below = rows + TILE * stride;
    float *under = to + TILE * step;
    if (more) {
        _tile_loadd(0, to, step * 4); _tile_loadd(1, to + 16, step * 4);
        _tile_loadd(2, under, step * 4); _tile_loadd(3, under + 16, step * 4);
    } else {
        _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    }
    for (int64_t k = 0; k < depth; k++) {
        int64_t tile = k * TILE_ELEMENTS;
        _tile_loadd(4, rows + k * DEPTH, stride * 2); _tile_loadd(5, below + k * DEPTH, stride * 2);
        if (fresh) ahead(block + tile + AHEAD), ahead(second + tile + AHEAD);
        _tile_loadd(6, block + tile, 64); _tile_loadd(7, second + tile, 64);
        _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, to, step * 4); _tile_stored(1, to + 16, step * 4);
    _tile_stored(2, under, step * 4); _tile_stored(3, under + 16, step * 4);
}

/* Many rows: slices of the inputs so small that those of four blocks stay in the first cache while all rows pass by. */
enum { SLICE = 6 };

static inline void many_rows(
    const bf16 *rows, int64_t stride, int64_t count, const bf16 *matrix, int64_t depth, int64_t blocks, float *to, int64_t step
) {
    int64_t size = depth * TILE_ELEMENTS;
    for (int64_t k = 0; k < depth; k += SLICE) {
        int64_t steps = depth - k < SLICE ? depth - k : SLICE;
        for (int64_t row = 0; row < count; row += 2 * TILE) {
            const bf16 *from = rows + row * stride + k * DEPTH, *block = matrix + k * TILE_ELEMENTS;
            for (int64_t b = 0; b + 2 <= blocks; b += 2) {
                float *place = to + row * step + b * TILE;
                if (row)
                    two_blocks_twice(from, stride, block + b * size, size, steps, place, step, k > 0, 0);
                else
                    two_blocks_twice(from, stride, block + b * size, size, steps, place, step, k > 0, 1);
            }
        }
    }
    if (blocks % 2)
        for (int64_t row = 0; row < count; row += TILE)
            one_block(rows + row * stride, stride, matrix + (blocks - 1) * size, depth, to + row * step + (blocks - 1) * TILE, step);
}

/* to [count, 16 * blocks] = rows @ matrix.T. Whole groups of 16 rows are read and written, of 32 where there are more. */
static inline void multiply(
    const bf16 *rows, int64_t stride, int64_t count, const bf16 *matrix, int64_t depth, int64_t blocks, float *to, int64_t step
) {
    if (count > TILE) {
        many_rows(rows, stride, count, matrix, depth, blocks, to, step);
        return;
    }
    int64_t block = 0, size = depth * TILE_ELEMENTS;
    for (; block + 4 <= blocks; block += 4)
        four_blocks(rows, stride, matrix + block * size, depth, to + block * TILE, step);
    for (; block < blocks; block++)
        one_block(rows, stride, matrix + block * size, depth, to + block * TILE, step);
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

static inline void some_rows(
    const bf16 *rows, int64_t stride, int count, const bf16 *block, int64_t depth, float *to, int64_t step
) {
    __m512 sum[8];
    for (int m = 0; m < count; m++) sum[m] = _mm512_setzero_ps();
    for (int64_t pair = 0; pair < depth * TILE; pair++) {
        __m512bh weights = (__m512bh)_mm512_loadu_si512(block + pair * DEPTH);
        for (int m = 0; m < count; m++) {
            int32_t two;
            memcpy(&two, rows + m * stride + 2 * pair, sizeof two);
            sum[m] = _mm512_dpbf16_ps(sum[m], weights, (__m512bh)_mm512_set1_epi32(two));
        }
    }
    for (int m = 0; m < count; m++) _mm512_storeu_ps(to + m * step, sum[m]);
}

static inline void multiply(
    const bf16 *rows, int64_t stride, int64_t count, const bf16 *matrix, int64_t depth, int64_t blocks, float *to, int64_t step
) {
    for (int64_t i = 0; i < blocks; i++) {
        const bf16 *block = matrix + i * depth * TILE_ELEMENTS;
        int64_t m = 0;
        for (; m + 8 <= count; m += 8) some_rows(rows + m * stride, stride, 8, block, depth, to + m * step + i * TILE, step);
        for (; m + 2 <= count; m += 2) some_rows(rows + m * stride, stride, 2, block, depth, to + m * step + i * TILE, step);
        for (; m < count; m++) some_rows(rows + m * stride, stride, 1, block, depth, to + m * step + i * TILE, step);
    }
}

static inline void key_products(const bf16 *keys, int64_t width, int64_t columns, const bf16 *queries, float *to) {
    for (int64_t column = 0; column < columns; column += TILE)
        multiply(keys + column * width, width, TILE, queries, width / DEPTH, 1, to + column * TILE, TILE);
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

/* Transpose 16 x 16 numbers of 32 bits. */
static inline void transpose(__m512i x[16]) {
    __m512i y[16];
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; j++) {
            y[i + j] = _mm512_shuffle_i32x4(x[i + j], x[i + j + 4], 0x88);
            y[i + j + 4] = _mm512_shuffle_i32x4(x[i + j], x[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        x[j] = _mm512_shuffle_i32x4(y[j], y[j + 8], 0x88);
        x[j + 8] = _mm512_shuffle_i32x4(y[j], y[j + 8], 0xdd);
    }
}

/* Scores of 32 columns [32, 16 lanes] as one tile of weights [16 lanes, 32] in bfloat16. */
static inline void pack_weights(const float *scores, bf16 *to) {
    __m512i pair[16];
    for (int i = 0; i < 16; i++) {
        /* Each lane's two columns side by side: the first in the low half. */
        __m512i first = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(scores + 2 * i * TILE)));
        __m512i second = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(scores + (2 * i + 1) * TILE)));
        pair[i] = _mm512_or_si512(first, _mm512_slli_epi32(second, 16));
    }
    transpose(pair);
    for (int lane = 0; lane < 16; lane++) _mm512_storeu_si512(to + lane * DEPTH, pair[lane]);
}

/* Values of 32 columns, 64 widths of each, as four tiles of pairs. */
static inline void pack_values(const bf16 *values, int64_t width, bf16 *to) {
    const __m512i low = _mm512_set_epi16(
        47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0
    );
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (int i = 0; i < 16; i++)
        for (int half = 0; half < 2; half++) {
            __m512i first = _mm512_loadu_si512(values + 2 * i * width + half * DEPTH);
            __m512i second = _mm512_loadu_si512(values + (2 * i + 1) * width + half * DEPTH);
            bf16 *tile = to + 2 * half * TILE_ELEMENTS + i * DEPTH;
            _mm512_storeu_si512(tile, _mm512_permutex2var_epi16(first, low, second));
            _mm512_storeu_si512(tile + TILE_ELEMENTS, _mm512_permutex2var_epi16(first, high, second));
        }
}

#endif
