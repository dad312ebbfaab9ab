/* The likeliest tokens of rows, the lower id first among equals, and their probabilities. */
#ifndef DECODERY_RANKING_H
#define DECODERY_RANKING_H

#include <math.h>

#include "arithmetic.h"
#include "decoder.h"
#include "threads.h"
#include "workspace.h"

/* Take some of the scores from x[0] on, of tokens `id` and so on, into a list of the highest. some: a bit for each. Tokens come in
 * ascending order. */
static inline void take(const float *x, unsigned some, int64_t id, float *best, int64_t *ids, int64_t count) {
    for (; some; some &= some - 1) {
        int64_t i = __builtin_ctz(some), place = count - 1;
        if (best[place] >= x[i]) continue; /* raised a moment ago */
        for (; place > 0 && best[place - 1] < x[i]; place--) best[place] = best[place - 1], ids[place] = ids[place - 1];
        best[place] = x[i], ids[place] = id + i;
    }
}

/* Falling scores to probabilities. total: the sum of the exponentials of what all scores of the row fall short of the first. */
static inline void to_shares(float *scores, int64_t count, float total) {
    float highest = scores[0];
    for (int64_t i = 0; i < count; i++) scores[i] = expf(scores[i] - highest) / total;
}

/* --- rows of logits ------------------------------------------------------------------------------------------------------- */

typedef struct {
    const float *logits;
    int64_t rows, vocabulary, count, *ids;
    float *shares;
} Ranking;

static void rank_row(const Ranking *r, int64_t row) {
    const float *x = r->logits + row * r->vocabulary;
    int64_t *ids = r->ids + row * r->count;
    float *best = r->shares + row * r->count;
    for (int64_t i = 0; i < r->vocabulary; i += TILE) {
        uint16_t left = r->vocabulary - i < TILE ? (uint16_t)((1u << (r->vocabulary - i)) - 1) : 0xffff;
        Floats some = load_some(left, x + i), lowest = every(best[r->count - 1]);
        take(x + i, left & above(some, lowest), i, best, ids, r->count);
    }
    /* What lies 30 below the top changes no probability, however many there are. */
    Floats top = every(best[0]), floor = every(best[0] - 30.0f), sum = zeros();
    for (int64_t i = 0; i < r->vocabulary; i += TILE) {
        uint16_t left = r->vocabulary - i < TILE ? (uint16_t)((1u << (r->vocabulary - i)) - 1) : 0xffff;
        Floats some = load_some(left, x + i);
        uint16_t high = left & above(some, floor);
        if (high) sum = plus(sum, keep(high, exponential(minus(some, top))));
    }
    to_shares(best, r->count, sum_of(sum));
}

static void rank_rows(int thread, int threads, void *argument) {
    (void)thread, (void)threads;
    const Ranking *r = argument;
    for (int64_t row; (row = piece()) < r->rows;) rank_row(r, row);
}

/* --- rows of a pass, whose logits are never in memory as a whole -------------------------------------------------------------- */

static void begin_ranking(const Work_space *w, int threads) {
    for (int thread = 0; thread < threads; thread++) {
        Own own;
        lay_out(w, w->own[thread], &own);
        for (int64_t i = 0; i < w->pass->wanted * w->pass->ranked; i++) own.best[i] = -INFINITY, own.ids[i] = -1;
    }
    for (int64_t i = 0; i < w->pass->wanted * w->groups; i++) w->most[i] = -INFINITY, w->mass[i] = 0;
}

/* Look at one group of columns of a wanted row, count of them. Which thread does it changes nothing: sums are kept by group. */
static void rank_part(const Work_space *w, const Own *own, int64_t row, int64_t group, const float *x, int64_t count) {
    int64_t ranked = w->pass->ranked;
    float *best = own->best + row * ranked;
    Floats top = load(x), sum = zeros();
    for (int64_t j = TILE; j < count; j += TILE) top = larger(top, load(x + j));
    float most = most_of(top);
    for (int64_t j = 0; j < count; j += TILE)
        sum = plus(sum, exponential(minus(load(x + j), every(most))));
    w->most[row * w->groups + group] = most;
    w->mass[row * w->groups + group] = sum_of(sum);
    if (!(most > best[ranked - 1])) return;
    for (int64_t j = 0; j < count; j += TILE) {
        unsigned some = above(load(x + j), every(best[ranked - 1]));
        take(x + j, some, group * 4 * TILE + j, best, own->ids + row * ranked, ranked);
    }
}

/* Put together what the threads have found. */
static void end_ranking(const Work_space *w, int threads) {
    const Pass *pass = w->pass;
    Own own[MOST_THREADS];
    for (int thread = 0; thread < threads; thread++) lay_out(w, w->own[thread], own + thread);
    for (int64_t row = 0; row < pass->wanted; row++) {
        int64_t at[MOST_THREADS] = {0}, *ids = pass->ranked_ids + row * pass->ranked;
        float *shares = pass->ranked_shares + row * pass->ranked;
        for (int64_t i = 0; i < pass->ranked; i++) {
            int from = 0;
            for (int thread = 1; thread < threads; thread++) {
                int64_t held = row * pass->ranked + at[from], other = row * pass->ranked + at[thread];
                float ours = own[from].best[held], theirs = own[thread].best[other];
                if (theirs > ours || (theirs == ours && own[thread].ids[other] < own[from].ids[held])) from = thread;
            }
            int64_t place = row * pass->ranked + at[from]++;
            ids[i] = own[from].ids[place], shares[i] = own[from].best[place];
        }
        Floats top = every(shares[0]), sum = zeros();
        for (int64_t group = row * w->groups; group < (row + 1) * w->groups; group += TILE) {
            Floats share = exponential(minus(load(w->most + group), top));
            sum = times_plus(share, load(w->mass + group), sum);
        }
        to_shares(shares, pass->ranked, sum_of(sum));
    }
}

#endif
