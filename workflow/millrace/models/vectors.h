/* Vectors of float32 for kernels, and products with small matrices: what `native.py` compiles may include it. */

#ifdef __AVX512F__
#include <immintrin.h>
#endif
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#define V 16   /* numbers of a vector */
#define WIDE 4 /* vectors side by side that registers hold, for four rows */
#else
#define V 8
#define WIDE 2
#endif
#define TALL 4
#define INLINE static inline __attribute__((always_inline))
#define APART static __attribute__((noinline)) /* with all registers for itself */
#define UNROLL _Pragma("GCC unroll 16")

typedef float vec __attribute__((vector_size(4 * V)));
typedef int32_t ints __attribute__((vector_size(4 * V)));

INLINE vec load(const float *p) { vec x; memcpy(&x, p, sizeof x); return x; }
INLINE void store(float *p, vec x) { memcpy(p, &x, sizeof x); }
INLINE vec all(float x) { return x - (vec){0}; }
INLINE vec either(ints where, vec a, vec b) { return (vec)((where & (ints)a) | (~where & (ints)b)); }
#ifdef __AVX512F__
/* Of two, the second where one is no number. */
INLINE vec smaller(vec a, vec b) { return (vec)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vec larger(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
#else
INLINE vec smaller(vec a, vec b) { return either(a < b, a, b); }
INLINE vec larger(vec a, vec b) { return either(a > b, a, b); }
#endif
INLINE long least(long a, long b) { return a < b ? a : b; }

static void *memory(size_t bytes)
{
    void *made = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!made) abort();
    return made;
}

/* To 1e-7 of the result; 0 below -87. What is no number stays none. */
INLINE vec exponential(vec x)
{
    const float powers[] = {5.0000001201e-1f, 1.6666665459e-1f, 4.1665795894e-2f,
                            8.3334519073e-3f, 1.3981999507e-3f, 1.9875691500e-4f};
    const vec shifted = smaller(all(88), larger(all(-87), x)) * 1.44269504f + 12582912.0f;
    const vec whole = shifted - 12582912.0f; /* whole numbers are the last digits */
    const vec part = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    vec made = all(powers[5]);
    UNROLL for (int i = 4; i >= 0; i--) made = made * part + powers[i];
    made = made * part * part + part + 1.0f;
    made = (vec)(((ints)shifted << 23) + (ints)made);
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
    const vec s = ((-1.9515295891e-4f * square + 8.3321608736e-3f) * square - 1.6666654611e-1f) * square * x + x;
    const vec c = ((2.443315711809948e-5f * square - 1.388731625493765e-3f) * square + 4.166664568298827e-2f) *
                      square * square - 0.5f * square + 1.0f;
    const ints quarter = (ints)shifted, swapped = -(quarter & 1);
    *cosine = (vec)((ints)either(swapped, s, c) ^ ((quarter + 1) << 30 & INT32_MIN));
    *sine = (vec)((ints)either(swapped, c, s) ^ (quarter << 30 & INT32_MIN));
}

/* ---- Products with small matrices ---- */

INLINE void tile(const int rows, const int wide, const int add, long inner, const float *a, long pitch_a, long step_a,
                 const float *b, long pitch_b, float *c, long pitch_c)
{
    vec sums[5][WIDE];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < wide; j++) sums[i][j] = add ? load(c + i * pitch_c + j * V) : all(0);
    for (long k = 0; k < inner; k++) {
        vec given[WIDE];
        UNROLL for (int j = 0; j < wide; j++) given[j] = load(b + k * pitch_b + j * V);
        UNROLL for (int i = 0; i < rows; i++) {
            const float factor = a[i * pitch_a + k * step_a];
            UNROLL for (int j = 0; j < wide; j++) sums[i][j] += factor * given[j];
        }
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < wide; j++) store(c + i * pitch_c + j * V, sums[i][j]);
}

INLINE void tiles(const int rows, const int add, long inner, const float *a, long pitch_a, long step_a, const float *b,
                  long pitch_b, float *c, long pitch_c, long columns)
{
    long at = 0;
    for (; at + WIDE * V <= columns; at += WIDE * V)
        tile(rows, WIDE, add, inner, a, pitch_a, step_a, b + at, pitch_b, c + at, pitch_c);
    for (; at < columns; at += V) tile(rows, 1, add, inner, a, pitch_a, step_a, b + at, pitch_b, c + at, pitch_c);
}

/* C = A B, or C += A B, of A [rows, inner], whose numbers are so far apart; columns are a multiple of V. */
INLINE void products(const int add, long rows, long inner, const float *a, long pitch_a, long step_a, const float *b,
                     long pitch_b, float *c, long pitch_c, long columns)
{
    while (rows > 0) {
        const int some = rows == 5 ? 5 : rows < TALL ? rows : TALL;
#define TILES(some) tiles(some, add, inner, a, pitch_a, step_a, b, pitch_b, c, pitch_c, columns)
        if (some == 5) TILES(5);
        else if (some == 4) TILES(4);
        else if (some == 3) TILES(3);
        else if (some == 2) TILES(2);
        else TILES(1);
#undef TILES
        rows -= some, a += some * pitch_a, c += some * pitch_c;
    }
}
