/* The shapes of the matrix unit's tiles; nothing where there is no such unit. */
#ifndef DECODERY_TILES_H
#define DECODERY_TILES_H

#include "arithmetic.h"

#if DECODERY_AMX
typedef struct {
    uint8_t palette, start, zero[14];
    uint16_t bytes[16]; /* of a row */
    uint8_t rows[16];
} __attribute__((packed)) Shapes;

/* Compilers are not told that all of the shapes are read. */
static inline void take_shapes(const Shapes *shapes) {
    __asm__ volatile("" : : "r"(shapes) : "memory");
    _tile_loadconfig(shapes);
}

/* For products of bfloat16: all of 16 rows of 64 bytes. */
static inline void tiles_for_pairs(void) {
    Shapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) shapes.bytes[i] = 64, shapes.rows[i] = TILE;
    take_shapes(&shapes);
}

/* For products of whole numbers. Tiles 0 to 3: sums of up to 16 rows by 16 outputs. 4 and 6: 32 inputs of the rows, and of the outputs; 5 and
 * 7: 16 inputs. */
static inline void tiles_for_numbers(int64_t count) {
    uint8_t rows = (uint8_t)(count < TILE ? count : TILE);
    Shapes shapes = {.palette = 1};
    for (int i = 0; i < 4; i++) shapes.bytes[i] = 64, shapes.rows[i] = rows;
    shapes.bytes[4] = DEPTH, shapes.rows[4] = rows, shapes.bytes[6] = 64, shapes.rows[6] = DEPTH / 4;
    shapes.bytes[5] = DEPTH / 2, shapes.rows[5] = rows, shapes.bytes[7] = 64, shapes.rows[7] = DEPTH / 8;
    take_shapes(&shapes);
}

static inline void tiles_off(void) { _tile_release(); }
#else
static inline void tiles_for_pairs(void) {}
static inline void tiles_for_numbers(int64_t count) { (void)count; }
static inline void tiles_off(void) {}
#endif

#endif
