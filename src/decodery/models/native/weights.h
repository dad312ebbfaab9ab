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
#if DECODERY_AVX512
static inline __attribute__((always_inline)) void unpack_four(const char *tile, const int bytes, bf16 *to) {
    const Floats digits = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const Floats steps = minus(digits, every(8));
    const Integers digit = _mm512_set1_epi16(15), upper = _mm512_set1_epi16(16);
    float scale[TILE], offset[TILE];
    store(scale, load_halves(tile));
    if (bytes == BYTES_FOUR) store(offset, load_halves(tile + 32));
    for (int vector = 0; vector < 4; vector++) {
        Integers words = load_integers(tile + digits_of(bytes) + 64 * vector), table[2];
        bf16 *line = to + 4 * vector * DEPTH;
        for (int half = 0; half < 2; half++) {
            int low = 4 * vector + (half ? 3 : 0), high = 4 * vector + (half ? 2 : 1);
            Floats first = every(scale[low]), second = every(scale[high]);
            if (bytes == BYTES_CENTRED) {
                first = times(steps, first), second = times(steps, second);
            } else {
                first = times_plus(digits, first, every(offset[low]));
                second = times_plus(digits, second, every(offset[high]));
            }
            table[half] = (Integers)_mm512_cvtne2ps_pbh(second, first);
        }
        /* A look-up takes five bits: those of the digit and which half of the table. (x and digit) or upper is 0xea. */
        Integers places[4] = {
            _mm512_and_si512(words, digit),
            _mm512_ternarylogic_epi32(_mm512_srli_epi16(words, 4), digit, upper, 0xea),
            _mm512_ternarylogic_epi32(_mm512_srli_epi16(words, 8), digit, upper, 0xea),
            _mm512_srli_epi16(words, 12),
        };
        for (int i = 0; i < 4; i++) store_integers(line + i * DEPTH, _mm512_permutexvar_epi16(places[i], table[i / 2]));
    }
}
#elif DECODERY_NEON
static inline __attribute__((always_inline)) void unpack_four(const char *tile, const int bytes, bf16 *to) {
    const Floats digits = {{{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 10, 11}, {12, 13, 14, 15}}}, steps = minus(digits, every(8));
    float scale[TILE], offset[TILE];
    store(scale, load_halves(tile));
    if (bytes == BYTES_FOUR) store(offset, load_halves(tile + 32));
    for (int vector = 0; vector < 4; vector++) {
        const uint8_t *words = (const uint8_t *)(tile + digits_of(bytes) + 64 * vector);
        uint8x16x2_t first = vld2q_u8(words), second = vld2q_u8(words + 32); /* lower and upper bytes of 16 words */
        for (int i = 0; i < 4; i++) {
            int output = 4 * vector + i;
            Floats factor = every(scale[output]);
            Floats weights = bytes == BYTES_CENTRED ? times(steps, factor) : times_plus(digits, factor, every(offset[output]));
            /* What half precision makes is never below 2^-126, and finite here. */
            Integers bits = OF_ONE(Integers, four_rounded, weights);
            uint16x8_t low = vshrn_high_n_u32(vshrn_n_u32(bits.part[0], 16), bits.part[1], 16);
            uint16x8_t high = vshrn_high_n_u32(vshrn_n_u32(bits.part[2], 16), bits.part[3], 16);
            /* The lower bytes of the sixteen weights, and the upper ones; then which of them the 32 inputs have. */
            uint8x16_t lower = vuzp1q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high));
            uint8x16_t upper = vuzp2q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high));
            uint8_t *line = (uint8_t *)(to + output * DEPTH);
            for (int half = 0; half < 2; half++) {
                uint8x16_t two = half ? second.val[i / 2] : first.val[i / 2];
                uint8x16_t place = i % 2 ? vshrq_n_u8(two, 4) : vandq_u8(two, vdupq_n_u8(15));
                vst2q_u8(line + 32 * half, ((uint8x16x2_t){{vqtbl1q_u8(lower, place), vqtbl1q_u8(upper, place)}}));
            }
        }
    }
}
#else
/* Bits of the bfloat16 nearest to eight finite numbers that are not below 2^-126: what half precision makes never is. */
static inline __m256i nearest_bf16(__m256 x) {
    __m256i bits = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff)), 16);
}

static inline __attribute__((always_inline)) void unpack_four(const char *tile, const int bytes, bf16 *to) {
    /* Digits in the order that the look-ups want: numbers are packed within halves of a register. */
    const __m256 digits[2] = {_mm256_set_ps(11, 10, 9, 8, 3, 2, 1, 0), _mm256_set_ps(15, 14, 13, 12, 7, 6, 5, 4)};
    const __m256 steps[2] = {_mm256_sub_ps(digits[0], _mm256_set1_ps(8)), _mm256_sub_ps(digits[1], _mm256_set1_ps(8))};
    const __m256i nibble = _mm256_set1_epi8(15), byte = _mm256_set1_epi16(255);
    float scale[TILE], offset[TILE];
    store(scale, load_halves(tile));
    if (bytes == BYTES_FOUR) store(offset, load_halves(tile + 32));
    for (int vector = 0; vector < 4; vector++) {
        const __m256i *words = (const __m256i *)(tile + digits_of(bytes) + 64 * vector);
        __m256i word[2] = {_mm256_loadu_si256(words), _mm256_loadu_si256(words + 1)};
        for (int i = 0; i < 4; i++) {
            int output = 4 * vector + i;
            __m256i half[2], place[2];
            for (int k = 0; k < 2; k++) {
                __m256 factor = _mm256_set1_ps(scale[output]);
                half[k] = nearest_bf16(
                    bytes == BYTES_CENTRED ? _mm256_mul_ps(steps[k], factor)
                                           : _mm256_fmadd_ps(digits[k], factor, _mm256_set1_ps(offset[output]))
                );
                __m256i two = _mm256_and_si256(i % 2 ? _mm256_srli_epi16(word[k], 4) : word[k], nibble);
                place[k] = i < 2 ? _mm256_and_si256(two, byte) : _mm256_srli_epi16(two, 8);
            }
            /* The lower bytes of the sixteen weights, and the upper ones; then which of them the 32 inputs have. */
            __m256i all = _mm256_packus_epi32(half[0], half[1]);
            all = _mm256_packus_epi16(_mm256_and_si256(all, byte), _mm256_srli_epi16(all, 8));
            __m256i lower = _mm256_permute4x64_epi64(all, 0x88), upper = _mm256_permute4x64_epi64(all, 0xdd);
            __m256i at = _mm256_packus_epi16(place[0], place[1]);
            lower = _mm256_shuffle_epi8(lower, at), upper = _mm256_shuffle_epi8(upper, at);
            __m256i *line = (__m256i *)(to + output * DEPTH);
            _mm256_storeu_si256(line, _mm256_unpacklo_epi8(lower, upper));
            _mm256_storeu_si256(line + 1, _mm256_unpackhi_epi8(lower, upper));
        }
    }
}
#endif

/* A tile of 576 bytes: 16 scales in float32 and then 32 numbers of each output. `to`: [16 outputs, 32 inputs]. */
static inline void unpack_eight(const char *tile, bf16 *to) {
    const float *scale = (const float *)tile;
    for (int output = 0; output < TILE; output++) {
        const char *from = tile + 64 + DEPTH * output;
        Floats factor = every(scale[output]), first = to_floats(load_bytes(from)), second = to_floats(load_bytes(from + TILE));
        store_two_bf16(to + output * DEPTH, times(first, factor), times(second, factor));
    }
}

/* Compilers take a tile load for an instruction that reads no memory. */
static inline void written(void) { __asm__ volatile("" ::: "memory"); }

/* Fetch a tile that will be read soon. What is not there does no harm. Processors with a matrix unit have more lines on their way at
 * once to the second cache than to the nearest one, which alone would not be enough to hide what memory takes. */
static inline __attribute__((always_inline)) void fetch(const char *tile, const int bytes) {
    for (int line = 0; line < bytes; line += 64) {
#if DECODERY_AMX
        _mm_prefetch(tile + line, _MM_HINT_T1);
#else
        fetch_line(tile + line);
#endif
    }
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
    Integers pairs[TILE];
    unpack(tile, bytes, to);
    for (int i = 0; i < TILE; i++) pairs[i] = load_integers(to + i * DEPTH);
    transpose(pairs);
    for (int i = 0; i < TILE; i++) store_integers(to + i * DEPTH, pairs[i]);
    written();
    return to;
}

/* 32 weights of one output of a tile. */
static inline void unpack_line(const char *tile, int64_t bytes, int64_t output, bf16 *to) {
    if (bytes == BYTES_BF16) {
        for (int64_t pair = 0; pair < TILE; pair++) memcpy(to + 2 * pair, tile + 4 * (pair * TILE + output), 4);
        return;
    }
    Integers number[2];
    Floats scale, offset = zeros();
    if (bytes == BYTES_EIGHT) {
        float factor;
        memcpy(&factor, tile + 4 * output, 4);
        scale = every(factor);
        for (int i = 0; i < 2; i++) number[i] = load_bytes(tile + 64 + DEPTH * output + TILE * i);
    } else {
        uint16_t halves[2];
        memcpy(halves, tile + 2 * output, 2), memcpy(halves + 1, tile + 32 + 2 * output, 2);
        scale = every(half_to_float(halves[0])), offset = every(half_to_float(halves[1]));
        const char *words = tile + digits_of(bytes) + 64 * (output / 4);
        for (int i = 0; i < 2; i++)
            number[i] = both(shift_right(load_words(words + DEPTH * i), (int)(4 * (output % 4))), every_integer(15));
    }
    for (int i = 0; i < 2; i++) {
        Floats digit = to_floats(number[i]);
        if (bytes == BYTES_CENTRED) digit = minus(digit, every(8));
        /* As tiles are unpacked: a sum of products in one step, or a product. */
        store_bf16(to + i * TILE, bytes == BYTES_FOUR ? times_plus(digit, scale, offset) : times(digit, scale));
    }
}

/* --- writing -------------------------------------------------------------------------------------------------------------- */

/* The numbers that bfloat16 rounds to `weights`: from `low` to `high`, generously. */
static inline void around(Floats weights, Floats *low, Floats *high) {
    Floats half = times(size_of(weights), every(1.0f / 256));
    *low = minus(weights, half), *high = plus(weights, half);
}

/* Find scale and offset such that sixteen steps give back 32 weights. Returns 1 and the numbers, or 0. */
static int grid_of_sixteen(const float *weights, float *scale, float *offset, uint8_t *numbers) {
    enum { NEIGHBOURS = 6 };
    Floats w[2] = {load(weights), load(weights + TILE)};
    float least = least_of(smaller(w[0], w[1])), most = most_of(larger(w[0], w[1]));
    for (int steps = 15; steps > 7; steps--) {
        float width = (most - least) / (float)steps;
        Floats low[2], high[2], q[2];
        for (int i = 0; i < 2; i++) {
            around(w[i], &low[i], &high[i]);
            Floats place = times(minus(w[i], every(least)), every(width > 0 ? 1 / width : 0));
            q[i] = nearest(place);
        }
        for (int k = 0; k <= 2 * NEIGHBOURS; k++) {
            /* Half-precision neighbours of the least weight, nearest first; then of the scales that its choice leaves. */
            uint16_t first = (uint16_t)(float_to_half(least) + (k % 2 ? (k + 1) / 2 : -k / 2));
            float base = half_to_float(first);
            Floats from = every(0), to = every(INFINITY), origin = every(base);
            for (int i = 0; i < 2; i++) {
                uint16_t some = above(q[i], every(0.5f));
                from = choose(some, larger(from, over(minus(low[i], origin), q[i])), from);
                to = choose(some, smaller(to, over(minus(high[i], origin), q[i])), to);
            }
            float lowest = most_of(from), highest = least_of(to);
            if (lowest > highest * 1.001f) continue;
            uint16_t middle = float_to_half(width > 0 ? (lowest + highest) / 2 : 0);
            for (int j = 0; j <= 2 * NEIGHBOURS; j++) {
                uint16_t second = (uint16_t)(middle + (j % 2 ? (j + 1) / 2 : -j / 2));
                Floats factor = every(half_to_float(second));
                int wrong = 0; /* as numbers, so that zeros are equal */
                for (int i = 0; i < 2; i++)
                    wrong |= unlike(rounded(times_plus(q[i], factor, origin)), w[i]);
                if (wrong) continue;
                for (int i = 0; i < 2; i++) store_bytes(numbers + i * TILE, to_integers(q[i]));
                *scale = half_to_float(second), *offset = base;
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
    Floats w[2] = {load(weights), load(weights + TILE)};
    float least = least_of(smaller(w[0], w[1])), most = most_of(larger(w[0], w[1]));
    float farthest = most > -least ? most : least;
    const Floats first = every((float)(-1 - highest)), last = every((float)highest);
    /* The number of the weight farthest from zero is one of the ends, seldom one nearer to zero. */
    for (int step = 0; step <= highest / 2 + 1; step++) {
        uint16_t middle = float_to_half(farthest / (float)(step ? highest + 1 - step : -1 - highest));
        for (int k = 0; k <= 2 * NEIGHBOURS; k++) {
            uint16_t bits = (uint16_t)(middle + (k % 2 ? (k + 1) / 2 : -k / 2));
            float value = half_to_float(bits);
            Floats factor = every(value), inverse = every(value != 0 ? 1 / value : 0), q[2];
            int wrong = 0;
            for (int i = 0; i < 2; i++) {
                q[i] = nearest(times(w[i], inverse));
                q[i] = larger(first, smaller(last, q[i]));
                wrong |= unlike(rounded(times(q[i], factor)), w[i]);
            }
            if (wrong) continue;
            for (int i = 0; i < 2; i++) store_bytes(numbers + i * TILE, to_integers(q[i]));
            *scale = value;
            return 1;
        }
    }
    return 0;
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
        for (int i = 0; i < DEPTH; i += TILE) store(weights + i, load_bf16(matrix + output * inputs + i));
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
        store_halves(to, load(scales));
    if (bytes == BYTES_FOUR) store_halves(to + 32, load(offsets));
    return 1;
}

/* How a matrix lies where it comes from. Others than the first have GGUF's numbers: blocks of 32 inputs, each with a scale in half
 * precision, Q4_1 with an offset too, and then their numbers; of four bits those of the first 16 inputs in the lower halves of bytes. */
enum { KIND_Q4_0 = 2, KIND_Q4_1 = 3, KIND_Q8_0 = 8, KIND_BF16 = 30 };

static inline int64_t bytes_of_block(int64_t kind) {
    return kind == KIND_Q4_0 ? 18 : kind == KIND_Q4_1 ? 20 : kind == KIND_Q8_0 ? 34 : 2 * DEPTH;
}

static inline int all_finite(Floats numbers) { return above(every(INFINITY), size_of(numbers)) == 0xffff; }

/* One tile from quantised blocks, `stride` bytes from one output's to the next one's: weights keep their numbers, so nothing has to be
 * found: Q4_0 goes into tiles of 288 bytes, Q4_1 of 320, Q8_0 of 576. Returns 1, or 0 where a scale or an offset is no number. */
static int rewrite_tile(const char *blocks, int64_t stride, int64_t kind, char *to) {
    int64_t head = kind == KIND_Q4_1 ? 4 : 2;
    uint16_t halves[2][TILE] = {{0}};
    for (int i = 0; i < TILE; i++) memcpy(&halves[0][i], blocks + i * stride, 2);
    Floats scales = load_halves(halves[0]);
    if (kind == KIND_Q8_0) {
        store((float *)to, scales);
        for (int i = 0; i < TILE; i++) memcpy(to + 64 + DEPTH * i, blocks + i * stride + head, DEPTH);
        return all_finite(scales);
    }
    if (kind == KIND_Q4_1)
        for (int i = 0; i < TILE; i++) memcpy(&halves[1][i], blocks + i * stride + 2, 2);
    Floats offsets = load_halves(halves[1]);
    char *numbers = to + digits_of(kind == KIND_Q4_0 ? BYTES_CENTRED : BYTES_FOUR);
    memcpy(to, halves, (size_t)(numbers - to));
    for (int vector = 0; vector < 4; vector++) {
        uint16_t words[DEPTH] = {0};
        for (int i = 0; i < 4; i++) {
            const uint8_t *digits = (const uint8_t *)blocks + (4 * vector + i) * stride + head;
            for (int j = 0; j < TILE; j++) {
                words[j] |= (uint16_t)((digits[j] & 15) << 4 * i);
                words[TILE + j] |= (uint16_t)((digits[j] >> 4) << 4 * i);
            }
        }
        memcpy(numbers + 64 * vector, words, sizeof words);
    }
    return all_finite(scales) && all_finite(offsets);
}

#endif
