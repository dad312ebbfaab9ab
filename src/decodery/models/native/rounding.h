/* From numbers to blocks of 32 with a scale: GGUF's Q8_0 and Q4_0, the very bits that the package gguf makes. */
#ifndef DECODERY_ROUNDING_H
#define DECODERY_ROUNDING_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "weights.h"

/* Numbers in other types than bfloat16, by GGUF's numbers. */
enum { KIND_F32 = 0, KIND_F16 = 1 };

static inline int64_t bytes_of_number(int64_t kind) { return kind == KIND_F32 ? 4 : 2; }

/* 32 numbers of a kind in float32. */
static void read_numbers(const char *from, int64_t kind, float *to) {
    if (kind == KIND_F32) {
        memcpy(to, from, DEPTH * sizeof *to);
        return;
    }
    for (int i = 0; i < DEPTH; i++) {
        uint16_t half;
        memcpy(&half, from + 2 * i, sizeof half);
        uint32_t bits = (uint32_t)half << 16;
        if (kind == KIND_F16)
            to[i] = half_to_float(half);
        else
            memcpy(to + i, &bits, sizeof bits);
    }
}

/* One block of Q8_0 or Q4_0. Q8_0: the largest number becomes 127 or -127, halves are rounded away from zero; Q4_0: the number
 * farthest from zero becomes -8, halves are rounded up. Numbers are divided by the scale as it is before half precision rounds it.
 * Returns 0 where a number is not finite, or half precision has no such scale. */
static int round_block(const float *numbers, int64_t kind, uint8_t *to) {
    float most = 0, farthest = numbers[0], parts[DEPTH];
    int finite = 1;
    for (int i = 0; i < DEPTH; i++) {
        float size = fabsf(numbers[i]);
        finite &= isfinite(size) != 0;
        if (size > most) most = size, farthest = numbers[i];
    }
    float scale = kind == KIND_Q8_0 ? most / 127 : farthest / -8;
    float inverse = scale != 0 ? 1 / scale : 0;
    uint16_t half = float_to_half(scale);
    memcpy(to, &half, sizeof half);
    if (!finite || !isfinite(half_to_float(half))) return 0;
    if (!isfinite(inverse)) inverse = 0; /* so small a scale is zero in half precision */
    for (int i = 0; i < DEPTH; i++) parts[i] = numbers[i] * inverse;
    /* Compilers may not take these products and the sums below for one step, which rounds once. */
    __asm__ volatile("" : "+m"(*(float(*)[DEPTH])parts));
    if (kind == KIND_Q8_0) {
        for (int i = 0; i < DEPTH; i++) {
            float size = fabsf(parts[i]), whole = floorf(size);
            int number = (int)whole + (size - whole >= 0.5f);
            to[2 + i] = (uint8_t)(parts[i] < 0 ? -number : number);
        }
        return 1;
    }
    for (int i = 0; i < DEPTH / 2; i++) {
        int first = (int)(parts[i] + 8.5f), second = (int)(parts[i + DEPTH / 2] + 8.5f);
        to[2 + i] = (uint8_t)((first < 15 ? first : 15) | (second < 15 ? second : 15) << 4);
    }
    return 1;
}

/* A matrix [outputs, inputs] of numbers as blocks, one after the other. Returns 0 where one cannot be. */
static int round_matrix(const char *rows, int64_t outputs, int64_t inputs, int64_t kind, int64_t rounded, uint8_t *to) {
    int good = 1;
    for (int64_t block = 0; block < outputs * inputs / DEPTH; block++) {
        float numbers[DEPTH];
        read_numbers(rows + block * DEPTH * bytes_of_number(kind), kind, numbers);
        good &= round_block(numbers, rounded, to + block * bytes_of_block(rounded));
    }
    return good;
}

#endif
