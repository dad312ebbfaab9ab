/* From the blocks of a file to tiles, and from tiles to rows of numbers. */
#ifndef DECODERY_PACKING_H
#define DECODERY_PACKING_H

#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#include "integers.h"
#include "rounding.h"
#include "threads.h"
#include "weights.h"

/* --- blocks of a file ----------------------------------------------------------------------------------------------------- */

/* What GGUF has beside the kinds of weights.h, by its own numbers. */
enum { KIND_Q5_0 = 6, KIND_Q5_1 = 7, KIND_Q4_K = 12, KIND_Q5_K = 13, KIND_Q6_K = 14, KIND_IQ4_NL = 20 };

/* 32 inputs of one output. Numbers are kept as if they were not negative, as the form of integers.h wants them. */
typedef struct {
    float scale[2], offset; /* a second scale, of the upper 16 inputs, in Q6_K alone */
    uint8_t numbers[DEPTH];
} Quantised;

static inline float half_at(const uint8_t *from) {
    uint16_t bits;
    memcpy(&bits, from, sizeof bits);
    return half_to_float(bits);
}

/* The form of tiles that holds the numbers of a kind: one more than its place in integer_form; or 0. */
static int64_t form_of_kind(int64_t kind) {
    switch (kind) {
    case KIND_Q4_0: return 1;
    case KIND_Q4_1: return 2;
    case KIND_Q4_K: return 3;
    case KIND_Q8_0: case KIND_Q5_0: case KIND_IQ4_NL: return 4;
    case KIND_Q5_1: return 5;
    case KIND_Q5_K: return 6;
    case KIND_Q6_K: return 7;
    default: return 0;
    }
}

/* Numbers of four bits of 32 inputs, the first 16 in the lower halves of bytes, as kinds of 32 inputs have them. */
static void halves(const uint8_t *from, uint8_t *numbers) {
    for (int i = 0; i < 16; i++) numbers[i] = from[i] & 15, numbers[i + 16] = from[i] >> 4;
}

/* Scale and minimum of the eight parts of a block of 256: six bits each, in twelve bytes. */
static void six_bits(const uint8_t *from, int64_t part, float *scale, float *least) {
    if (part < 4) {
        *scale = (float)(from[part] & 63), *least = (float)(from[part + 4] & 63);
        return;
    }
    *scale = (float)((from[part + 4] & 15) | (from[part - 4] >> 6 << 4));
    *least = (float)((from[part + 4] >> 4) | (from[part] >> 6 << 4));
}

/* Block k of 32 inputs of one output, whose blocks begin at `row`. */
static void read_block(const uint8_t *row, int64_t kind, int64_t k, Quantised *to) {
    static const int8_t uneven[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    int64_t part = k % 8;
    const uint8_t *at;
    to->offset = 0;
    switch (kind) {
    case KIND_Q4_0: case KIND_IQ4_NL:
        at = row + 18 * k;
        to->scale[0] = half_at(at);
        halves(at + 2, to->numbers);
        if (kind == KIND_IQ4_NL)
            for (int i = 0; i < DEPTH; i++) to->numbers[i] = (uint8_t)(uneven[to->numbers[i]] + 128);
        return;
    case KIND_Q4_1:
        at = row + 20 * k;
        to->scale[0] = half_at(at), to->offset = half_at(at + 2);
        halves(at + 4, to->numbers);
        return;
    case KIND_Q5_0: case KIND_Q5_1: {
        int64_t head = kind == KIND_Q5_0 ? 2 : 4;
        at = row + (20 + head) * k;
        to->scale[0] = half_at(at);
        if (kind == KIND_Q5_1) to->offset = half_at(at + 2);
        uint32_t fifth;
        memcpy(&fifth, at + head, sizeof fifth);
        halves(at + head + 4, to->numbers);
        for (int i = 0; i < DEPTH; i++)
            to->numbers[i] = (uint8_t)((to->numbers[i] | (fifth >> i & 1) << 4) + (kind == KIND_Q5_0 ? 128 - 16 : 0));
        return;
    }
    case KIND_Q8_0:
        at = row + 34 * k;
        to->scale[0] = half_at(at);
        for (int i = 0; i < DEPTH; i++) to->numbers[i] = at[2 + i] ^ 128;
        return;
    case KIND_Q4_K: case KIND_Q5_K: {
        float scale, least;
        at = row + (kind == KIND_Q4_K ? 144 : 176) * (k / 8);
        six_bits(at + 4, part, &scale, &least);
        to->scale[0] = half_at(at) * scale, to->offset = -(half_at(at + 2) * least);
        const uint8_t *fifth = at + 16, *four = (kind == KIND_Q4_K ? at + 16 : at + 48) + part / 2 * DEPTH;
        for (int i = 0; i < DEPTH; i++) {
            to->numbers[i] = part % 2 ? four[i] >> 4 : four[i] & 15;
            if (kind == KIND_Q5_K) to->numbers[i] |= (uint8_t)((fifth[i] >> part & 1) << 4);
        }
        return;
    }
    default: { /* KIND_Q6_K */
        at = row + 210 * (k / 8);
        int64_t half = part / 4, quarter = part % 4;
        const uint8_t *four = at + 64 * half + 32 * (quarter % 2), *two = at + 128 + 32 * half;
        const int8_t *scales = (const int8_t *)at + 192 + 8 * half + 2 * quarter;
        float unit = half_at(at + 208);
        for (int i = 0; i < 2; i++) to->scale[i] = unit * (float)scales[i];
        for (int i = 0; i < DEPTH; i++) {
            int lower = quarter < 2 ? four[i] & 15 : four[i] >> 4;
            to->numbers[i] = (uint8_t)((lower | (two[i] >> 2 * quarter & 3) << 4) - 32 + 128);
        }
    }
    }
}

/* --- tiles of whole numbers ----------------------------------------------------------------------------------------------- */

static void put_head(Form form, int index, int output, float value, char *tile) {
    int at = index * TILE + output;
    if (form.wide) {
        memcpy(tile + 4 * at, &value, sizeof value);
    } else {
        uint16_t bits = float_to_half(value);
        memcpy(tile + 2 * at, &bits, sizeof bits);
    }
}

static float head_at(Form form, int index, int output, const char *tile) {
    int at = index * TILE + output;
    if (!form.wide) return half_at((const uint8_t *)tile + 2 * at);
    float value;
    memcpy(&value, tile + 4 * at, sizeof value);
    return value;
}

/* Put 32 inputs of an output into its place. Returns 0 where a scale or an offset is no number. */
static int put_output(Form form, int output, const Quantised *from, char *tile) {
    for (int i = 0; i < form.scales; i++) put_head(form, i, output, from->scale[i], tile);
    if (form.offset) put_head(form, form.scales, output, from->offset, tile);
    uint8_t *to = (uint8_t *)tile + head_bytes(form) + 4 * output;
    for (int v = 0; v < DEPTH / 4; v++) {
        if (form.bits == 8) {
            memcpy(to + 64 * v, from->numbers + 4 * v, 4);
            continue;
        }
        if (v == 4) break;
        for (int i = 0; i < 4; i++) to[64 * v + i] = (uint8_t)(from->numbers[4 * v + i] | from->numbers[16 + 4 * v + i] << 4);
    }
    return isfinite(from->scale[0]) && (form.scales == 1 || isfinite(from->scale[1])) && isfinite(from->offset);
}

static void get_output(Form form, int output, const char *tile, Quantised *to) {
    for (int i = 0; i < 2; i++) to->scale[i] = head_at(form, form.scales == 2 ? i : 0, output, tile);
    to->offset = form.offset ? head_at(form, form.scales, output, tile) : 0;
    const uint8_t *from = (const uint8_t *)tile + head_bytes(form) + 4 * output;
    for (int i = 0; i < DEPTH; i++)
        to->numbers[i] = form.bits == 8 ? from[i / 4 * 64 + i % 4] : from[i % 16 / 4 * 64 + i % 4] >> i / 16 * 4 & 15;
}

/* One tile of 16 outputs, the blocks of which begin `stride` bytes apart. Returns 0 where a scale or an offset is no number. */
static int gather_tile(const char *rows, int64_t stride, int64_t kind, int64_t k, Form form, char *to) {
    if (kind == KIND_Q4_0 || kind == KIND_Q4_1) { /* four bytes of theirs are four bytes of ours */
        int heads = kind == KIND_Q4_1 ? 2 : 1, good = 1;
        for (int output = 0; output < TILE; output++) {
            const uint8_t *block = (const uint8_t *)rows + output * stride + k * (16 + 2 * heads);
            for (int i = 0; i < heads; i++) memcpy(to + 2 * (i * TILE + output), block + 2 * i, 2), good &= isfinite(half_at(block + 2 * i)) != 0;
            for (int v = 0; v < 4; v++) memcpy(to + 32 * heads + 64 * v + 4 * output, block + 2 * heads + 4 * v, 4);
        }
        return good;
    }
    int good = 1;
    for (int output = 0; output < TILE; output++) {
        Quantised block;
        read_block((const uint8_t *)rows + output * stride, kind, k, &block);
        good &= put_output(form, output, &block, to);
    }
    return good;
}

/* One tile of a matrix of numbers that are rounded to blocks of a kind, with outputs `stride` bytes apart. Returns 0 where these have no
 * scale. */
static int round_tile(const char *rows, int64_t stride, int64_t kind, int64_t rounded, Form form, char *to) {
    uint8_t blocks[TILE][34]; /* Q8_0's, the longer ones */
    int good = 1;
    for (int output = 0; output < TILE; output++) {
        float numbers[DEPTH];
        read_numbers(rows + output * stride, kind, numbers);
        good &= round_block(numbers, rounded, blocks[output]);
    }
    return gather_tile((const char *)blocks, sizeof *blocks, rounded, 0, form, to) && good;
}

/* One tile of a matrix [.., inputs] in bfloat16, where the form holds its very weights. Returns 1, or 0 where it does not. */
static int quantise_tile(const bf16 *matrix, int64_t inputs, Form form, char *to) {
    for (int output = 0; output < TILE; output++) {
        float weights[DEPTH];
        Quantised block = {{0}, 0, {0}};
        for (int i = 0; i < DEPTH; i++) {
            uint32_t bits = (uint32_t)matrix[output * inputs + i] << 16;
            memcpy(weights + i, &bits, sizeof bits);
        }
        if (form.offset) {
            if (!grid_of_sixteen(weights, block.scale, &block.offset, block.numbers)) return 0;
        } else {
            if (!grid_around_zero(weights, form.bits == 4 ? 7 : 127, block.scale, (int8_t *)block.numbers)) return 0;
            for (int i = 0; i < DEPTH; i++) block.numbers[i] = (uint8_t)(block.numbers[i] + form.zero);
        }
        if (!put_output(form, output, &block, to)) return 0;
    }
    return 1;
}

/* --- whole matrices ------------------------------------------------------------------------------------------------------- */

/* Row `output` of a packed matrix, [inputs]; times a factor, rounded, unless this is 1. */
static void unpack_row(Matrix matrix, int64_t inputs, int64_t output, float factor, bf16 *to) {
    int64_t depth = inputs / DEPTH, block = output / TILE, group = matrix.group;
    const char *tile = (const char *)matrix.tiles + (block / group * group * depth + block % group) * matrix.bytes;
    for (int64_t k = 0; k < depth; k++, tile += group * matrix.bytes) {
        bf16 *part = to + k * DEPTH;
        if (matrix.form) {
            Form form = integer_form[matrix.form - 1];
            Quantised block;
            float numbers[DEPTH];
            get_output(form, (int)(output % TILE), tile, &block);
            for (int i = 0; i < DEPTH; i++)
                numbers[i] = fmaf(block.scale[i / TILE], (float)(block.numbers[i] - form.zero), block.offset);
            for (int i = 0; i < DEPTH; i += TILE) store_bf16(part + i, load(numbers + i));
        } else {
            unpack_line(tile, matrix.bytes, output % TILE, part);
        }
        if (factor == 1) continue;
        for (int i = 0; i < DEPTH; i += TILE)
            store_bf16(part + i, times(load_bf16(part + i), every(factor)));
    }
}

typedef struct {
    const char *const *block; /* [outputs / 16] where 16 outputs begin */
    int64_t inputs, kind, rounded, stride; /* rounded: to which kind of blocks, or 0; stride: bytes from one output to the next */
    Matrix matrix;
    int64_t groups;
    atomic_long next;
    atomic_int failed;
} Packing;

/* Groups of blocks are pieces of work. */
static void pack_groups(int thread, int threads, void *argument) {
    (void)thread, (void)threads;
    Packing *p = argument;
    int64_t depth = p->inputs / DEPTH, group = p->matrix.group, bytes = p->matrix.bytes;
    const Form *form = p->matrix.form ? integer_form + p->matrix.form - 1 : NULL;
    for (int64_t next; (next = atomic_fetch_add(&p->next, 1)) < p->groups;) {
        char *to = (char *)p->matrix.tiles + next * group * depth * bytes;
        for (int64_t k = 0; k < depth; k++)
            for (int64_t block = next * group; block < (next + 1) * group; block++, to += bytes) {
                const char *from = p->block[block];
                int done;
                if (p->rounded)
                    done = round_tile(from + k * DEPTH * bytes_of_number(p->kind), p->stride, p->kind, p->rounded, *form, to);
                else if (p->kind == KIND_BF16)
                    done = form ? quantise_tile((const bf16 *)from + k * DEPTH, p->inputs, *form, to)
                                : write_tile((const bf16 *)from + k * DEPTH, p->inputs, bytes, to);
                else
                    done = form ? gather_tile(from, p->stride, p->kind, k, *form, to)
                                : rewrite_tile(from + k * bytes_of_block(p->kind), p->stride, p->kind, to);
                if (!done) atomic_store_explicit(&p->failed, 1, memory_order_relaxed);
            }
        if (atomic_load_explicit(&p->failed, memory_order_relaxed)) return;
    }
}

#endif
