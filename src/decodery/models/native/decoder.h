/* What `decodery.models.native` hands to the decoder. Mirrored field by field in `binding.py`. */
#ifndef DECODERY_DECODER_H
#define DECODERY_DECODER_H

#include <stdint.h>

typedef uint16_t bf16;

enum { MOST_GROUP = 4, SPAN = 64 };

/* A packed matrix; weights.h says how it lies. */
typedef struct {
    const void *tiles;
    int64_t bytes; /* of a tile */
    int64_t group; /* blocks whose tiles lie in turns: 1, 2 or 4; of whole numbers 1 */
    int64_t form;  /* 0: numbers for rows in bfloat16, `bytes` tells how they lie; else one more than a place in integer_form (integers.h),
                    * for rows rounded to eight bits */
} Matrix;

/* One decoder layer. Products are packed by `decodery_pack`; norms and biases are float32; NULL where there is none. */
typedef struct {
    const float *input_norm, *query_norm, *key_norm, *attention_post_norm, *feed_forward_norm, *feed_forward_post_norm;
    Matrix queries, keys, values, output, gate_and_up, down;
    const float *queries_keys_values_bias, *output_bias, *gate_and_up_bias, *down_bias;
    int64_t kind;     /* which mask of a pass the layer uses: 0 or 1 */
    int64_t rotation; /* which rotation: 0 or 1; or -1: none */
} Layer;

typedef struct {
    int64_t layers, hidden, heads, key_heads, width, feed_forward, vocabulary;
    int64_t activation; /* 0: silu, 1: gelu with tanh */
    float epsilon, scale, embedding_scale;
    const Layer *layer;
    Matrix embedding; /* [vocabulary, hidden]; its rows are multiplied with embedding_scale, and rounded, before they enter */
    const float *final_norm;
    Matrix head;
    const float *head_bias;
} Model;

/* The rows of one sequence. */
typedef struct {
    int64_t start, rows;      /* its rows within the pass */
    int64_t columns;          /* cache rows that attention ranges over */
    bf16 *const *span;        /* of each SPAN cache rows, where they lie; the first ones may be other sequences' as well. A span is
                               * [layers, 2, key heads, SPAN, width]: keys, and values in pairs of rows (arithmetic.h) */
    const uint8_t *mask[2];   /* by kind: [rows, columns - from], 1 where visible; NULL: causal, the rows being the last columns */
    int64_t from[2];          /* by kind: where the mask begins; every row sees the columns before it */
    int64_t prefix[2];        /* by kind: so many first columns are visible to every row; of a mask the decoder finds out */
} Segment;

typedef struct {
    int64_t rows, segments;
    Segment *segment;
    const int64_t *slot;              /* [rows] the cache row that each row writes */
    const int64_t *position;          /* [rows] */
    const float *cosine[2], *sine[2]; /* by rotation: [positions, width] */
    const int64_t *token;             /* [rows] whose embeddings enter the first layer; or NULL */
    const bf16 *input;                /* [rows, hidden] what enters the first layer, without tokens */
    int64_t steps;                    /* layers to run */
    const int64_t *step;              /* [steps] 4 * layer + 2 * (run its feed-forward) + (run its attention) */
    bf16 *const *tap;                 /* [steps] where to leave the layer's rows [rows, hidden], or NULL */
    bf16 *normed;                     /* where to leave the rows after the final norm [rows, hidden], or NULL */
    int64_t wanted;                   /* rows whose logits are asked */
    const int64_t *want;              /* [wanted] */
    int64_t bare;                     /* 1 where these rows enter the head as they are, without the final norm */
    float *logits;                    /* [wanted, vocabulary]; NULL where rows are ranked */
    int64_t ranked;                   /* so many likeliest tokens of each wanted row are told; or 0 */
    int64_t *ranked_ids;              /* [wanted, ranked] likeliest first, the lower id among equals */
    float *ranked_shares;             /* [wanted, ranked] their probabilities */
} Pass;

#endif
