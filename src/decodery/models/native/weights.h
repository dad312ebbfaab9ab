/* Packed matrices: how weights lie in memory.
 *
 * A packed matrix [outputs, inputs] is cut into blocks of 16 outputs and these into tiles of 32 inputs. The blocks that a product
 * takes together are a group; groups follow each other, within a group the first tiles of all its blocks, then the second ones,
 * and so on, so that a product reads from one place to the next. Unpacked, a tile holds for each of 16 pairs of inputs the pair
 * of each output, in bfloat16. It is kept
 *   - as it is, in 1024 bytes;
 *   - in 288 bytes where the 32 weights of every output are scale * (q - 8), a scale in half precision times a number of four bits;
 *   - in 320 bytes where they lie on a grid of sixteen steps, offset + scale * q in half precision;
 *   - in 576 bytes where they are a scale times a number of eight bits.
 * The short forms are taken only where they give back every weight bit for bit, which holds for models that were once
 * quantised (GGUF's Q4_0, Q4_1 and Q8_0 have blocks of 32 inputs). A pass reads all weights once, so its time falls with them.
 * A negative zero counts as zero: no product can tell them apart.
 */
#ifndef DECODERY_WEIGHTS_H
#define DECODERY_WEIGHTS_H

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "arithmetic.h"
#include "threads.h"

enum { BYTES_BF16 = 2 * TILE_ELEMENTS, BYTES_CENTRED = 288, BYTES_FOUR = 320, BYTES_EIGHT = 576 };

/* Where the numbers of a tile of four bits begin: they are its last 256 bytes. */
static inline int64_t digits_of(int64_t bytes) { return bytes - 4 * 64; }

/* The matrix without its first blocks, whole groups of them. depth: tiles of a block. */
static inline Matrix from_block(Matrix matrix, int64_t block, int64_t depth) {
    matrix.tiles = (const char *)matrix.tiles + block * depth * matrix.bytes;
    return matrix;
}

/* --- reading -------------------------------------------------------------------------------------------------------------- */

/* A tile of 288 or 320 bytes: 16 scales in half precision, in the longer form 16 offsets too, then four vectors of 32 words, one for
 * each input; the digits i of the words of vector v are the numbers of output 4 v + i. The sixteen weights that an output can have are
 * computed once and then looked up. `to`: [16 outputs, 32 inputs]. */
static inline __attribute__((always_inline)) void unpack_four(const char *tile, const int bytes, bf16 *to) {
    const __m512 digits = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512 steps = _mm512_sub_ps(digits, _mm512_set1_ps(8));
    const __m512i digit = _mm512_set1_epi16(15), upper = _mm512_set1_epi16(16);
    float scale[TILE], offset[TILE];
    _mm512_storeu_ps(scale, _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)tile)));
    if (bytes == BYTES_FOUR) _mm512_storeu_ps(offset, _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(tile + 32))));
    for (int vector = 0; vector < 4; vector++) {
        __m512i words = _mm512_loadu_si512(tile + digits_of(bytes) + 64 * vector), table[2];
        bf16 *line = to + 4 * vector * DEPTH;
        for (int half = 0; half < 2; half++) {
            int low = 4 * vector + (half ? 3 : 0), high = 4 * vector + (half ? 2 : 1);
            __m512 first = _mm512_set1_ps(scale[low]), second = _mm512_set1_ps(scale[high]);
            if (bytes == BYTES_CENTRED) {
                first = _mm512_mul_ps(steps, first), second = _mm512_mul_ps(steps, second);
            } else {
                first = _mm512_fmadd_ps(digits, first, _mm512_set1_ps(offset[low]));
                second = _mm512_fmadd_ps(digits, second, _mm512_set1_ps(offset[high]));
            }
            table[half] = (__m512i)_mm512_cvtne2ps_pbh(second, first);
        }
        /* A look-up takes five bits: those of the digit and which half of the table. (x and digit) or upper is 0xea. */
        __m512i places[4] = {
            _mm512_and_si512(words, digit),
            _mm512_ternarylogic_epi32(_mm512_srli_epi16(words, 4), digit, upper, 0xea),
            _mm512_ternarylogic_epi32(_mm512_srli_epi16(words, 8), digit, upper, 0xea),
            _mm512_srli_epi16(words, 12),
        };
        for (int i = 0; i < 4; i++) _mm512_store_si512(line + i * DEPTH, _mm512_permutexvar_epi16(places[i], table[i / 2]));
    }
}

/* A tile of 576 bytes: 16 scales in float32 and then 32 numbers of each output. `to`: [16 outputs, 32 inputs]. */
static inline void unpack_eight(const char *tile, bf16 *to) {
    const float *scale = (const float *)tile;
    for (int output = 0; output < TILE; output++) {
        const char *from = tile + 64 + 32 * output;
        __m512 factor = _mm512_set1_ps(scale[output]);
        __m512 first = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128((const __m128i *)from)));
        __m512 second = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128((const __m128i *)(from + 16))));
        first = _mm512_mul_ps(first, factor), second = _mm512_mul_ps(second, factor);
        _mm512_store_si512(to + output * DEPTH, (__m512i)_mm512_cvtne2ps_pbh(second, first));
    }
}

/* Compilers take a tile load for an instruction that reads no memory. */
static inline void written(void) { __asm__ volatile("" ::: "memory"); }

/* Fetch a tile into the nearest cache. What is not there does no harm. */
static inline __attribute__((always_inline)) void fetch(const char *tile, const int bytes) {
    for (int line = 0; line < bytes; line += 64) _mm_prefetch(tile + line, _MM_HINT_T0);
}

enum { AHEAD = 4 * BYTES_BF16 };

/* A packed tile as [16 outputs, 32 inputs]. */
static inline __attribute__((always_inline)) const bf16 *unpack(const char *tile, const int bytes, bf16 *to) {
    if (bytes == BYTES_EIGHT)
        unpack_eight(tile, to);
    else
        unpack_four(tile, bytes, to);
    written();
    return to;
}

/* A tile in pairs: where it lies, or unpacked to `to`. fresh: it comes from memory, and so will those that follow it. */
static inline __attribute__((always_inline)) const bf16 *read_tile(const char *tile, const int bytes, bf16 *to, const int fresh) {
    if (fresh) fetch(tile + AHEAD, bytes);
    if (bytes == BYTES_BF16) return (const bf16 *)tile;
    __m512i pairs[TILE];
    unpack(tile, bytes, to);
    for (int i = 0; i < TILE; i++) pairs[i] = _mm512_load_si512(to + i * DEPTH);
    transpose(pairs);
    for (int i = 0; i < TILE; i++) _mm512_store_si512(to + i * DEPTH, pairs[i]);
    written();
    return to;
}

/* 32 weights of one output of a tile. */
static inline void unpack_line(const char *tile, int64_t bytes, int64_t output, bf16 *to) {
    if (bytes == BYTES_BF16) {
        for (int64_t pair = 0; pair < TILE; pair++) memcpy(to + 2 * pair, tile + 4 * (pair * TILE + output), 4);
        return;
    }
    __m512i whole[2];
    __m512 scale, offset = _mm512_setzero_ps();
    if (bytes == BYTES_EIGHT) {
        float factor;
        memcpy(&factor, tile + 4 * output, 4);
        scale = _mm512_set1_ps(factor);
        for (int i = 0; i < 2; i++)
            whole[i] = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(tile + 64 + 32 * output + 16 * i)));
    } else {
        uint16_t halves[2];
        memcpy(halves, tile + 2 * output, 2), memcpy(halves + 1, tile + 32 + 2 * output, 2);
        scale = _mm512_set1_ps(_cvtsh_ss(halves[0])), offset = _mm512_set1_ps(_cvtsh_ss(halves[1]));
        __m512i words = _mm512_loadu_si512(tile + digits_of(bytes) + 64 * (output / 4));
        words = _mm512_and_si512(_mm512_srl_epi16(words, _mm_cvtsi64_si128(4 * (output % 4))), _mm512_set1_epi16(15));
        if (bytes == BYTES_CENTRED) words = _mm512_sub_epi16(words, _mm512_set1_epi16(8));
        whole[0] = _mm512_cvtepi16_epi32(_mm512_castsi512_si256(words));
        whole[1] = _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(words, 1));
    }
    for (int i = 0; i < 2; i++) {
        __m512 numbers = _mm512_cvtepi32_ps(whole[i]);
        /* As tiles are unpacked: a sum of products in one step, or a product. */
        store_bf16(to + i * TILE, bytes == BYTES_FOUR ? _mm512_fmadd_ps(numbers, scale, offset) : _mm512_mul_ps(numbers, scale));
    }
}

/* --- writing -------------------------------------------------------------------------------------------------------------- */

/* The numbers that bfloat16 rounds to `weights`: from `low` to `high`, generously. */
static inline void around(__m512 weights, __m512 *low, __m512 *high) {
    __m512 half = _mm512_mul_ps(_mm512_abs_ps(weights), _mm512_set1_ps(1.0f / 256));
    *low = _mm512_sub_ps(weights, half), *high = _mm512_add_ps(weights, half);
}

static inline uint16_t half_bits(float value) { return (uint16_t)_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }

/* Find scale and offset such that sixteen steps give back 32 weights. Returns 1 and the numbers, or 0. */
static int grid_of_sixteen(const float *weights, float *scale, float *offset, uint8_t *numbers) {
    enum { NEIGHBOURS = 6 };
    __m512 w[2] = {_mm512_loadu_ps(weights), _mm512_loadu_ps(weights + TILE)};
    float least = _mm512_reduce_min_ps(_mm512_min_ps(w[0], w[1])), most = _mm512_reduce_max_ps(_mm512_max_ps(w[0], w[1]));
    for (int steps = 15; steps > 7; steps--) {
        float width = (most - least) / (float)steps;
        __m512 low[2], high[2], q[2];
        for (int i = 0; i < 2; i++) {
            around(w[i], &low[i], &high[i]);
            __m512 place = _mm512_mul_ps(_mm512_sub_ps(w[i], _mm512_set1_ps(least)), _mm512_set1_ps(width > 0 ? 1 / width : 0));
            q[i] = _mm512_roundscale_ps(place, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        }
        for (int k = 0; k <= 2 * NEIGHBOURS; k++) {
            /* Half-precision neighbours of the least weight, nearest first; then of the scales that its choice leaves. */
            uint16_t first = (uint16_t)(half_bits(least) + (k % 2 ? (k + 1) / 2 : -k / 2));
            float base = _cvtsh_ss(first);
            __m512 from = _mm512_set1_ps(0), to = _mm512_set1_ps(INFINITY), origin = _mm512_set1_ps(base);
            for (int i = 0; i < 2; i++) {
                __mmask16 above = _mm512_cmp_ps_mask(q[i], _mm512_set1_ps(0.5f), _CMP_GT_OQ);
                from = _mm512_mask_max_ps(from, above, from, _mm512_div_ps(_mm512_sub_ps(low[i], origin), q[i]));
                to = _mm512_mask_min_ps(to, above, to, _mm512_div_ps(_mm512_sub_ps(high[i], origin), q[i]));
            }
            float lowest = _mm512_reduce_max_ps(from), highest = _mm512_reduce_min_ps(to);
            if (lowest > highest * 1.001f) continue;
            uint16_t middle = half_bits(width > 0 ? (lowest + highest) / 2 : 0);
            for (int j = 0; j <= 2 * NEIGHBOURS; j++) {
                uint16_t second = (uint16_t)(middle + (j % 2 ? (j + 1) / 2 : -j / 2));
                __m512 factor = _mm512_set1_ps(_cvtsh_ss(second));
                int wrong = 0; /* as numbers, so that zeros are equal */
                for (int i = 0; i < 2; i++)
                    wrong |= _mm512_cmp_ps_mask(rounded(_mm512_fmadd_ps(q[i], factor, origin)), w[i], _CMP_NEQ_UQ);
                if (wrong) continue;
                for (int i = 0; i < 2; i++)
                    _mm_storeu_si128((__m128i *)(numbers + i * TILE), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(q[i])));
                *scale = _cvtsh_ss(second), *offset = base;
                return 1;
            }
        }
        if (!(width > 0)) return 0;
    }
    return 0;
}

/* Find a scale such that numbers from -1 - highest to highest give back 32 weights. Returns 1 and the numbers, or 0. */
static int grid_around_zero(const float *weights, int highest, float *scale, int8_t *numbers) {
    enum { NEIGHBOURS = 8 };
    __m512 w[2] = {_mm512_loadu_ps(weights), _mm512_loadu_ps(weights + TILE)};
    float least = _mm512_reduce_min_ps(_mm512_min_ps(w[0], w[1])), most = _mm512_reduce_max_ps(_mm512_max_ps(w[0], w[1]));
    float farthest = most > -least ? most : least;
    const __m512 first = _mm512_set1_ps((float)(-1 - highest)), last = _mm512_set1_ps((float)highest);
    /* The number of the weight farthest from zero is one of the ends, seldom one nearer to zero. */
    for (int step = 0; step <= highest / 2 + 1; step++) {
        uint16_t middle = half_bits(farthest / (float)(step ? highest + 1 - step : -1 - highest));
        for (int k = 0; k <= 2 * NEIGHBOURS; k++) {
            uint16_t bits = (uint16_t)(middle + (k % 2 ? (k + 1) / 2 : -k / 2));
            float value = _cvtsh_ss(bits);
            __m512 factor = _mm512_set1_ps(value), inverse = _mm512_set1_ps(value != 0 ? 1 / value : 0), q[2];
            int wrong = 0;
            for (int i = 0; i < 2; i++) {
                q[i] = _mm512_roundscale_ps(_mm512_mul_ps(w[i], inverse), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
                q[i] = _mm512_max_ps(first, _mm512_min_ps(last, q[i]));
                wrong |= _mm512_cmp_ps_mask(rounded(_mm512_mul_ps(q[i], factor)), w[i], _CMP_NEQ_UQ);
            }
            if (wrong) continue;
            for (int i = 0; i < 2; i++)
                _mm_storeu_si128((__m128i *)(numbers + i * TILE), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(q[i])));
            *scale = value;
            return 1;
        }
    }
    return 0;
}

static inline void write_halves(__m512 numbers, char *to) {
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph(numbers, _MM_FROUND_TO_NEAREST_INT));
}

/* Write one tile of `matrix` [.., inputs] bfloat16 in the form of so many bytes. Returns 1, or 0 where that would change a
 * weight. */
static int write_tile(const bf16 *matrix, int64_t inputs, int64_t bytes, char *to) {
    if (bytes == BYTES_BF16) {
        bf16 *tile = (bf16 *)to;
        for (int pair = 0; pair < TILE; pair++)
            for (int output = 0; output < TILE; output++, tile += 2) memcpy(tile, matrix + output * inputs + 2 * pair, 4);
        return 1;
    }
    float scales[TILE], offsets[TILE];
    memset(to, 0, (size_t)bytes);
    for (int output = 0; output < TILE; output++) {
        float weights[DEPTH];
        int8_t numbers[DEPTH];
        for (int i = 0; i < DEPTH; i += TILE) _mm512_storeu_ps(weights + i, load_bf16(matrix + output * inputs + i));
        int found = bytes == BYTES_FOUR ? grid_of_sixteen(weights, scales + output, offsets + output, (uint8_t *)numbers)
                                        : grid_around_zero(weights, bytes == BYTES_CENTRED ? 7 : 127, scales + output, numbers);
        if (!found) return 0;
        if (bytes == BYTES_EIGHT) {
            memcpy(to + 64 + DEPTH * output, numbers, DEPTH);
            continue;
        }
        uint16_t *words = (uint16_t *)(to + digits_of(bytes)) + output / 4 * DEPTH;
        int lowest = bytes == BYTES_CENTRED ? -8 : 0;
        for (int i = 0; i < DEPTH; i++) words[i] |= (uint16_t)((numbers[i] - lowest) << 4 * (output % 4));
    }
    if (bytes == BYTES_EIGHT)
        memcpy(to, scales, sizeof scales);
    else
        write_halves(_mm512_loadu_ps(scales), to);
    if (bytes == BYTES_FOUR) write_halves(_mm512_loadu_ps(offsets), to + 32);
    return 1;
}

/* How a matrix lies where it comes from. Others than the first have GGUF's numbers: blocks of 32 inputs, each with a scale in half
 * precision, Q4_1 with an offset too, and then their numbers; of four bits those of the first 16 inputs in the lower halves of bytes. */
enum { KIND_Q4_0 = 2, KIND_Q4_1 = 3, KIND_Q8_0 = 8, KIND_BF16 = 30 };

static inline int64_t bytes_of_block(int64_t kind) {
    return kind == KIND_Q4_0 ? 18 : kind == KIND_Q4_1 ? 20 : kind == KIND_Q8_0 ? 34 : 2 * DEPTH;
}

static inline int all_finite(__m512 numbers) {
    return !_mm512_fpclass_ps_mask(numbers, 0x99); /* no numbers and infinities */
}

/* One tile from quantised blocks, `stride` bytes from one output's to the next one's: weights keep their numbers, so nothing has to be
 * found: Q4_0 goes into tiles of 288 bytes, Q4_1 of 320, Q8_0 of 576. Returns 1, or 0 where a scale or an offset is no number. */
static int rewrite_tile(const char *blocks, int64_t stride, int64_t kind, char *to) {
    int64_t head = kind == KIND_Q4_1 ? 4 : 2;
    uint16_t halves[2][TILE] = {{0}};
    for (int i = 0; i < TILE; i++) memcpy(&halves[0][i], blocks + i * stride, 2);
    __m512 scales = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)halves[0]));
    if (kind == KIND_Q8_0) {
        _mm512_storeu_ps(to, scales);
        for (int i = 0; i < TILE; i++) memcpy(to + 64 + DEPTH * i, blocks + i * stride + head, DEPTH);
        return all_finite(scales);
    }
    if (kind == KIND_Q4_1)
        for (int i = 0; i < TILE; i++) memcpy(&halves[1][i], blocks + i * stride + 2, 2);
    __m512 offsets = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)halves[1]));
    char *numbers = to + digits_of(kind == KIND_Q4_0 ? BYTES_CENTRED : BYTES_FOUR);
    memcpy(to, halves, (size_t)(numbers - to));
    const __m128i digit = _mm_set1_epi8(15);
    for (int vector = 0; vector < 4; vector++) {
        __m512i words = _mm512_setzero_si512();
        for (int i = 3; i >= 0; i--) {
            __m128i both = _mm_loadu_si128((const __m128i *)(blocks + (4 * vector + i) * stride + head));
            __m128i first = _mm_and_si128(both, digit), second = _mm_and_si128(_mm_srli_epi16(both, 4), digit);
            words = _mm512_or_si512(_mm512_slli_epi16(words, 4), _mm512_cvtepu8_epi16(_mm256_set_m128i(second, first)));
        }
        _mm512_storeu_si512(numbers + 64 * vector, words);
    }
    return all_finite(scales) && all_finite(offsets);
}

#endif
