/* Products of rows with packed matrices, on the processor's matrix unit where it has one. */
#ifndef DECODERY_PRODUCTS_H
#define DECODERY_PRODUCTS_H

#include <string.h>

#include "arithmetic.h"
#include "integers.h"
#include "tiles.h"
#include "weights.h"

/* Rows that enter a product: bfloat16, `stride` elements between them, read in groups of 16. weights.h says how a matrix of
 * `blocks` blocks of `depth` tiles lies, in tiles of `bytes` bytes. */
typedef struct {
    const bf16 *rows;
    int64_t stride, count;
    Numbers whole;      /* the same rounded to eight bits, for matrices of whole numbers */
    const bf16 *turned; /* up to 32 rows, for packed matrices: tiles of pairs [depth, groups of 16 rows, 16, 16 rows, 2]; or NULL */
} Rows;

enum { TURNED_ROWS = 2 * TILE };

/* Where a thread leaves rows that enter a product. */
typedef struct {
    bf16 *turned;    /* [depth, 2, 512] */
    int8_t *numbers; /* [count, inputs + 64] */
    Block *block;    /* [count, inputs / 32 + 4] */
} Room;

/* Rows to be multiplied with matrices like this one. room: [depth, 2, 512] bfloat16, and for whole numbers what `Room` says. */
static Rows enter(const bf16 *rows, int64_t stride, int64_t count, Matrix matrix, int64_t depth, Room room) {
    Rows entering = {rows, stride, count, {room.numbers, room.block, 0, 0}, NULL};
    if (matrix.form) {
        int64_t inputs = depth * DEPTH;
        entering.whole.stride = inputs + 64, entering.whole.apart = depth + 4;
        enter_numbers(rows, stride, count, inputs, &entering.whole);
        written();
        tiles_for_numbers(count);
        return entering;
    }
    tiles_for_pairs();
    int64_t groups = (count + TILE - 1) / TILE;
    written();
    if (!DECODERY_AMX || matrix.bytes == BYTES_BF16 || count > TURNED_ROWS) return entering;
    for (int64_t k = 0; k < depth; k++)
        for (int64_t group = 0; group < groups; group++) {
            const bf16 *from = rows + group * TILE * stride + k * DEPTH;
            bf16 *to = room.turned + (k * groups + group) * TILE_ELEMENTS;
            if (count == 1) { /* the other places are for rows that do not exist */
                for (int64_t pair = 0; pair < TILE; pair++) memcpy(to + pair * DEPTH, from + 2 * pair, 4);
                continue;
            }
            Integers pairs[TILE];
            for (int64_t i = 0; i < TILE; i++) pairs[i] = load_integers(from + i * stride);
            transpose(pairs);
            for (int64_t i = 0; i < TILE; i++) store_integers(to + i * DEPTH, pairs[i]);
        }
    written();
    entering.turned = room.turned;
    return entering;
}

/* Whether rows that have entered for one matrix may be multiplied with another of as many inputs. */
static inline int enter_alike(Matrix one, Matrix other) {
    return one.form && other.form ? 1 : !one.form && !other.form && (one.bytes == BYTES_BF16) == (other.bytes == BYTES_BF16);
}

/* The values of 32 columns, the first of which is 32 * step, at a place in each span of a cache. */
static inline const bf16 *values_of(const bf16 *const *span, int64_t place, int64_t apart, int64_t step) {
    return span[step * DEPTH / SPAN] + place + step * DEPTH % SPAN / 2 * apart;
}

/* Fetch the first 128 elements of rows that are so many elements apart. */
static inline void fetch_rows(const bf16 *rows, int64_t apart, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        for (int64_t line = 0; line < 4; line++) fetch_line(rows + i * apart + line * DEPTH);
}

#if DECODERY_AMX
#include "matrix_unit.h"
#elif DECODERY_AVX512
#include "vectors.h"
#else
#include "multiply_adds.h"
#endif

/* to [count, 16 * blocks] = rows @ matrix.T, in float32; blocks: whole groups. Whole groups of 16 rows are read, and
 * written as well by some forms of a matrix, of 32 where there are more. after: the weights that the thread will probably read next. */
static void multiply(const Rows *rows, Matrix matrix, int64_t depth, int64_t blocks, const char *after, float *to, int64_t step) {
    if (matrix.form) {
        multiply_numbers(&rows->whole, rows->count, matrix, depth, blocks, to, step);
        return;
    }
    switch (matrix.bytes) {
    case BYTES_CENTRED: multiply_packed(rows, matrix, BYTES_CENTRED, depth, blocks, after, to, step); break;
    case BYTES_FOUR: multiply_packed(rows, matrix, BYTES_FOUR, depth, blocks, after, to, step); break;
    case BYTES_EIGHT: multiply_packed(rows, matrix, BYTES_EIGHT, depth, blocks, after, to, step); break;
    default: multiply_packed(rows, matrix, BYTES_BF16, depth, blocks, after, to, step);
    }
}

#endif
