/* Vectors of float32 for kernels, and products with small matrices: what `native.py` compiles may include it. */

#ifdef __AVX512F__
#include <immintrin.h>
#endif
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#define V 16   /* numbers of a vector */
#define WIDE 4 /* vectors side by side that registers hold */
#define TALL 6 /* in so many rows */
#else
#define V 8
#define WIDE 2
#define TALL 4
#endif
#define INLINE static inline __attribute__((always_inline))
#define APART static __attribute__((noinline)) /* with all registers for itself */
#define UNROLL _Pragma("GCC unroll 16")

typedef float vec __attribute__((vector_size(4 * V)));
typedef int32_t ints __attribute__((vector_size(4 * V)));
typedef uint32_t bits __attribute__((vector_size(4 * V)));

INLINE vec load(const float *p) { vec x; memcpy(&x, p, sizeof x); return x; }
INLINE void store(float *p, vec x) { memcpy(p, &x, sizeof x); }
INLINE vec all(float x) { return x - (vec){0}; }
INLINE vec either(ints where, vec a, vec b) { return (vec)((where & (ints)a) | (~where & (ints)b)); }
#ifdef __AVX512F__
/* Of two, the second where one is no number. */
INLINE vec smaller(vec a, vec b) { return (vec)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vec larger(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
/* An estimate, and a step of Newton's method: a third of the time of a division. */
INLINE vec inverse(vec x) { vec y = (vec)_mm512_rcp14_ps((__m512)x); return y * (2.0f - x * y); }
#else
INLINE vec smaller(vec a, vec b) { return either(a < b, a, b); }
INLINE vec larger(vec a, vec b) { return either(a > b, a, b); }
INLINE vec inverse(vec x) { return 1.0f / x; }
#endif
INLINE long least(long a, long b) { return a < b ? a : b; }
#define FOR(j, end) for (long j = 0; j < (end); j += V)

static void *allocated(size_t bytes)
{
    void *made = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!made) abort();
    return made;
}

/* To 1e-7 of the result; 0 below -87. What is no number stays none. Polynomials here are fitted for the least relative
 * error, of 4e-9 and less. */
INLINE vec exponential(vec x)
{
    const float powers[] = {0.49999994f, 0.1666652f, 0.041668393f, 0.008368781f, 0.0013814467f};
    const vec shifted = smaller(all(88), larger(all(-87), x)) * 1.44269504f + 12582912.0f;
    const vec whole = shifted - 12582912.0f; /* whole numbers are the last digits */
    const vec part = x - whole * 0.6923828125f - whole * 0.00076436804f;
    vec made = all(powers[4]);
    UNROLL for (int i = 3; i >= 0; i--) made = made * part + powers[i];
    made = made * part * part + part + 1.0f;
    made = (vec)(((bits)shifted << 23) + (bits)made);
    return either(x != x, x, either(x < -87, all(0), made));
}

/* Vectors of the numbers that f gives for each place. */
#if V == 16
#define PLACES(f, bit) ((ints){f(0, bit), f(1, bit), f(2, bit), f(3, bit), f(4, bit), f(5, bit), f(6, bit), f(7, bit), \
    f(8, bit), f(9, bit), f(10, bit), f(11, bit), f(12, bit), f(13, bit), f(14, bit), f(15, bit)})
#else
#define PLACES(f, bit) ((ints){f(0, bit), f(1, bit), f(2, bit), f(3, bit), f(4, bit), f(5, bit), f(6, bit), f(7, bit)})
#endif
#define OWN(j, bit) ((j) & (bit) ? V + (j) : (j))
#define OTHER(j, bit) ((j) & (bit) ? V + (j) - (bit) : (j) + (bit))
#define ACROSS(j, bit) (((j) ^ (bit)) % V)

/* Number j of the result is the sum of the numbers of vector j. */
INLINE vec sums_of(vec *x)
{
#define FOLD(bit)                                                                                                \
    UNROLL for (int i = 0; i < V; i += 2 * bit)                                                                  \
        x[i] = __builtin_shuffle(x[i], x[i + bit], PLACES(OWN, bit)) +                                           \
               __builtin_shuffle(x[i], x[i + bit], PLACES(OTHER, bit));
    FOLD(1) FOLD(2) FOLD(4)
#if V == 16
    FOLD(8)
#endif
#undef FOLD
    return x[0];
}

/* Sum of its numbers. */
INLINE float sum_of(vec x)
{
    x += __builtin_shuffle(x, PLACES(ACROSS, 1));
    x += __builtin_shuffle(x, PLACES(ACROSS, 2));
    x += __builtin_shuffle(x, PLACES(ACROSS, 4));
    if (V > 8) x += __builtin_shuffle(x, PLACES(ACROSS, 8));
    return x[0];
}

/* Cosine and sine of so many turns, below a million, to 1e-7. */
INLINE void circle(vec turns, vec *cosine, vec *sine)
{
    const vec shifted = turns * 4.0f + 12582912.0f; /* quarters are the last digits */
    const vec x = (turns - (shifted - 12582912.0f) * 0.25f) * 6.283185307f, square = x * x;
    const vec s = ((-1.9514632e-4f * square + 8.3321556e-3f) * square - 1.6666655e-1f) * square * x + x;
    const vec c = ((2.443773e-5f * square - 1.3887362e-3f) * square + 4.1666646e-2f) * square * square -
                  0.5f * square + 1.0f;
    const ints quarter = (ints)shifted, swapped = -(quarter & 1);
    *cosine = (vec)((ints)either(swapped, s, c) ^ ((quarter + 1) << 30 & INT32_MIN));
    *sine = (vec)((ints)either(swapped, c, s) ^ (quarter << 30 & INT32_MIN));
}

/* ---- Products with small matrices ---- */

INLINE void tile(const int rows, const int wide, long inner, const float *a, long row, long column, const float *b,
                 long pitch_b, const float *begin, long pitch_begin, float *c, long pitch_c)
{
    vec sums[TALL][WIDE];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < wide; j++) sums[i][j] = begin ? load(begin + i * pitch_begin + j * V) : all(0);
    for (long k = 0; k < inner; k++) {
        vec given[WIDE];
        UNROLL for (int j = 0; j < wide; j++) given[j] = load(b + k * pitch_b + j * V);
        UNROLL for (int i = 0; i < rows; i++) {
            const float factor = a[i * row + k * column];
            UNROLL for (int j = 0; j < wide; j++) sums[i][j] += factor * given[j];
        }
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < wide; j++) store(c + i * pitch_c + j * V, sums[i][j]);
}

/* C = begin + A B. Columns of B and C are a multiple of V; those of A lie `column` numbers apart, rows `row`. */
INLINE void products(long rows, long inner, const float *a, long row, long column, const float *b, long pitch_b,
                     const float *begin, long pitch_begin, float *c, long pitch_c, long columns)
{
    for (long at = 0; at < columns;) {
        const int wide = at + WIDE * V <= columns;
#define TILE(tall, wide)                                                                                      \
    tile(least(tall, TALL), wide, inner, a + i * row, row, column, b + at, pitch_b, begin ? begin + i * pitch_begin + at : NULL, \
         pitch_begin, c + i * pitch_c + at, pitch_c)
        for (long i = 0; i < rows;) {
            const long left = rows - i, tiles = (left + TALL - 1) / TALL, some = (left + tiles - 1) / tiles;
            if (some == 6 && TALL >= 6) { if (wide) TILE(6, WIDE); else TILE(6, 1); }
            else if (some == 5 && TALL >= 5) { if (wide) TILE(5, WIDE); else TILE(5, 1); }
            else if (some == 4) { if (wide) TILE(4, WIDE); else TILE(4, 1); }
            else if (some == 3) { if (wide) TILE(3, WIDE); else TILE(3, 1); }
            else if (some == 2) { if (wide) TILE(2, WIDE); else TILE(2, 1); }
            else { if (wide) TILE(1, WIDE); else TILE(1, 1); }
            i += some;
        }
        at += wide ? WIDE * V : V;
    }
}

static void product(long rows, long inner, const float *a, long pitch_a, const float *b, long pitch_b, float *c,
                    long pitch_c, long columns)
{
    products(rows, inner, a, pitch_a, 1, b, pitch_b, NULL, 0, c, pitch_c, columns);
}
