/* A pass of the usual decoder in one call: RMS norm, attention with rotary positions, RMS norm, gated feed-forward.
 *
 * Activations between products and the rows that go from part to part are bfloat16, everything else float32; so a pass cut into two
 * at a layer gives the same result. See arithmetic.h for why rows never depend on each other.
 */
#define _GNU_SOURCE
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

#include "arithmetic.h"
#include "attention.h"
#include "decoder.h"
#include "packing.h"
#include "products.h"
#include "ranking.h"
#include "threads.h"
#include "workspace.h"

static void norm_all(const Work_space *w, const float *weight, bf16 *to) {
    int64_t hidden = w->model->hidden;
    for (int64_t i = 0; i < w->pass->rows; i++)
        normalise(w->rows + i * hidden, weight, hidden, w->model->epsilon, to + i * hidden);
}

/* product = rows @ matrix.T for the first blocks of a matrix, which are a piece of work. The others take the next pieces, as far as one
 * can know; so the thread's own next one follows after as many. */
static void multiply_piece(
    const Work_space *w, const Rows *rows, Matrix matrix, int64_t depth, int64_t blocks, float *product, int64_t step
) {
    const char *after = (const char *)matrix.tiles + w->threads * blocks * depth * matrix.bytes;
    multiply(rows, matrix, depth, blocks, after, product, step);
}

static void add_bias(float *product, int64_t rows, int64_t count, const float *bias) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < count; j++) product[i * count + j] += bias[j];
}

/* --- queries, keys and values --------------------------------------------------------------------------------------------- */

/* Finish one head of one row: norm, rotation, and to its place as a query or in the cache. */
static void place_head(
    const Work_space *w, const Layer *layer, int64_t index, int64_t row, const Segment *segment, int64_t head, float *x
) {
    const Model *m = w->model;
    int64_t width = m->width, half = width / 2, is_key = head >= m->heads, is_value = head >= m->heads + m->key_heads;
    if (!is_value) {
        const float *norm = is_key ? layer->key_norm : layer->query_norm;
        if (norm) {
            float scale = inverse_scale(x, width, m->epsilon);
            for (int64_t i = 0; i < width; i++) x[i] = x[i] * scale * norm[i];
        }
    }
    if (!is_value && layer->rotation >= 0) {
        int64_t turn = w->pass->position[row] * width;
        const float *cosine = w->pass->cosine[layer->rotation] + turn, *sine = w->pass->sine[layer->rotation] + turn;
        for (int64_t i = 0; i < half; i += TILE) {
            Floats low = load(x + i), high = load(x + half + i);
            Floats first = minus_times(times(low, load(cosine + i)), high, load(sine + i));
            Floats second = times_plus(
                low, load(sine + half + i), times(high, load(cosine + half + i))
            );
            store(x + i, first), store(x + half + i, second);
        }
    }
    int64_t plane = m->key_heads * SPAN * width, slot = w->pass->slot[row];
    bf16 *keys = segment->span[slot / SPAN] + 2 * index * plane;
    if (is_value) {
        bf16 *values = keys + plane + (head - m->heads - m->key_heads) * SPAN * width;
        for (int64_t i = 0; i < width; i += TILE) store_in_pairs(values, width, slot % SPAN, i, load(x + i));
        return;
    }
    bf16 *to = w->queries + (row * m->heads + head) * width;
    if (is_key) to = keys + ((head - m->heads) * SPAN + slot % SPAN) * width;
    for (int64_t i = 0; i < width; i += TILE) store_bf16(to + i, load(x + i));
}

static void queries_keys_values(const Work_space *w, const Layer *layer, int64_t index, const Own *own) {
    const Model *m = w->model;
    const Pass *pass = w->pass;
    int64_t heads = m->heads + 2 * m->key_heads, width = m->width, depth = m->hidden / DEPTH, blocks = width / TILE;
    /* The three matrices may differ in form; rows enter anew where they do. */
    const Matrix *parts[3] = {&layer->queries, &layer->keys, &layer->values}, *entered = NULL;
    Rows rows;
    for (int64_t head; (head = piece()) < heads;) {
        int64_t part = head < m->heads ? 0 : head < m->heads + m->key_heads ? 1 : 2;
        int64_t first = part == 0 ? head : part == 1 ? head - m->heads : head - m->heads - m->key_heads;
        if (!entered || !enter_alike(*entered, *parts[part])) rows = enter(own->normed, m->hidden, pass->rows, *parts[part], depth, own->room);
        entered = parts[part];
        Matrix matrix = from_block(*parts[part], first * blocks, depth);
        const Segment *segment = pass->segment;
        multiply_piece(w, &rows, matrix, depth, blocks, own->product, width);
        if (layer->queries_keys_values_bias)
            add_bias(own->product, pass->rows, width, layer->queries_keys_values_bias + head * width);
        for (int64_t i = 0; i < pass->rows; i++) {
            while (i >= segment->start + segment->rows) segment++;
            place_head(w, layer, index, i, segment, head, own->product + i * width);
        }
    }
}

/* --- the rest of a layer -------------------------------------------------------------------------------------------------- */

/* rows += input @ matrix.T + bias, rounded; or `added` = that, where a norm comes between. */
static void project(
    const Work_space *w, const bf16 *input, int64_t inputs, Matrix matrix, const float *bias, int apart, const Own *own
) {
    const Model *m = w->model;
    int64_t depth = inputs / DEPTH, hidden = m->hidden, chunks = (hidden + CHUNK - 1) / CHUNK, all = w->pass->rows;
    Rows rows;
    for (int64_t next, entered = -1; (next = piece()) < (all + STRETCH - 1) / STRETCH * chunks;) {
        int64_t first = next / chunks * STRETCH, column = next % chunks * CHUNK, count = least(CHUNK, hidden - column);
        if (first != entered) rows = enter(input + first * inputs, inputs, least(STRETCH, all - first), matrix, depth, own->room);
        entered = first;
        multiply_piece(w, &rows, from_block(matrix, column / TILE, depth), depth, count / TILE, own->product, count);
        if (bias) add_bias(own->product, rows.count, count, bias + column);
        for (int64_t i = 0; i < rows.count; i++) {
            int64_t place = (first + i) * hidden + column;
            for (int64_t j = 0; j < count; j += TILE) {
                Floats x = load(own->product + i * count + j);
                if (apart)
                    store(w->added + place + j, x);
                else
                    store_bf16(w->rows + place + j, plus(load_bf16(w->rows + place + j), x));
            }
        }
    }
}

/* rows += norm(added), shared out by rows. */
static void add_normed(const Work_space *w, const float *weight) {
    int64_t hidden = w->model->hidden;
    for (int64_t row; (row = piece()) < w->pass->rows;) {
        const float *from = w->added + row * hidden;
        bf16 *to = w->rows + row * hidden;
        Floats scale = every(inverse_scale(from, hidden, w->model->epsilon));
        for (int64_t i = 0; i < hidden; i += TILE) {
            Floats x = times(times(load(from + i), scale), load(weight + i));
            store_bf16(to + i, plus(load_bf16(to + i), x));
        }
    }
}

/* inner = activation(gate) * up, for products [rows, count] of 16 gates, the 16 ups that belong to them, and so on. */
static inline __attribute__((always_inline)) void gated(
    const float *product, int64_t rows, int64_t count, const int activation, bf16 *inner, int64_t step
) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; 2 * j < count; j += TILE) {
            const float *gate = product + i * count + 2 * j;
            Floats x = load(gate);
            x = times(activation ? gelu(x) : silu(x), load(gate + TILE));
            store_bf16(inner + i * step + j, x);
        }
}

static void gate_and_up(const Work_space *w, const Layer *layer, const Own *own) {
    const Model *m = w->model;
    int64_t depth = m->hidden / DEPTH, units = m->feed_forward / TILE, count_rows = w->pass->rows;
    Rows rows = enter(own->normed, m->hidden, count_rows, layer->gate_and_up, depth, own->room);
    for (int64_t next; (next = piece()) * 2 < units;) {
        int64_t unit = next * 2, together = least(2, units - unit), count = together * 2 * TILE;
        bf16 *inner = w->inner + unit * TILE;
        multiply_piece(w, &rows, from_block(layer->gate_and_up, 2 * unit, depth), depth, 2 * together, own->product, count);
        if (layer->gate_and_up_bias) add_bias(own->product, count_rows, count, layer->gate_and_up_bias + unit * 2 * TILE);
        if (m->activation)
            gated(own->product, count_rows, count, 1, inner, m->feed_forward);
        else
            gated(own->product, count_rows, count, 0, inner, m->feed_forward);
    }
}

static void leave(const Work_space *w, bf16 *to) {
    memcpy(to, w->rows, (size_t)(w->pass->rows * w->model->hidden) * sizeof *to);
}

static void head(const Work_space *w, const Own *own) {
    const Model *m = w->model;
    const Pass *pass = w->pass;
    int64_t depth = m->hidden / DEPTH, blocks = m->vocabulary / TILE;
    for (int64_t i = 0; i < pass->wanted; i++) {
        const bf16 *from = w->rows + pass->want[i] * m->hidden;
        bf16 *to = own->normed + i * m->hidden;
        if (pass->bare)
            memcpy(to, from, (size_t)m->hidden * sizeof *to);
        else
            normalise(from, m->final_norm, m->hidden, m->epsilon, to);
    }
    Rows rows = enter(own->normed, m->hidden, pass->wanted, m->head, depth, own->room);
    for (int64_t next; (next = piece()) * 4 < blocks;) {
        int64_t block = next * 4, together = least(4, blocks - block), count = together * TILE;
        multiply_piece(w, &rows, from_block(m->head, block, depth), depth, together, own->product, count);
        if (m->head_bias) add_bias(own->product, pass->wanted, count, m->head_bias + block * TILE);
        for (int64_t i = 0; i < pass->wanted; i++) {
            const float *product = own->product + i * count;
            if (pass->ranked)
                rank_part(w, own, i, next, product, count);
            else
                memcpy(pass->logits + i * m->vocabulary + block * TILE, product, (size_t)count * sizeof *product);
        }
    }
}

/* With DECODERY_PROFILE the first thread counts the nanoseconds of each part. */
enum { NORMS, QUERIES_KEYS_VALUES, ATTENTION, OUTPUT, GATE_AND_UP, DOWN, HEAD, PARTS };
#ifdef DECODERY_PROFILE
#include <time.h>
static int64_t spent[PARTS];

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000 + time.tv_nsec;
}

/* Hand over what was counted since the last call: nanoseconds [PARTS]. */
void decodery_spent(int64_t *to) {
    memcpy(to, spent, sizeof spent);
    memset(spent, 0, sizeof spent);
}

#define TIMED(part, ...) { int64_t begun = now(); __VA_ARGS__; if (thread == 0) spent[part] += now() - begun; }
#else
#define TIMED(part, ...) { __VA_ARGS__; }
#endif

static void run(int thread, int threads, void *argument) {
    const Work_space *w = argument;
    const Model *m = w->model;
    const Pass *pass = w->pass;
    Own own;
    lay_out(w, w->own[thread], &own);
    for (int64_t step = 0; step < pass->steps; step++) {
        int64_t index = pass->step[step] / 4;
        const Layer *layer = m->layer + index;
        if (pass->step[step] & 1) {
            TIMED(NORMS, norm_all(w, layer->input_norm, own.normed))
            TIMED(QUERIES_KEYS_VALUES, queries_keys_values(w, layer, index, &own), barrier(threads))
            TIMED(ATTENTION, attend(w, layer, index, &own), barrier(threads))
            int apart = layer->attention_post_norm != NULL;
            int64_t inputs = m->heads * m->width;
            TIMED(OUTPUT, project(w, w->attended, inputs, layer->output, layer->output_bias, apart, &own), barrier(threads))
            if (apart) add_normed(w, layer->attention_post_norm), barrier(threads);
        }
        if (pass->step[step] & 2) {
            TIMED(NORMS, norm_all(w, layer->feed_forward_norm, own.normed))
            TIMED(GATE_AND_UP, gate_and_up(w, layer, &own), barrier(threads))
            int apart = layer->feed_forward_post_norm != NULL;
            int64_t inputs = m->feed_forward;
            TIMED(DOWN, project(w, w->inner, inputs, layer->down, layer->down_bias, apart, &own), barrier(threads))
            if (apart) add_normed(w, layer->feed_forward_post_norm), barrier(threads);
        }
        /* The rows do not change again before the next barrier but one. */
        if (thread == 0 && pass->tap[step]) leave(w, pass->tap[step]);
    }
    if (thread == 0 && pass->normed) norm_all(w, m->final_norm, pass->normed);
    TIMED(HEAD, if (pass->wanted) head(w, &own))
    tiles_off();
}

/* --- entry points --------------------------------------------------------------------------------------------------------- */

/* 1 where this build's instructions may be used in this process, else 0. */
int decodery_ready(void) {
#if DECODERY_AMX
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return 1;
#endif
}

int decodery_amx(void) { return DECODERY_AMX; }

/* The form of `Matrix` that holds the numbers of a kind of GGUF's for rows rounded to eight bits; 0: none. */
int64_t decodery_form(int64_t kind) { return form_of_kind(kind); }

/* Bytes of a tile of an integer form. */
int64_t decodery_tile(int64_t form) { return tile_bytes(integer_form[form - 1]); }

/* Lay out a matrix [outputs, inputs] as `matrix` says, from `matrix.tiles` on. block: [outputs / 16] where 16 rows of it begin, which lie
 * `stride` bytes from one to the next, in a kind of weights.h, rounding.h or packing.h. rounded: the kind of blocks that numbers are
 * rounded to first, or 0. outputs: a multiple of 16 * group; inputs: of 32. Returns 1, or 0 where the form would change a weight, or
 * numbers cannot be rounded; the memory then holds nothing of use. */
int decodery_pack(
    const char *const *block, int64_t outputs, int64_t inputs, int64_t kind, int64_t rounded, int64_t stride, const Matrix *matrix, int threads
) {
    Packing packing = {block, inputs, kind, rounded, stride, *matrix, outputs / TILE / matrix->group, 0, 0};
    /* On one thread beside whoever uses the others. */
    if (threads == 1)
        pack_groups(0, 1, &packing);
    else
        together(threads, pack_groups, &packing);
    return !packing.failed;
}

/* A matrix [outputs, inputs] of numbers as the blocks that it is rounded to. Returns 1, or 0 where it cannot be. */
int decodery_round(const char *rows, int64_t outputs, int64_t inputs, int64_t kind, int64_t rounded, uint8_t *to) {
    return round_matrix(rows, outputs, inputs, kind, rounded, to);
}

/* Rows of a packed matrix as [count, inputs], times a factor. */
void decodery_rows(const Matrix *matrix, int64_t inputs, const int64_t *rows, int64_t count, float factor, bf16 *to) {
    for (int64_t i = 0; i < count; i++) unpack_row(*matrix, inputs, rows[i], factor, to + i * inputs);
}

/* to [count, outputs] = rows [count, inputs] @ matrix.T as a pass computes it, on this thread. Returns 0, or 1 without memory. */
int decodery_product(const Matrix *matrix, int64_t outputs, int64_t inputs, const bf16 *rows, int64_t count, float *to) {
    int64_t padded = (count + CHUNK - 1) / CHUNK * CHUNK, depth = inputs / DEPTH;
    size_t whole = aligned(padded * inputs * 2), turned = aligned(inputs * 2 * TILE * 2), numbers = aligned(padded * (inputs + 64));
    size_t blocks = aligned(padded * (depth + 4) * (int64_t)sizeof(Block));
    char *memory = aligned_alloc(128, whole + turned + numbers + blocks + aligned(padded * outputs * 4));
    if (!memory) return 1;
    memset(memory, 0, whole);
    memcpy(memory, rows, (size_t)(count * inputs) * sizeof *rows);
    Room room = {(bf16 *)(memory + whole), (int8_t *)(memory + whole + turned), (Block *)(memory + whole + turned + numbers)};
    float *product = (float *)(memory + whole + turned + numbers + blocks);
    Rows entering = enter((const bf16 *)memory, inputs, count, *matrix, depth, room);
    multiply(&entering, *matrix, depth, outputs / TILE, matrix->tiles, product, outputs);
    tiles_off();
    memcpy(to, product, (size_t)(count * outputs) * sizeof *to);
    free(memory);
    return 0;
}

/* The `count` likeliest tokens of each row of logits [rows, vocabulary]: ids and probabilities [rows, count], likeliest first. */
void decodery_top(const float *logits, int64_t rows, int64_t vocabulary, int64_t count, int64_t *ids, float *shares, int threads) {
    Ranking ranking = {logits, rows, vocabulary, count, ids, shares};
    for (int64_t i = 0; i < rows * count; i++) ids[i] = -1, shares[i] = -INFINITY;
    together(rows < threads ? (int)rows : threads, rank_rows, &ranking);
}

/* Move rows of a cache, which lies in spans, to start, start + 1, and so on. rows: ascending, none below its new place. */
void decodery_move(
    bf16 *const *span, int64_t layers, int64_t heads, int64_t width, const int64_t *rows, int64_t count, int64_t start
) {
    for (int64_t i = 0; i < count; i++) {
        int64_t source = rows[i] % SPAN, place = (start + i) % SPAN;
        const bf16 *from = span[rows[i] / SPAN];
        bf16 *to = span[(start + i) / SPAN];
        for (int64_t plane = 0; plane < layers * 2 * heads; plane++, from += SPAN * width, to += SPAN * width)
            if (plane / heads % 2 == 0)
                memmove(to + place * width, from + source * width, (size_t)width * sizeof *to);
            else
                for (int64_t at = 0; at < width; at += TILE)
                    store_in_pairs(to, width, place, at, load_from_pairs(from, width, source, at));
    }
}

/* How many first columns every row of a mask sees. */
static int64_t seen_by_all(const Segment *segment, int kind) {
    int64_t width = segment->columns - segment->from[kind], seen = width;
    for (int64_t row = 0; row < segment->rows; row++) {
        const uint8_t *line = segment->mask[kind] + row * width, *hidden = memchr(line, 0, (size_t)seen);
        if (hidden) seen = hidden - line;
    }
    return segment->from[kind] + seen;
}

/* Run a pass. Returns 0, or 1 where there is not enough memory. */
int decodery_pass(const Model *model, const Pass *pass, int threads) {
    Work_space w = {.model = model, .pass = pass};
    int64_t rows = pass->rows, group = model->heads / model->key_heads, deepest = 0, pieces = 0;
    w.threads = threads = (int)least(threads, MOST_THREADS);
    w.padded = (rows + CHUNK - 1) / CHUNK * CHUNK;
    for (int64_t i = 0; i < pass->segments; i++) {
        Segment *segment = pass->segment + i;
        for (int kind = 0; kind < 2; kind++)
            if (segment->mask[kind]) segment->prefix[kind] = seen_by_all(segment, kind);
        if (segment->columns > deepest) deepest = segment->columns;
        pieces += model->key_heads * ((segment->rows * group + LANES - 1) / LANES + 1);
    }
    w.columns = (deepest + DEPTH - 1) / DEPTH * DEPTH;
    w.groups = pass->ranked ? (model->vocabulary / TILE + 4 * TILE - 1) / (4 * TILE) * TILE : 0;
    size_t stream = aligned(rows * model->hidden * 2), added = 2 * stream, query = aligned(w.padded * model->heads * model->width * 2);
    size_t inner = aligned(w.padded * model->feed_forward * 2), marks = aligned(pass->wanted * w.groups * 4), one;
    Own own;
    one = (size_t)lay_out(&w, NULL, &own);
    char *at, *memory = aligned_alloc(128, stream + added + 2 * query + inner + 2 * marks + aligned(pieces * sizeof(Piece)) + threads * one);
    if (!memory) return 1;
    at = memory;
    w.rows = (bf16 *)at, at += stream;
    w.added = (float *)at, at += added;
    w.queries = (bf16 *)at, at += query;
    w.attended = (bf16 *)at, at += query;
    w.inner = (bf16 *)at, at += inner;
    w.most = (float *)at, at += marks;
    w.mass = (float *)at, at += marks;
    w.pieces = (Piece *)at, at += aligned(pieces * sizeof(Piece));
    for (int thread = 0; thread < threads; thread++, at += one) w.own[thread] = at;
    /* As many key heads as there are threads take turns, so that a thread mostly stays with the keys and values of one. */
    for (int64_t i = 0; i < pass->segments; i++) {
        int64_t pairs = pass->segment[i].rows * group;
        for (int64_t head = 0; head < model->key_heads; head += threads)
            for (int64_t first = 0; first < pairs; first += LANES)
                for (int64_t key_head = head; key_head < least(head + threads, model->key_heads); key_head++)
                    w.pieces[w.piece_count++] = (Piece){i, key_head, first, least(LANES, pairs - first)};
    }
    for (int64_t i = 0; i < rows; i++) {
        bf16 *to = w.rows + i * model->hidden;
        if (pass->token)
            unpack_row(model->embedding, model->hidden, pass->token[i], model->embedding_scale, to);
        else
            memcpy(to, pass->input + i * model->hidden, (size_t)model->hidden * sizeof *to);
    }
    if (pass->ranked) begin_ranking(&w, threads);
    together(threads, run, &w);
    if (pass->ranked) end_ranking(&w, threads);
    free(memory);
    return 0;
}
