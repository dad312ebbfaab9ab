/* Attention of a layer, piece by piece: scores, their exponentials, and the mean of the values. */
#ifndef DECODERY_ATTENTION_H
#define DECODERY_ATTENTION_H

#include <math.h>
#include <string.h>

#include "arithmetic.h"
#include "decoder.h"
#include "products.h"
#include "threads.h"
#include "workspace.h"

/* Who sees what: so many first columns every lane sees; which lanes see each column from there on; how many columns each lane sees. Hands
 * back one past the last column that any lane sees. */
static int64_t look(
    const Segment *segment, int64_t kind, const Piece *piece, int64_t group, int64_t *common, uint16_t *seen, int32_t visible[LANES]
) {
    uint16_t all = (uint16_t)((1u << piece->count) - 1);
    const uint8_t *mask = segment->mask[kind], *line[LANES];
    int64_t columns = segment->columns, from = segment->from[kind], last = columns, prefix = segment->prefix[kind];
    int32_t limit[LANES]; /* of a causal row: the last column it sees */
    for (int64_t lane = 0; lane < LANES; lane++) {
        int64_t row = (piece->first + least(lane, piece->count - 1)) / group;
        limit[lane] = (int32_t)(columns - segment->rows + row);
        line[lane] = mask ? mask + row * (columns - from) - from : NULL;
    }
    if (!mask) {
        if (prefix <= limit[0]) prefix = limit[0] + 1;
        last = prefix > limit[LANES - 1] ? prefix : limit[LANES - 1] + 1;
    }
    Integers counts = every_integer((int)prefix);
    for (int64_t column = prefix; column < last; column++) {
        uint16_t lanes = 0;
        if (mask)
            for (int64_t lane = 0; lane < piece->count; lane++) lanes |= (uint16_t)(line[lane][column] << lane);
        else
            lanes = all & at_least(load_integers(limit), every_integer((int)column));
        seen[column] = lanes;
        counts = count_in(counts, lanes);
    }
    store_integers(visible, counts);
    while (last > prefix && !seen[last - 1]) last--;
    *common = prefix;
    return last;
}

/* The largest score of each lane among what it sees. Four at a time, so that no comparison waits for the one before. */
static Floats largest(const float *scores, int64_t columns, int64_t common, const uint16_t *seen) {
    Floats top[4];
    for (int i = 0; i < 4; i++) top[i] = every(-INFINITY);
    int64_t column = 0;
    for (; column + 4 <= common; column += 4)
        for (int i = 0; i < 4; i++) top[i] = larger(top[i], load(scores + (column + i) * LANES));
    for (; column < columns; column++) {
        uint16_t lanes = column < common ? 0xffff : seen[column];
        top[0] = choose(lanes, larger(top[0], load(scores + column * LANES)), top[0]);
    }
    return larger(larger(top[0], top[1]), larger(top[2], top[3]));
}

/* The mean of values is summed in two parts. A row that sees m columns takes the first SETTLED(m) of them, a multiple of 32, on
 * the matrix unit; the others one by one. A column that a row does not see has weight zero, which leaves a sum as it is, so gaps
 * among the last columns change nothing: a node of a draft tree gets the same sum as the same token after it is committed, as
 * long as the tree is less deep than MARGIN. */
enum { TOGETHER = 6, MARGIN = 32 };

static inline int64_t settled(int64_t visible) { return visible <= MARGIN ? 0 : (visible - MARGIN) / DEPTH * DEPTH; }

/* sums += scores * values for some lanes, column after column. values: from an even column on. */
static inline __attribute__((always_inline)) void one_by_one(
    const float *scores, const bf16 *values, int64_t width, int64_t columns, const int count, float *sums
) {
    Floats sum[TOGETHER][4];
    for (int lane = 0; lane < count; lane++)
        for (int part = 0; part < 4; part++) sum[lane][part] = load(sums + lane * 64 + part * TILE);
    for (int64_t column = 0; column < columns; column += 2) {
        const bf16 *pairs = values + column * width;
        const float *score = scores + column * LANES;
        Integers two[4];
        for (int part = 0; part < 4; part++) two[part] = load_integers(pairs + part * DEPTH);
        for (int lane = 0; lane < count; lane++) {
            Floats s = every(score[lane]);
            for (int part = 0; part < 4; part++) sum[lane][part] = times_plus(s, first_of_pairs(two[part]), sum[lane][part]);
        }
        if (column + 1 == columns) break;
        for (int lane = 0; lane < count; lane++) {
            Floats s = every(score[LANES + lane]);
            for (int part = 0; part < 4; part++) sum[lane][part] = times_plus(s, second_of_pairs(two[part]), sum[lane][part]);
        }
    }
    for (int lane = 0; lane < count; lane++)
        for (int part = 0; part < 4; part++) store(sums + lane * 64 + part * TILE, sum[lane][part]);
}

/* Queries of a piece as one packed block: for each pair of widths, the pair of each lane. */
static void pack_queries(const Work_space *w, const Piece *piece, const Segment *segment, int64_t group, int32_t *packed) {
    const Model *m = w->model;
    for (int64_t from = 0; from < m->width / 2; from += TILE) {
        Integers lanes[LANES];
        for (int64_t lane = 0; lane < LANES; lane++) {
            int64_t pair = piece->first + lane, row = segment->start + pair / group;
            const bf16 *query = w->queries + (row * m->heads + piece->key_head * group + pair % group) * m->width;
            lanes[lane] = lane < piece->count ? load_integers(query + 2 * from) : every_integer(0);
        }
        transpose(lanes);
        for (int64_t i = 0; i < TILE; i++) store_integers(packed + (from + i) * LANES, lanes[i]);
    }
}

static void attend_piece(const Work_space *w, const Layer *layer, int64_t index, const Piece *piece, const Own *own) {
    const Model *m = w->model;
    const Segment *segment = w->pass->segment + piece->segment;
    int64_t width = m->width, group = m->heads / m->key_heads, plane = m->key_heads * SPAN * width;
    const bf16 *const *span = (const bf16 *const *)segment->span;
    int64_t keys = 2 * index * plane + piece->key_head * SPAN * width, values = keys + plane; /* where they begin in each span */
    float *scores = own->scores;
    /* 1. Who sees what; where the settled columns of each lane end. */
    int32_t visible[LANES];
    int64_t common, first = INT64_MAX, last = 0, part_end[LANES];
    int64_t columns = look(segment, layer->kind, piece, group, &common, own->seen, visible);
    for (int64_t lane = 0; lane < piece->count; lane++) {
        part_end[lane] = settled(visible[lane]);
        first = least(first, part_end[lane]);
        if (part_end[lane] > last) last = part_end[lane];
    }
    /* 2. Scores of all columns, and the largest of each lane. */
    pack_queries(w, piece, segment, group, (int32_t *)own->packed);
    for (int64_t column = 0; column < columns; column += SPAN) {
        /* What fetches lines ahead does not know where the next span lies. */
        if (column + SPAN < columns) fetch_rows(span[column / SPAN + 1] + keys, 4 * DEPTH, SPAN * width / (4 * DEPTH));
        key_products(span[column / SPAN] + keys, width, least(SPAN, columns - column), own->packed, piece->count, scores + column * LANES);
    }
    Floats top = largest(scores, columns, common, own->seen);
    /* 3. Their exponentials and the sum of these, column after column. */
    Floats scale = every(m->scale * LOG2_E), shift = times(top, scale), total = zeros();
    for (int64_t column = 0; column < columns; column++) {
        Floats score = power_of_two(times_minus(load(scores + column * LANES), scale, shift));
        if (column >= common) score = keep(own->seen[column], score);
        store(scores + column * LANES, score);
        total = plus(total, score);
    }
    float totals[LANES];
    store(totals, total);
    /* 4. The settled columns in bfloat16; a lane whose part is over gets zeros. */
    for (int64_t step = 0; step * DEPTH < last; step++) {
        const float *from = scores + step * DEPTH * LANES;
        float some[DEPTH * LANES];
        if (step * DEPTH >= first) {
            uint16_t open = 0;
            for (int64_t lane = 0; lane < piece->count; lane++) open |= (uint16_t)((step * DEPTH < part_end[lane]) << lane);
            for (int i = 0; i < DEPTH; i++)
                store(some + i * LANES, load_some(open, from + i * LANES));
            pack_weights(some, own->weights + step * TILE_ELEMENTS);
            for (int i = 0; i < DEPTH; i++) /* what is summed there is not summed again */
                store_some(scores + (step * DEPTH + i) * LANES, open, zeros());
        } else
            pack_weights(from, own->weights + step * TILE_ELEMENTS);
    }
    for (int64_t part = 0; part < width; part += 64) {
        float *sums = own->sums;
        add_values(own->weights, span, values + 2 * part, 2 * width, last / DEPTH, piece->count, sums);
        /* 5. The others one by one. */
        for (int64_t from = first, rest; from < columns; from += rest) {
            rest = least(SPAN - from % SPAN, columns - from);
            const bf16 *value = span[from / SPAN] + values + from % SPAN * width + 2 * part;
            for (int64_t lane = 0; lane < piece->count; lane += TOGETHER) {
                const float *score = scores + from * LANES + lane;
                switch (least(TOGETHER, piece->count - lane)) {
                case 6: one_by_one(score, value, width, rest, 6, sums + lane * 64); break;
                case 5: one_by_one(score, value, width, rest, 5, sums + lane * 64); break;
                case 4: one_by_one(score, value, width, rest, 4, sums + lane * 64); break;
                case 3: one_by_one(score, value, width, rest, 3, sums + lane * 64); break;
                case 2: one_by_one(score, value, width, rest, 2, sums + lane * 64); break;
                default: one_by_one(score, value, width, rest, 1, sums + lane * 64);
                }
            }
        }
        for (int64_t lane = 0; lane < piece->count; lane++) {
            int64_t pair = piece->first + lane, row = segment->start + pair / group;
            bf16 *to = w->attended + (row * m->heads + piece->key_head * group + pair % group) * width + part;
            Floats one_over = every(1.0f / totals[lane]);
            for (int j = 0; j < 64; j += TILE)
                store_bf16(to + j, times(load(sums + lane * 64 + j), one_over));
        }
    }
}

static void attend(const Work_space *w, const Layer *layer, int64_t index, const Own *own) {
    tiles_for_pairs();
    for (int64_t next; (next = piece()) < w->piece_count;) attend_piece(w, layer, index, w->pieces + next, own);
}

#endif
