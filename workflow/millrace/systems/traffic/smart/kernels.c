/* Attention and embedded relations of SMART on a CPU, in float32. `kernels.py` says what the functions take. Numbers
 * are summed in the same order by any number of threads.
 *
 * Numbers that belong to a neighbour and a head lie neighbour by neighbour, so that all heads are beside each
 * other, and a vector holds those of V / heads neighbours. */

#include <math.h>
#include "vectors.h"

#define BLOCK 16 /* queries whose rows are multiplied with a matrix together */
#define KEYS 4 /* neighbours at once */
#define PARTS 32 /* of the queries, whose sums are added up in order */
#define ROOM(k) ((k) + V + KEYS) /* room for numbers beyond the last neighbour */

struct attention {
    long queries, neighbours, heads, width, channels;
    const float *query;          /* [queries, heads, width] */
    const float *const *sources; /* keys and values, [., 2, heads, width]: of all neighbours, or of each */
    const int64_t *index;        /* [queries, neighbours]; none: of source k the row with the number of the query */
    const uint8_t *mask;         /* [queries, neighbours] */
    const float *relation;       /* [queries, neighbours, channels] */
    const float *to_key, *to_value; /* [heads, width, channels] */
};

/* Neighbours of a query that are not masked, and the last of them again up to whole vectors. */
struct kept {
    long count, *number;
    const float **relation, **source;
};

static struct kept room_for(long neighbours)
{
    return (struct kept){0, allocated(ROOM(neighbours) * sizeof(long)), allocated(ROOM(neighbours) * sizeof(float *)),
                         allocated(ROOM(neighbours) * sizeof(float *))};
}

static void leave(struct kept kept) { free(kept.number), free(kept.relation), free(kept.source); }

static void keep(const struct attention *a, long query, struct kept *kept)
{
    const long row = 2 * a->heads * a->width, first = query * a->neighbours;
    kept->count = 0;
    for (long k = 0; k < a->neighbours; k++)
        if (a->mask[first + k]) {
            kept->number[kept->count] = k;
            kept->relation[kept->count] = a->relation + (first + k) * a->channels;
            kept->source[kept->count++] = a->index ? a->sources[0] + a->index[first + k] * row
                                                   : a->sources[k] + query * row;
        }
    for (long k = kept->count; kept->count && k < kept->count + V; k++) {
        kept->relation[k] = kept->relation[kept->count - 1];
        kept->source[k] = kept->source[kept->count - 1];
    }
}

#define BY_HEADS(function, ...)                                                                     \
    if (a->heads == 8) { if (a->width % V) function(8, 1, a, __VA_ARGS__); else function(8, 0, a, __VA_ARGS__); } \
    else { if (a->width % V) function(4, 1, a, __VA_ARGS__); else function(4, 0, a, __VA_ARGS__); }

/* As many numbers of a head as it has, or as a vector has; the others are 0. */
INLINE vec own(const int half, const float *p)
{
    if (!half) return load(p);
    vec x = {0};
    memcpy(&x, p, sizeof x / 2);
    return x;
}

INLINE void keep_own(const int half, float *p, vec x) { memcpy(p, &x, half ? sizeof x / 2 : sizeof x); }

INLINE void scores_of(const int heads, const int half, const struct attention *a, const struct kept *kept,
                   const float *side, const float *mine, long first, float *out)
{
    const int each = V / heads, step = half ? V / 2 : V;
    for (long k = 0; k < kept->count; k += each) {
        const float *const *relation = kept->relation + k, *const *source = kept->source + k;
        vec sums[V] = {0};
        for (long d = 0; d < a->width; d += step)
            UNROLL for (int h = 0; h < heads; h++) {
                const vec one = own(half, mine + h * a->width + d);
                UNROLL for (int i = 0; i < each; i++)
                    sums[i * heads + h] += one * own(half, source[i] + first + h * a->width + d);
            }
        for (long c = 0; c < a->channels; c += V) {
            vec given[V];
            UNROLL for (int i = 0; i < each; i++) {
                given[i] = load(relation[i] + c);
                __builtin_prefetch(relation[i] + c + a->neighbours * a->channels, 0, 2); /* of the next query */
            }
            UNROLL for (int h = 0; h < heads; h++) {
                const vec one = load(side + h * a->channels + c);
                UNROLL for (int i = 0; i < each; i++) sums[i * heads + h] += one * given[i];
            }
        }
        store(out + k * heads, sums_of(sums));
    }
}

/* out[k, h] = side[h] . relation[k] + mine[h] . source[k][h], also for a few beyond the last k. */
APART void scores(const struct attention *a, const struct kept *kept, const float *side, const float *mine, long first,
                  float *out)
{
    BY_HEADS(scores_of, kept, side, mine, first, out)
}

/* Over all neighbours of a vector, head by head. */
#define TOGETHER(x, by, heads)                                                                                  \
    if (heads <= 4) x = by(x, __builtin_shuffle(x, PLACES(ACROSS, 4)));       \
    if (V > 8) x = by(x, __builtin_shuffle(x, PLACES(ACROSS, 8)));
INLINE vec plus(vec a, vec b) { return a + b; }

/* Of each head over all neighbours; numbers beyond the last become 0. */
APART void softmax(long heads, long count, float *x)
{
    const long end = count * heads;
    for (long i = end; i % V; i++) x[i] = -INFINITY;
    vec top = all(-INFINITY), total = {0};
    for (long i = 0; i < end; i += V) top = larger(top, load(x + i));
    TOGETHER(top, larger, heads)
    for (long i = 0; i < end; i += V) {
        const vec one = exponential(load(x + i) - top);
        total += one;
        store(x + i, one);
    }
    TOGETHER(total, plus, heads)
    for (long i = 0; i < end; i += V) store(x + i, load(x + i) / total);
}

/* Gradient of what was given to `softmax`, from that of its result, and zeros beyond the last. */
APART void softmax_gradient(long heads, long count, const float *weight, float *x)
{
    vec total = {0};
    for (long i = 0; i < count * heads; i += V) total += load(weight + i) * load(x + i);
    TOGETHER(total, plus, heads)
    for (long i = 0; i < count * heads; i += V) store(x + i, load(weight + i) * (load(x + i) - total));
}

INLINE void weighted_tile(const int heads, const int wide, long count, const float *weight, const float *const *rows,
                          long at, float *out, long pitch)
{
    vec sums[8][4] = {0};
    for (long k = 0; k < count; k++) {
        vec given[4];
        UNROLL for (int j = 0; j < wide; j++) given[j] = load(rows[k] + at + j * V);
        UNROLL for (int h = 0; h < heads; h++)
            UNROLL for (int j = 0; j < wide; j++) sums[h][j] += weight[k * heads + h] * given[j];
    }
    UNROLL for (int h = 0; h < heads; h++)
        UNROLL for (int j = 0; j < wide; j++) store(out + h * pitch + at + j * V, sums[h][j]);
}

INLINE void weighted_of(const int heads, const int half, const struct attention *a, const struct kept *kept,
                        const float *weight, float *out)
{
    (void)half;
    const int wide = V / heads < 4 ? V / heads : 4;
    long c = 0;
    for (; c + wide * V <= a->channels; c += wide * V)
        weighted_tile(heads, wide, kept->count, weight, kept->relation, c, out, a->channels);
    for (; c < a->channels; c += V) weighted_tile(heads, 1, kept->count, weight, kept->relation, c, out, a->channels);
}

/* out[h, c] = sum over k of weight[k, h] relation[k][c]. */
APART void weighted(const struct attention *a, const struct kept *kept, const float *weight, float *out)
{
    BY_HEADS(weighted_of, kept, weight, out)
}

INLINE void weighted_own_of(const int heads, const int half, const struct attention *a, const struct kept *kept,
                         const float *weight, long first, const float *others, long pitch, float *out)
{
    for (long d = 0; d < a->width; d += V) {
        vec sums[8];
        UNROLL for (int h = 0; h < heads; h++) sums[h] = load(others + h * pitch + d);
        for (long k = 0; k < kept->count; k++)
            UNROLL for (int h = 0; h < heads; h++)
                sums[h] += weight[k * heads + h] * own(half, kept->source[k] + first + h * a->width + d);
        UNROLL for (int h = 0; h < heads; h++) keep_own(half, out + h * a->width + d, sums[h]);
    }
}

/* out[h] = sum over k of weight[k, h] source[k][h], plus `others`, whose heads lie so far apart. */
APART void weighted_own(const struct attention *a, const struct kept *kept, const float *weight, long first,
                        const float *others, long pitch, float *out)
{
    BY_HEADS(weighted_own_of, kept, weight, first, others, pitch, out)
}

/* Transposes of matrices of heads, [heads, channels, pitch], with zeros beyond the width. */
static float *turned(const struct attention *a, const float *matrix, long pitch)
{
    float *out = allocated(a->heads * a->channels * pitch * sizeof *out);
    memset(out, 0, a->heads * a->channels * pitch * sizeof *out);
    for (long h = 0; h < a->heads; h++)
        for (long d = 0; d < a->width; d++)
            for (long c = 0; c < a->channels; c++)
                out[(h * a->channels + c) * pitch + d] = matrix[(h * a->width + d) * a->channels + c];
    return out;
}

/* Rows of queries, [queries, heads, width], times the matrix of each head: [queries, heads, channels]. */
APART void by_head(const struct attention *a, long queries, const float *rows, const float *matrix, float *out)
{
    const long all = a->heads * a->width, c = a->channels;
    for (long h = 0; h < a->heads; h++)
        products(queries, a->width, rows + h * a->width, all, 1, matrix + h * a->width * c, c, NULL, 0, out + h * c,
                 a->heads * c, c);
}

/* [queries, heads, channels] times the transposes: [queries, heads, pitch]. */
APART void back_by_head(const struct attention *a, long queries, const float *rows, const float *turned, float *out,
                         long pitch)
{
    const long c = a->channels;
    for (long h = 0; h < a->heads; h++)
        products(queries, c, rows + h * c, a->heads * c, 1, turned + h * c * pitch, pitch, NULL, 0, out + h * pitch,
                 a->heads * pitch, pitch);
}

/* `out` is [queries, heads, width]; `weight`, if there is any, [queries, neighbours, heads]. */
void attention(const struct attention *a, float *weight, float *out, int threads)
{
    const long heads = a->heads, all = heads * a->width, pitch = a->width < V ? V : a->width, K = a->neighbours;
    float *to_value_t = turned(a, a->to_value, pitch);
#pragma omp parallel num_threads(threads)
    {
        struct kept kept = room_for(K);
        float *side = allocated(BLOCK * heads * a->channels * sizeof *side);
        float *seen = allocated(BLOCK * heads * pitch * sizeof *seen);
        float *score = allocated(BLOCK * ROOM(K) * heads * sizeof *score);
#pragma omp for schedule(dynamic)
        for (long first = 0; first < a->queries; first += BLOCK) {
            const long some = least(BLOCK, a->queries - first);
            by_head(a, some, a->query + first * all, a->to_key, side);
            for (long q = 0; q < some; q++) {
                float *mine = side + q * heads * a->channels, *scored = score + q * ROOM(K) * heads;
                keep(a, first + q, &kept);
                scores(a, &kept, mine, a->query + (first + q) * all, 0, scored);
                softmax(heads, kept.count, scored);
                weighted(a, &kept, scored, mine);
                if (!weight) continue;
                float *kept_weight = weight + (first + q) * K * heads;
                memset(kept_weight, 0, K * heads * sizeof *weight);
                for (long k = 0; k < kept.count; k++)
                    memcpy(kept_weight + kept.number[k] * heads, scored + k * heads, heads * sizeof *weight);
            }
            back_by_head(a, some, side, to_value_t, seen, pitch);
            for (long q = 0; q < some; q++) {
                keep(a, first + q, &kept);
                weighted_own(a, &kept, score + q * ROOM(K) * heads, all, seen + q * heads * pitch, pitch,
                             out + (first + q) * all);
            }
        }
        leave(kept);
        free(side), free(seen), free(score);
    }
    free(to_value_t);
}

INLINE void spread_of(const int heads, const int half, const struct attention *a, long count, const float *factor,
                      const float *side, float *const *out)
{
    (void)half;
    for (long k = 0; k < count; k += KEYS)
        for (long c = 0; c < a->channels;) {
            const int two = c + 2 * V <= a->channels;
#define SPREAD(wide)                                                                                            \
    vec sums[KEYS][wide] = {0};                                                                                 \
    UNROLL for (int h = 0; h < 2 * heads; h++) {                                                                \
        vec given[wide];                                                                                        \
        UNROLL for (int j = 0; j < wide; j++) given[j] = load(side + h * a->channels + c + j * V);              \
        UNROLL for (int i = 0; i < KEYS; i++)                                                                   \
            UNROLL for (int j = 0; j < wide; j++) sums[i][j] += factor[(k + i) * 2 * heads + h] * given[j];     \
    }                                                                                                           \
    UNROLL for (int i = 0; i < KEYS; i++)                                                                       \
        UNROLL for (int j = 0; j < wide; j++) store(out[k + i] + c + j * V, sums[i][j]);
            if (two) { SPREAD(2) } else { SPREAD(1) }
            c += two ? 2 * V : V;
        }
}

/* The rows of relations that neighbours' factors make of the sides: [heads 2, channels]. */
APART void spread(const struct attention *a, long count, const float *factor, const float *side, float *const *out)
{
    BY_HEADS(spread_of, count, factor, side, out)
}

/* Gradients of what belongs to queries; `score` becomes that of scores, [queries, neighbours, heads], and
 * `partial` sums of those of matrices, [PARTS, 2, heads, width, channels], of values first. */
static void to_queries(const struct attention *a, const float *gradient, const float *weight, float *score,
                       float *grad_query, float *grad_relation, float *partial, int threads)
{
    const long heads = a->heads, all = heads * a->width, pitch = a->width < V ? V : a->width, K = a->neighbours;
    const long C = a->channels;
    const long matrices = 2 * all * C, each = (a->queries + PARTS - 1) / PARTS;
    float *to_key_t = turned(a, a->to_key, pitch);
    memset(partial, 0, PARTS * matrices * sizeof *partial);
#pragma omp parallel num_threads(threads)
    {
        struct kept kept = room_for(K);
        const size_t block = BLOCK * heads * C * sizeof(float);
        float *of_key = allocated(block), *of_value = allocated(block);
        float *seen_key = allocated(block), *seen_value = allocated(block);
        float *back = allocated(BLOCK * heads * pitch * sizeof *back), *side = allocated(2 * heads * C * sizeof *side);
        float *weights = allocated(ROOM(K) * heads * sizeof *weights);
        float *grad = allocated(BLOCK * ROOM(K) * heads * sizeof *grad);
        float *factor = allocated(ROOM(K) * 2 * heads * sizeof *factor);
        float *nowhere = allocated(C * sizeof *nowhere), **rows = allocated(ROOM(K) * sizeof *rows);
#pragma omp for schedule(dynamic)
        for (long part = 0; part < PARTS; part++)
            for (long first = part * each; first < least(a->queries, (part + 1) * each); first += BLOCK) {
                const long some = least(BLOCK, least(a->queries, (part + 1) * each) - first);
                const float *query = a->query + first * all, *given = gradient + first * all;
                by_head(a, some, query, a->to_key, of_key);
                by_head(a, some, given, a->to_value, of_value);
                for (long q = 0; q < some; q++) {
                    const long at = (first + q) * K;
                    float *mine = grad + q * ROOM(K) * heads;
                    keep(a, first + q, &kept);
                    const long end = kept.count * heads;
                    for (long k = 0; k < kept.count; k++)
                        memcpy(weights + k * heads, weight + (at + kept.number[k]) * heads, heads * sizeof *weights);
                    for (long i = end; i % V; i++) weights[i] = 0;
                    scores(a, &kept, of_value + q * heads * C, given + q * all, all, mine);
                    softmax_gradient(heads, kept.count, weights, mine);
                    weighted(a, &kept, weights, seen_value + q * heads * C);
                    weighted(a, &kept, mine, seen_key + q * heads * C);
                    memset(score + at * heads, 0, K * heads * sizeof *score);
                    for (long k = 0; k < K; k++)
                        if (!a->mask[at + k]) memset(grad_relation + (at + k) * C, 0, C * sizeof *grad_relation);
                    for (long k = 0; k < kept.count; k++) {
                        memcpy(score + (at + kept.number[k]) * heads, mine + k * heads, heads * sizeof *score);
                        memcpy(factor + 2 * k * heads, weights + k * heads, heads * sizeof *factor);
                        memcpy(factor + (2 * k + 1) * heads, mine + k * heads, heads * sizeof *factor);
                        rows[k] = grad_relation + (at + kept.number[k]) * C;
                    }
                    for (long k = kept.count; k % KEYS; k++) {
                        memset(factor + 2 * k * heads, 0, 2 * heads * sizeof *factor);
                        rows[k] = nowhere;
                    }
                    memcpy(side, of_value + q * heads * C, heads * C * sizeof *side);
                    memcpy(side + heads * C, of_key + q * heads * C, heads * C * sizeof *side);
                    spread(a, kept.count, factor, side, rows);
                }
                back_by_head(a, some, seen_key, to_key_t, back, pitch);
                for (long q = 0; q < some; q++) {
                    keep(a, first + q, &kept);
                    weighted_own(a, &kept, grad + q * ROOM(K) * heads, 0, back + q * heads * pitch, pitch,
                                 grad_query + (first + q) * all);
                }
                for (long h = 0; h < heads; h++)
                    for (int keys = 0; keys < 2; keys++) {
                        float *sum = partial + part * matrices + keys * all * C + h * a->width * C;
                        products(a->width, some, (keys ? query : given) + h * a->width, 1, all,
                                 (keys ? seen_key : seen_value) + h * C, heads * C, sum, C, sum, C, C);
                    }
            }
        leave(kept);
        free(of_key), free(of_value), free(seen_key), free(seen_value), free(back), free(side), free(weights);
        free(grad), free(factor), free(nowhere), free(rows);
    }
    for (long part = 1; part < PARTS; part++)
        for (long i = 0; i < matrices; i += V)
            store(partial + i, load(partial + i) + load(partial + part * matrices + i));
    free(to_key_t);
}

INLINE void to_source_of(const int heads, const int half, const struct attention *a, long count, const long *pair,
                         const float *factor, const float *rows, float *out)
{
    for (long d = 0; d < a->width; d += V) {
        vec sums[8] = {0};
        for (long i = 0; i < count; i++) {
            const float *mine = factor + pair[i] * heads, *row = rows + pair[i] / a->neighbours * heads * a->width + d;
            UNROLL for (int h = 0; h < heads; h++) sums[h] += mine[h] * own(half, row + h * a->width);
        }
        UNROLL for (int h = 0; h < heads; h++) keep_own(half, out + h * a->width + d, sums[h]);
    }
}

/* Half a row of the gradient of sources. */
APART void to_source(const struct attention *a, long count, const long *pair, const float *factor, const float *rows,
                     float *out)
{
    BY_HEADS(to_source_of, count, pair, factor, rows, out)
}

/* Gradients of sources: of a row what the queries give that it is a neighbour of, in order. */
static void to_sources(const struct attention *a, const float *gradient, const float *weight, const float *score,
                       float *out, long sources, int threads)
{
    const long pairs = a->queries * a->neighbours;
    long *begin = allocated((sources + 2) * sizeof *begin), *pair = allocated((pairs + 1) * sizeof *pair);
    memset(begin, 0, (sources + 2) * sizeof *begin);
    for (long p = 0; p < pairs; p++)
        if (a->mask[p]) begin[a->index[p] + 2]++;
    for (long n = 2; n < sources + 2; n++) begin[n] += begin[n - 1];
    for (long p = 0; p < pairs; p++)
        if (a->mask[p]) pair[begin[a->index[p] + 1]++] = p;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 16)
    for (long n = 0; n < sources; n++)
        for (int values = 0; values < 2; values++) {
            const float *factor = values ? weight : score, *rows = values ? gradient : a->query;
            to_source(a, begin[n + 1] - begin[n], pair + begin[n], factor, rows,
                      out + (2 * n + values) * a->heads * a->width);
        }
    free(begin), free(pair);
}

void attention_gradients(const struct attention *a, const float *gradient, const float *weight, float *score,
                         float *grad_query, float *grad_relation, float *partial, float *grad_sources, long sources,
                         int threads)
{
    to_queries(a, gradient, weight, score, grad_query, grad_relation, partial, threads);
    to_sources(a, gradient, weight, score, grad_sources, sources, threads);
}

/* ---- Relations ---- */

#define ROWS 64 /* pairs whose values stay in the cache from layer to layer */

/* A feature, and the MLP of its cosines and sines. */
struct feature {
    long width, bands, count;
    const float *values;    /* of the first pair */
    const float *frequency; /* [width, bands] */
    const float *first, *bias, *scale, *shift, *second; /* [channels, 2 bands + width], ..., [channels, channels] */
    const int64_t *rows;    /* [count]: the pairs that it is computed for, in order; none: all */
    float *kept;            /* of the first layer, if it is kept, [pairs, channels] */
};

struct relations {
    long pairs, channels, features, numbers, entries; /* numbers: of all features of a pair */
    const float *table;   /* [., channels] */
    const int64_t *entry; /* rows of the table, [pairs, entries], */
    const float *share;   /* and their shares; none: 1 */
    const int64_t *place; /* rows of `out` [pairs]; none: in order */
    const float *scale, *shift, *weight, *bias; /* of the last layers; [channels, channels] */
    float *sum, *deviation, *out; /* [pairs, channels], [pairs], if they are kept; [., channels] */
    double eps;
};

/* Add a bias, and normalise; with a scale and a shift, that are followed by ReLU. */
APART float normalise(long channels, float eps, float *x, const float *bias, const float *scale, const float *shift,
                      float *out)
{
    vec total = {0}, squares = {0};
    for (long c = 0; c < channels; c += V) {
        const vec one = bias ? load(x + c) + load(bias + c) : load(x + c);
        store(x + c, one);
        total += one;
    }
    const float mean = sum_of(total) / channels;
    for (long c = 0; c < channels; c += V) {
        const vec one = load(x + c) - mean;
        squares += one * one;
    }
    const float deviation = 1 / sqrtf(sum_of(squares) / channels + eps);
    for (long c = 0; c < channels; c += V) {
        const vec one = (load(x + c) - mean) * deviation;
        store(out + c, scale ? larger(all(0), one * load(scale + c) + load(shift + c)) : one);
    }
    return deviation;
}

/* Cosines and sines of a feature, and its numbers; frequencies are padded to whole vectors. */
APART void waves(long width, long bands, const float *frequency, const float *values, float *out)
{
    const long padded = (bands + V - 1) / V * V;
    for (long b = 0; b < padded; b += V) {
        vec turns = {0}, cosine, sine;
        for (long i = 0; i < width; i++) turns += values[i] * load(frequency + i * padded + b);
        circle(turns, &cosine, &sine);
        store(out + b, cosine);
        store(out + padded + b, sine);
    }
    if (padded != bands) memmove(out + bands, out + padded, bands * sizeof *out);
    memcpy(out + 2 * bands, values, width * sizeof *out);
}

#define PANEL (WIDE * V) /* channels whose weights stay in the nearest cache */

/* A weight [channels, inner], transposed, panel by panel. */
static float *panels(const float *weight, long channels, long inner)
{
    float *out = allocated(channels * inner * sizeof *out);
    for (long at = 0; at < channels; at += PANEL) {
        const long wide = least(PANEL, channels - at);
        for (long c = 0; c < wide; c++)
            for (long i = 0; i < inner; i++) out[at * inner + i * wide + c] = weight[(at + c) * inner + i];
    }
    return out;
}

/* Products with the rows of a weight, or what they add. */
APART void linear(int add, long rows, long inner, const float *a, long pitch, const float *panels, float *c,
                  long channels)
{
    for (long at = 0; at < channels; at += PANEL) {
        const long wide = least(PANEL, channels - at);
        products(rows, inner, a, pitch, 1, panels + at * inner, wide, add ? c + at : NULL, channels, c + at, channels,
                 wide);
    }
}

/* Sums of rows of the table. */
APART void bags(const struct relations *r, long first, long count, float *out)
{
    memset(out, 0, count * r->channels * sizeof *out);
    for (long i = first * r->entries; i < (first + count) * r->entries; i++) {
        const float factor = r->share ? r->share[i] : 1, *mine = r->table + r->entry[i] * r->channels;
        float *made = out + (i / r->entries - first) * r->channels;
        if (factor != 0)
            for (long c = 0; c < r->channels; c += V) store(made + c, load(made + c) + factor * load(mine + c));
    }
}

void relations(const struct relations *r, const struct feature *features, int threads)
{
    const long C = r->channels;
    long widest = 0, most = 0;
    for (long f = 0; f < r->features; f++) {
        const long padded = (features[f].bands + V - 1) / V * V;
        if (padded > widest) widest = padded;
        if (features[f].width > most) most = features[f].width;
    }
    const long pitch = 2 * widest + most + V, apart = most * widest;
    float *weight = panels(r->weight, C, C), **first = allocated((2 * r->features + 1) * sizeof *first);
    float **second = first + r->features;
    float *frequency = allocated((r->features * apart + V) * sizeof *frequency);
    memset(frequency, 0, (r->features * apart + V) * sizeof *frequency);
    for (long f = 0; f < r->features; f++) {
        const long bands = features[f].bands, padded = (bands + V - 1) / V * V;
        for (long i = 0; i < features[f].width; i++)
            memcpy(frequency + f * apart + i * padded, features[f].frequency + i * bands, bands * sizeof *frequency);
        first[f] = panels(features[f].first, C, 2 * bands + features[f].width);
        second[f] = panels(features[f].second, C, C);
    }
#pragma omp parallel num_threads(threads)
    {
        float *total = allocated(ROWS * C * sizeof *total), *made = allocated(ROWS * C * sizeof *made);
        float *given = allocated(ROWS * C * sizeof *given), *wave = allocated(ROWS * pitch * sizeof *wave);
#pragma omp for schedule(dynamic)
        for (long start = 0; start < r->pairs; start += ROWS) {
            const long some = least(ROWS, r->pairs - start);
            bags(r, start, some, total);
            for (long number = 0; number < r->features; number++) {
                const struct feature *f = features + number;
                long begin = 0, count = some;
                if (f->rows) {
                    for (long end = f->count; begin < end;) {
                        const long middle = (begin + end) / 2;
                        if (f->rows[middle] < start) begin = middle + 1;
                        else end = middle;
                    }
                    for (count = 0; begin + count < f->count && f->rows[begin + count] < start + some;) count++;
                }
                for (long i = 0; i < count; i++)
                    waves(f->width, f->bands, frequency + number * apart,
                          f->values + (f->rows ? f->rows[begin + i] : start + i) * r->numbers, wave + i * pitch);
                linear(0, count, 2 * f->bands + f->width, wave, pitch, first[number], made, C);
                for (long i = 0; i < count; i++)
                    normalise(C, r->eps, made + i * C, f->bias, f->scale, f->shift, given + i * C);
                if (f->kept) memcpy(f->kept + start * C, made, count * C * sizeof *made);
                linear(!f->rows, count, C, given, C, second[number], f->rows ? made : total, C);
                for (long i = 0; f->rows && i < count; i++) {
                    float *mine = total + (f->rows[begin + i] - start) * C;
                    for (long c = 0; c < C; c += V) store(mine + c, load(mine + c) + load(made + i * C + c));
                }
            }
            if (r->sum) memcpy(r->sum + start * C, total, some * C * sizeof *total);
            for (long i = 0; i < some; i++)
                normalise(C, r->eps, total + i * C, NULL, r->scale, r->shift, given + i * C);
            linear(0, some, C, given, C, weight, made, C);
            for (long i = 0; i < some; i++) {
                float *out = r->out + (r->place ? r->place[start + i] : start + i) * C;
                const float deviation = normalise(C, r->eps, made + i * C, r->bias, NULL, NULL, out);
                if (r->deviation) r->deviation[start + i] = deviation;
            }
        }
        free(total), free(made), free(given), free(wave);
    }
    for (long f = 0; f < 2 * r->features; f++) free(first[f]);
    free(frequency), free(weight), free(first);
}

int vector(void) { return V; }
int parts(void) { return PARTS; }
