/* What one pass keeps while it runs. */
#ifndef DECODERY_WORKSPACE_H
#define DECODERY_WORKSPACE_H

#include "arithmetic.h"
#include "decoder.h"
#include "products.h"
#include "threads.h"

enum { CHUNK = 2 * TILE, LANES = TILE };

/* Of a long pass a stretch of rows after the other enters a product with many inputs: they stay in the nearer caches while all of the
 * matrix passes by. */
enum { STRETCH = 256 };

/* A piece of attention: up to 16 pairs of (query head of a group, row) of one sequence and one key head. */
typedef struct {
    int64_t segment, key_head, first, count;
} Piece;

typedef struct {
    const Model *model;
    const Pass *pass;
    int64_t threads;
    int64_t padded; /* rows, up to a multiple of 32 */
    bf16 *rows;     /* [rows, hidden] the residual stream */
    float *added;   /* [rows, hidden] a part's output where a norm follows it */
    bf16 *queries;  /* [rows, heads, width] */
    bf16 *attended; /* [padded, heads, width] */
    bf16 *inner;    /* [padded, feed forward] */
    Piece *pieces;
    int64_t piece_count;
    int64_t columns; /* the most of any sequence, up to a multiple of 16 */
    int64_t groups;  /* of columns of the head, up to a multiple of 16 */
    float *most;     /* [wanted, groups] the largest score of a ranked row there */
    float *mass;     /* [wanted, groups] the sum of the exponentials of what its scores fall short of that */
    char *own[MOST_THREADS];
} Work_space;

/* What a thread needs for itself, laid out in one block. */
typedef struct {
    bf16 *normed;   /* [padded, hidden] */
    Room room;      /* rows that enter a product */
    float *product; /* [padded, widest] */
    float *scores;  /* [columns, 16] */
    bf16 *packed;   /* [width, 16] queries of a piece */
    bf16 *weights;  /* [columns / 32, 16, 32] scores of settled columns */
    float *sums;    /* [16, 64] */
    uint16_t *seen; /* [columns] the lanes that see a column */
    float *best;    /* [wanted, ranked] the highest scores that the thread has met, falling */
    int64_t *ids;   /* [wanted, ranked] where */
} Own;

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t widest(const Model *m) { return m->width > 64 ? m->width : 64; }

static size_t aligned(size_t bytes) { return (bytes + 127) & ~(size_t)127; }

/* The layout of a thread's own memory from `at` on; hands back where it ends. */
static char *lay_out(const Work_space *w, char *at, Own *own) {
    const Model *m = w->model;
    own->normed = (bf16 *)at, at += aligned(w->padded * m->hidden * 2);
    int64_t input = m->feed_forward > m->hidden ? m->feed_forward : m->hidden;
    if (m->heads * m->width > input) input = m->heads * m->width;
    int64_t stretch = least(w->padded, STRETCH), most = w->padded * m->hidden > stretch * input ? w->padded * m->hidden : stretch * input;
    own->room.turned = (bf16 *)at, at += aligned(input * 2 * TILE * 2);
    own->room.numbers = (int8_t *)at, at += aligned(most + 64 * w->padded);
    own->room.block = (Block *)at, at += aligned((most / DEPTH + 4 * w->padded) * (int64_t)sizeof(Block));
    own->product = (float *)at, at += aligned(w->padded * widest(m) * 4);
    own->scores = (float *)at, at += aligned(w->columns * LANES * 4);
    own->packed = (bf16 *)at, at += aligned(m->width * LANES * 2);
    own->weights = (bf16 *)at, at += aligned(w->columns * LANES * 2);
    own->sums = (float *)at, at += aligned(LANES * 64 * 4);
    own->seen = (uint16_t *)at, at += aligned(w->columns * 2);
    own->best = (float *)at, at += aligned(w->pass->wanted * w->pass->ranked * 4);
    own->ids = (int64_t *)at, at += aligned(w->pass->wanted * w->pass->ranked * 8);
    return at;
}

#endif
