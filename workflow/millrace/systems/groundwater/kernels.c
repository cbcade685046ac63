/* What neural operators compute on a CPU, in float32: GELU, Fourier transforms of few modes, products of
 * modes, sums over neighbours. `kernels.py` says what the functions take. Numbers are summed in the same order
 * by any number of threads.
 */

#include "vectors.h"

/* ---- GELU ---- */

#define BESIDE 4 /* vectors that wait for their numbers at the same time */
#define EVERY UNROLL for (int u = 0; u < BESIDE; u++)

/* Replace x by GELU(x), and give its slope, to 1e-6 of the largest of either.
 *
 * With the ratio of Mills, R(t) = Phi(-t) / phi(t), one exponential gives the density phi of the normal
 * distribution and its integral Phi. R is a polynomial in 1 / (1 + 0.28 t), fitted on [0, 13]; phi is a power of
 * two, whose fraction is one of degree 5. What is no number stays none. */
INLINE void gelu_of(vec *x, vec *slope)
{
    const float mills[] = {-0.0016701121f, 0.3049535f, 0.1287278f, 0.74042696f, -0.6540467f, 1.0056084f,
                           -0.27068564f};
    const float powers[] = {0.39894232f, 0.27652562f, 0.09583438f, 0.022144146f, 0.003860028f, 0.00052965f};
    vec t[BESIDE], w[BESIDE], shifted[BESIDE], part[BESIDE], phi[BESIDE], tail[BESIDE];
    EVERY t[u] = (vec)((ints)x[u] & 0x7fffffff);
    EVERY t[u] = smaller(all(13), t[u]);
    EVERY w[u] = inverse(t[u] * 0.28f + 1.0f);
    EVERY part[u] = t[u] * t[u] * -0.72134751f; /* log2(e) / 2 */
    EVERY shifted[u] = part[u] + 12582912.0f; /* whole numbers are its last digits */
    EVERY part[u] -= shifted[u] - 12582912.0f;
    EVERY phi[u] = all(powers[5]);
    UNROLL for (int i = 4; i >= 0; i--) EVERY phi[u] = phi[u] * part[u] + powers[i];
    EVERY phi[u] = (vec)(((bits)shifted[u] << 23) + (bits)phi[u]);
    EVERY tail[u] = all(mills[6]);
    UNROLL for (int i = 5; i >= 0; i--) EVERY tail[u] = tail[u] * w[u] + mills[i];
    EVERY tail[u] *= phi[u];
    EVERY {
        const vec falling = tail[u] - t[u] * phi[u];
        slope[u] = either(x[u] < 0, falling, 1.0f - falling);
    }
    EVERY x[u] = larger(all(0), x[u]) - t[u] * tail[u];
}

/* The next numbers, and zeros where they end. */
INLINE void some(const float *p, long count, vec *x)
{
    if (count >= BESIDE * V) EVERY x[u] = load(p + u * V);
    else {
        float kept[BESIDE * V] = {0};
        memcpy(kept, p, count * sizeof *p);
        EVERY x[u] = load(kept + u * V);
    }
}

INLINE void keep(float *p, long count, const vec *x)
{
    if (count >= BESIDE * V) EVERY store(p + u * V, x[u]);
    else {
        float kept[BESIDE * V];
        EVERY store(kept + u * V, x[u]);
        memcpy(p, kept, count * sizeof *p);
    }
}

static void gelu_twice(const float *x, float *out, long count)
{
    for (long at = 0; at < count; at += BESIDE * V) {
        vec values[BESIDE], slopes[BESIDE];
        some(x + at, count - at, values);
        gelu_of(values, slopes);
        gelu_of(values, slopes);
        keep(out + at, count - at, values);
    }
}

/* Gradient of the input of `gelu_twice`. */
static void gelu_twice_gradient(const float *x, const float *gradient, float *out, long count)
{
    for (long at = 0; at < count; at += BESIDE * V) {
        vec values[BESIDE], first[BESIDE], second[BESIDE], given[BESIDE];
        some(x + at, count - at, values);
        gelu_of(values, first);
        gelu_of(values, second);
        some(gradient + at, count - at, given);
        EVERY given[u] *= first[u] * second[u];
        keep(out + at, count - at, given);
    }
}

/* ---- Networks of linear layers with GELU between them ---- */

struct layer {
    int32_t in, out;            /* channels */
    int32_t in_wide, out_wide;  /* up to the next multiple of V: what is more are zeros */
    const float *forward;       /* weights [in, out_wide] */
    const float *backward;      /* [out, in_wide] */
    const float *bias;          /* [out_wide] */
};

#define CHUNKS 32 /* of rows at most, whose gradients are summed apart and in their order */
#define SHORT 8   /* tiles whose sum is added to that of a chunk: long sums would lose digits */

/* Widest layer, and rows whose values of it stay near until the last layer is done. */
static long rows_at_once(const struct layer *layers, int count, long *widest)
{
    *widest = layers[0].in_wide;
    for (int l = 0; l < count; l++)
        if (layers[l].out_wide > *widest) *widest = layers[l].out_wide;
    const long rows = 8192 / *widest;
    return rows < 16 ? 16 : rows > 128 ? 128 : rows;
}

/* GELU of numbers, in place or not, and slopes if they are wanted. */
static void activate(const float *x, float *out, float *slopes, long count)
{
    for (long at = 0; at < count; at += BESIDE * V) {
        vec values[BESIDE], slope[BESIDE];
        some(x + at, count - at, values);
        gelu_of(values, slope);
        keep(out + at, count - at, values);
        if (slopes) keep(slopes + at, count - at, slope);
    }
}

static void copy_rows(const float *from, long pitch_from, float *to, long pitch_to, long rows, long columns)
{
    for (long i = 0; i < rows; i++) memcpy(to + i * pitch_to, from + i * pitch_from, columns * sizeof *to);
}

static void forward(const struct layer *layer, long rows, const float *a, long pitch, float *out)
{
    products(rows, layer->in, a, pitch, 1, layer->forward, layer->out_wide, layer->bias, 0, out, layer->out_wide,
             layer->out_wide);
}

/* Rows [rows, out] of rows x [rows, in], or if `activated` of GELU of them. */
void network(const struct layer *layers, int count, const float *x, int activated, float *out, long rows, int threads)
{
    long widest;
    const long step = rows_at_once(layers, count, &widest), in = layers->in, made = layers[count - 1].out;
#pragma omp parallel num_threads(threads)
    {
        float *one = allocated(sizeof(float) * 2 * step * widest), *other = one + step * widest;
#pragma omp for schedule(static)
        for (long at = 0; at < rows; at += step) {
            const long some = least(step, rows - at);
            const float *a = x + at * in;
            long pitch = in;
            if (activated) { activate(a, other, NULL, some * in); a = other; }
            for (int l = 0; l < count; l++) {
                float *b = a == one ? other : one;
                forward(layers + l, some, a, pitch, b);
                if (l + 1 < count) activate(b, b, NULL, some * layers[l].out_wide);
                a = b, pitch = layers[l].out_wide;
            }
            copy_rows(a, pitch, out + at * made, made, some, made);
        }
        free(one);
    }
}

/* Numbers of the gradients of all layers: weights [in, out_wide], bias [out_wide]. */
long network_gradients_size(const struct layer *layers, int count)
{
    long size = 0;
    for (int l = 0; l < count; l++) size += (layers[l].in + 1L) * layers[l].out_wide;
    return size;
}

/* Add gradients of layers by some rows to `sums`; those of x, unless they are NULL. */
static void tile_gradients(const struct layer *layers, int count, const float *x, int activated, const float *g,
                           float *grad_x, long rows, float *memory, long block, float *sums)
{
    const long in = layers->in, made = layers[count - 1].out, made_wide = layers[count - 1].out_wide;
    const float *values[count];
    float *slopes[count], *one = memory + 2 * count * block, *other = one + block;
    values[0] = x;
    if (activated) {
        values[0] = memory, slopes[0] = memory + block;
        activate(x, memory, slopes[0], rows * in);
    }
    for (int l = 1; l < count; l++) {
        float *h = memory + 2 * l * block;
        values[l] = h, slopes[l] = h + block;
        forward(layers + l - 1, rows, values[l - 1], l == 1 ? in : layers[l - 1].in_wide, h);
        activate(h, h, slopes[l], rows * layers[l].in_wide);
    }
    if (made_wide > made) memset(one, 0, rows * made_wide * sizeof *one);
    copy_rows(g, made, one, made_wide, rows, made);
    for (int l = count - 1; l >= 0; l--) {
        const long wide = layers[l].out_wide, before = l ? layers[l].in_wide : in;
        sums -= (layers[l].in + 1) * wide; /* which begins behind the last layer */
        products(layers[l].in, rows, values[l], 1, before, one, wide, sums, wide, sums, wide, wide);
        float *bias = sums + layers[l].in * wide;
        for (long i = 0; i < rows; i++) FOR(j, wide) store(bias + j, load(bias + j) + load(one + i * wide + j));
        if (!l && !grad_x) break;
        product(rows, layers[l].out, one, wide, layers[l].backward, layers[l].in_wide, other, layers[l].in_wide,
                layers[l].in_wide);
        if (!l) copy_rows(other, layers[l].in_wide, grad_x, in, rows, in);
        float *inner = l ? other : grad_x;
        if (l || activated)
            for (long j = 0; j < rows * before; j++) inner[j] *= slopes[l][j];
        other = one, one = inner;
    }
}

/* Gradients of x, unless they are NULL, and of layers, of the gradient g [rows, out]. What is between is computed
 * again. */
void network_gradients(const struct layer *layers, int count, const float *x, int activated, const float *g,
                       float *grad_x, float *gradients, long rows, int threads)
{
    long widest;
    const long step = rows_at_once(layers, count, &widest), size = network_gradients_size(layers, count);
    const long in = layers->in, made = layers[count - 1].out, block = step * widest;
    const long tiles = (rows + step - 1) / step, chunks = least(CHUNKS, (tiles + 3) / 4);
    float *sums = calloc(chunks * size + 1, sizeof *sums);
    if (!sums) abort();
#pragma omp parallel num_threads(threads)
    {
        float *memory = allocated(sizeof(float) * ((2 * count + 2) * block + size));
        float *part = memory + (2 * count + 2) * block;
#pragma omp for schedule(static)
        for (long chunk = 0; chunk < chunks; chunk++) {
            const long begin = chunk * tiles / chunks, end = (chunk + 1) * tiles / chunks;
            for (long t = begin; t < end; t++) {
                const long at = t * step, some = least(step, rows - at);
                if ((t - begin) % SHORT == 0) memset(part, 0, size * sizeof *part);
                tile_gradients(layers, count, x + at * in, activated, g + at * made, grad_x ? grad_x + at * in : NULL,
                               some, memory, block, part + size);
                if ((t - begin) % SHORT == SHORT - 1 || t + 1 == end)
                    for (long j = 0; j < size; j++) sums[chunk * size + j] += part[j];
            }
        }
        free(memory);
#pragma omp for schedule(static)
        for (long j = 0; j < size; j++) {
            float sum = 0;
            for (long chunk = 0; chunk < chunks; chunk++) sum += sums[chunk * size + j];
            gradients[j] = sum;
        }
    }
    free(sums);
}

/* ---- Fourier transforms ---- */

/* Points n and N - n of an axis share cosines, and but for the sign sines: their sum and difference are what
 * matrices of half the size are applied to, and so are waves of frequencies f and -f. */
struct axis {
    int32_t points, kept, waves, still;  /* waves: of unlike absolute frequency; still: whether the first is 0 */
    const int32_t *plus, *minus;         /* number of the mode of either sign, or -1 [waves] */
    const float *cosines, *sines;        /* [waves, points / 2 + 1], [waves - still, (points - 1) / 2] */
    const float *cosines_t, *sines_t;    /* transposed */
};

/* Sums and differences of the rows n and N - n of a. */
static void fold(int points, const float *a, long pitch, float *sums, float *differences, long columns)
{
    const int pairs = (points - 1) / 2;
    memcpy(sums, a, columns * sizeof *a);
    for (int n = 1; n <= pairs; n++) {
        const float *one = a + n * pitch, *other = a + (points - n) * pitch;
        FOR(j, columns) {
            store(sums + n * columns + j, load(one + j) + load(other + j));
            store(differences + (n - 1) * columns + j, load(one + j) - load(other + j));
        }
    }
    if (points % 2 == 0) memcpy(sums + points / 2 * columns, a + points / 2 * pitch, columns * sizeof *a);
}

/* Rows n and N - n from what they have in common, and what but for the sign. */
static void unfold(int points, const float *even, const float *odd, long columns, float *a, long pitch)
{
    memcpy(a, even, columns * sizeof *a);
    for (int n = 1; n <= (points - 1) / 2; n++)
        FOR(j, columns) {
            const vec e = load(even + n * columns + j), o = load(odd + (n - 1) * columns + j);
            store(a + n * pitch + j, e + o);
            store(a + (points - n) * pitch + j, e - o);
        }
    if (points % 2 == 0) memcpy(a + points / 2 * pitch, even + points / 2 * columns, columns * sizeof *a);
}

/* Modes [kept] of pairs of width numbers (real, imaginary) from real values. */
static void real_modes(const struct axis *axis, const float *values, long pitch, float *modes, float *scratch,
                       long width)
{
    const int half = axis->points / 2 + 1, pairs = (axis->points - 1) / 2;
    float *sums = scratch, *differences = sums + half * width;
    fold(axis->points, values, pitch, sums, differences, width);
    product(axis->waves, half, axis->cosines, half, sums, width, modes, 2 * width, width);
    if (axis->still) memset(modes + width, 0, width * sizeof *modes);
    product(axis->waves - axis->still, pairs, axis->sines, pairs, differences, width,
            modes + (1 + 2 * axis->still) * width, 2 * width, width);
}

/* Modes of pairs from values that are pairs; the imaginary parts of modes stand so far from the real ones. */
static void modes(const struct axis *axis, const float *values, long pitch, float *out, long pitch_out,
                  long imaginary, float *scratch, long width)
{
    const int half = axis->points / 2 + 1, pairs = (axis->points - 1) / 2;
    const long both = 2 * width;
    float *sums = scratch, *differences = sums + half * both, *even = differences + pairs * both,
          *odd = even + axis->waves * both;
    fold(axis->points, values, pitch, sums, differences, both);
    product(axis->waves, half, axis->cosines, half, sums, both, even, both, both);
    product(axis->waves - axis->still, pairs, axis->sines, pairs, differences, both, odd + axis->still * both, both,
            both);
    if (axis->still) memset(odd, 0, both * sizeof *odd);
    for (int a = 0; a < axis->waves; a++) {
        const float *e = even + a * both, *o = odd + a * both;
        float *plus = axis->plus[a] < 0 ? NULL : out + axis->plus[a] * pitch_out;
        float *minus = axis->minus[a] < 0 ? NULL : out + axis->minus[a] * pitch_out;
        FOR(j, width) {
            vec e_re = load(e + j), e_im = load(e + width + j), o_re = load(o + j), o_im = load(o + width + j);
            if (plus) { store(plus + j, e_re + o_im); store(plus + imaginary + j, e_im - o_re); }
            if (minus) { store(minus + j, e_re - o_im); store(minus + imaginary + j, e_im + o_re); }
        }
    }
}

/* Transpose of `modes`: values that are pairs, beside each other, from modes. */
static void values(const struct axis *axis, const float *in, long pitch, long imaginary, float *out,
                   long pitch_out, float *scratch, long width)
{
    const int half = axis->points / 2 + 1, pairs = (axis->points - 1) / 2, waves = axis->waves;
    const long both = 2 * width;
    float *sums = scratch, *turned = sums + waves * both, *even = turned + waves * both, *odd = even + half * both;
    for (int a = 0; a < waves; a++) {
        const float *plus = axis->plus[a] < 0 ? NULL : in + axis->plus[a] * pitch;
        const float *minus = axis->minus[a] < 0 ? NULL : in + axis->minus[a] * pitch;
        FOR(j, width) {
            vec p_re = {0}, p_im = {0}, m_re = {0}, m_im = {0};
            if (plus) { p_re = load(plus + j); p_im = load(plus + imaginary + j); }
            if (minus) { m_re = load(minus + j); m_im = load(minus + imaginary + j); }
            store(sums + a * both + j, p_re + m_re);
            store(sums + a * both + width + j, p_im + m_im);
            store(turned + a * both + j, m_im - p_im); /* times i */
            store(turned + a * both + width + j, p_re - m_re);
        }
    }
    product(half, waves, axis->cosines_t, waves, sums, both, even, both, both);
    product(pairs, waves - axis->still, axis->sines_t, waves - axis->still, turned + axis->still * both, both, odd, both,
            both);
    unfold(axis->points, even, odd, both, out, pitch_out);
}

/* Transpose of `real_modes`. */
static void real_values(const struct axis *axis, const float *in, float *out, long pitch_out, float *scratch,
                        long width)
{
    const int half = axis->points / 2 + 1, pairs = (axis->points - 1) / 2, waves = axis->waves;
    float *even = scratch, *odd = even + half * width;
    product(half, waves, axis->cosines_t, waves, in, 2 * width, even, width, width);
    product(pairs, waves - axis->still, axis->sines_t, waves - axis->still, in + (1 + 2 * axis->still) * width,
            2 * width, odd, width, width);
    unfold(axis->points, even, odd, width, out, pitch_out);
}

/* Memory between the axes: what lies along the first one, along the second, and what one axis takes. */
struct memory { float *grid, *row, *scratch; };

static struct memory memory_of(const struct axis *x, const struct axis *y, const struct axis *z, long channels)
{
    const long row = 2L * y->points * z->kept * channels, grid = 2L * x->points * y->kept * z->kept * channels;
    const struct axis *axes[] = {x, y, z};
    long scratch = 0;
    for (int i = 0; i < 3; i++) {
        const long mine = 2 * channels * (2L * axes[i]->points + 4 * axes[i]->waves + 4);
        scratch = mine > scratch ? mine : scratch;
    }
    float *all = allocated(sizeof(float) * (grid + row + scratch));
    return (struct memory){all, all + grid, all + grid + row};
}

#define NEAR 32 /* points whose products are summed at once */

/* Parts of modes [X', Y', Z', 2, B, C] of values [B, X, Y, Z, C]. With `before` [B, X, Y, Z, C] values are gradients of
 * what `gelu_twice` made of it, and what is transformed is the gradient of it, which is written to `inner`. With `beside`
 * [B, X, Y, Z, D] sums over points of its products with them are added to `weights` [B, C, D]. */
void to_modes(const struct axis *x, const struct axis *y, const struct axis *z, const float *in, const float *before,
              float *inner, const float *beside, long depth, float *weights, float *out, long samples, long channels,
              int threads)
{
    const long ky = y->kept, kz = z->kept, pair = 2 * channels, columns = samples * channels;
    const long line = z->points * channels, slab = y->points * line;
#pragma omp parallel num_threads(threads)
    {
        struct memory m = memory_of(x, y, z, channels);
#pragma omp for schedule(static)
        for (long b = 0; b < samples; b++) {
            for (long i = 0; i < x->points; i++) {
                const long at = (b * x->points + i) * slab;
                for (long j = 0; j < y->points; j++) {
                    const float *mine = in + at + j * line;
                    if (before) {
                        gelu_twice_gradient(before + at + j * line, mine, inner + at + j * line, line);
                        mine = inner + at + j * line;
                    }
                    real_modes(z, mine, channels, m.row + j * kz * pair, m.scratch, channels);
                }
                for (long n = 0; beside && n < y->points * z->points; n += NEAR) {
                    const long first = at / channels + n, some = least(NEAR, y->points * z->points - n);
                    float *sums = weights + b * channels * depth;
                    products(channels, some, (before ? inner : in) + first * channels, 1, channels,
                             beside + first * depth, depth, sums, depth, sums, depth, depth);
                }
                for (long k = 0; k < kz; k++)
                    modes(y, m.row + k * pair, kz * pair, m.grid + (i * ky * kz + k) * pair, kz * pair, channels,
                          m.scratch, channels);
            }
            for (long k = 0; k < ky * kz; k++)
                modes(x, m.grid + k * pair, ky * kz * pair, out + k * 2 * columns + b * channels,
                      ky * kz * 2 * columns, columns, m.scratch, channels);
        }
        free(m.grid);
    }
}

/* Values [B, X, Y, Z, C] by the transpose of `to_modes`, plus those of `beside` [B, X, Y, Z, D] times `weight` [D, C], plus
 * `bias` [C] if there is one. If there is `activated`, `gelu_twice` of the sum is written there. */
void to_values(const struct axis *x, const struct axis *y, const struct axis *z, const float *in, const float *beside,
               const float *weight, long depth, const float *bias, float *out, float *activated, long samples,
               long channels, int threads)
{
    const long ky = y->kept, kz = z->kept, pair = 2 * channels, columns = samples * channels;
    const long line = z->points * channels, slab = y->points * line;
#pragma omp parallel num_threads(threads)
    {
        struct memory m = memory_of(x, y, z, channels);
#pragma omp for schedule(static)
        for (long b = 0; b < samples; b++) {
            for (long k = 0; k < ky * kz; k++)
                values(x, in + k * 2 * columns + b * channels, ky * kz * 2 * columns, columns, m.grid + k * pair,
                       ky * kz * pair, m.scratch, channels);
            for (long i = 0; i < x->points; i++) {
                for (long k = 0; k < kz; k++)
                    values(y, m.grid + (i * ky * kz + k) * pair, kz * pair, channels, m.row + k * pair, kz * pair,
                           m.scratch, channels);
                for (long j = 0; j < y->points; j++) {
                    const long at = (b * x->points + i) * slab + j * line, row = at / channels;
                    real_values(z, m.row + j * kz * pair, out + at, channels, m.scratch, channels);
                    products(z->points, depth, beside + row * depth, depth, 1, weight, channels, out + at, channels,
                             out + at, channels, channels);
                    for (long n = 0; bias && n < z->points; n++)
                        FOR(c, channels) store(out + at + n * channels + c,
                                               load(out + at + n * channels + c) + load(bias + c));
                    if (activated) gelu_twice(out + at, activated + at, line);
                }
            }
        }
        free(m.grid);
    }
}

/* ---- Products of modes ---- */

INLINE void complex_tile(const int rows, const int wide, int inner, const float *re, const float *im,
                         const float *w, long pitch_w, long apart, float *out_re, float *out_im, long pitch_out,
                         const float *next)
{
    vec sum_re[4][2] = {0}, sum_im[4][2] = {0};
    for (int c = 0; c < inner; c++) {
        vec w_re[2], w_im[2];
        __builtin_prefetch(next + c * 16); /* a line of the cache */
        UNROLL for (int j = 0; j < wide; j++) {
            w_re[j] = load(w + c * pitch_w + j * V);
            w_im[j] = load(w + c * pitch_w + apart + j * V);
        }
        UNROLL for (int b = 0; b < rows; b++) {
            const float z_re = re[b * inner + c], z_im = im[b * inner + c];
            UNROLL for (int j = 0; j < wide; j++) {
                sum_re[b][j] += z_re * w_re[j];
                sum_im[b][j] += z_re * w_im[j];
                sum_re[b][j] -= z_im * w_im[j];
                sum_im[b][j] += z_im * w_re[j];
            }
        }
    }
    UNROLL for (int b = 0; b < rows; b++)
        UNROLL for (int j = 0; j < wide; j++) {
            store(out_re + b * pitch_out + j * V, sum_re[b][j]);
            store(out_im + b * pitch_out + j * V, sum_im[b][j]);
        }
}

/* Complex product of z [2, B, inner] with w [inner, 2 wide], whose parts are apart. Meanwhile the cache is filled from
 * `next` on. */
static void complex_product(long samples, int inner, long wide, const float *z, const float *w, float *out,
                            const float *next)
{
    const float *re = z, *im = z + samples * inner;
    float *out_re = out, *out_im = out + samples * wide;
    for (long o = 0; o < wide;) {
        const int two = V <= 8 ? 0 : o + 2 * V <= wide;
        for (long b = 0; b < samples;) {
            const long rows = least(4, samples - b);
#define COMPLEX(rows, two)                                                                                    \
    complex_tile(rows, two, inner, re + b * inner, im + b * inner, w + o, 2 * wide, wide, out_re + b * wide + o, \
                 out_im + b * wide + o, wide, next)
            if (rows == 4) { if (two) COMPLEX(4, 2); else COMPLEX(4, 1); }
            else if (rows == 3) { if (two) COMPLEX(3, 2); else COMPLEX(3, 1); }
            else if (rows == 2) { if (two) COMPLEX(2, 2); else COMPLEX(2, 1); }
            else { if (two) COMPLEX(1, 2); else COMPLEX(1, 1); }
            b += rows;
            next += inner * 16;
        }
        o += two ? 2 * V : V;
    }
}

/* Modes [K, 2, B, O] of modes z [K, 2, B, C] and weights w [K, C, 2 O]. */
void mix(const float *z, const float *w, float *out, long count, long samples, long channels, long wide, int threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long k = 0; k < count; k++)
        complex_product(samples, channels, wide, z + k * 2 * samples * channels, w + k * channels * 2 * wide,
                        out + k * 2 * samples * wide, w + (k + 1) * channels * 2 * wide);
}

/* Rows and columns of V x V numbers, exchanged bit by bit of their numbers. */
INLINE void transpose(const float *in, long pitch, float *out, long pitch_out, float factor)
{
    vec rows[V];
    UNROLL for (int i = 0; i < V; i++) rows[i] = load(in + i * pitch) * factor;
    UNROLL for (int bit = 1; bit < V; bit *= 2) {
        ints low, high;
        UNROLL for (int j = 0; j < V; j++) {
            low[j] = j & bit ? V + j - bit : j;
            high[j] = j & bit ? V + j : j + bit;
        }
        UNROLL for (int i = 0; i < V; i++)
            if (!(i & bit)) {
                vec one = rows[i], other = rows[i | bit];
                rows[i] = __builtin_shuffle(one, other, low);
                rows[i | bit] = __builtin_shuffle(one, other, high);
            }
    }
    UNROLL for (int i = 0; i < V; i++) store(out + i * pitch_out, rows[i]);
}

/* Gradient of z: the product with the conjugates of w, transposed. */
void mix_gradient(const float *g, const float *w, float *grad_z, long count, long samples, long channels, long wide,
                  int threads)
{
#pragma omp parallel num_threads(threads)
    {
        float *turned = allocated(sizeof(float) * 2 * wide * channels);
#pragma omp for schedule(static)
        for (long k = 0; k < count; k++) {
            const float *mine = w + k * channels * 2 * wide;
            for (long c = 0; c < channels; c += V)
                for (long o = 0; o < wide; o += V)
                    for (int part = 0; part < 2; part++)
                        transpose(mine + c * 2 * wide + part * wide + o, 2 * wide,
                                  turned + o * 2 * channels + part * channels + c, 2 * channels, part ? -1 : 1);
            complex_product(samples, wide, channels, g + k * 2 * samples * wide, turned,
                            grad_z + k * 2 * samples * channels, mine + channels * 2 * wide);
        }
        free(turned);
    }
}

INLINE void weight_tile(const int rows, const int wide, long samples, long channels, long columns, const float *z,
                        const float *g, float *out)
{
    vec sum_re[4][2] = {0}, sum_im[4][2] = {0};
    for (long b = 0; b < samples; b++) {
        vec g_re[2], g_im[2];
        UNROLL for (int j = 0; j < wide; j++) {
            g_re[j] = load(g + b * columns + j * V);
            g_im[j] = load(g + (samples + b) * columns + j * V);
        }
        UNROLL for (int c = 0; c < rows; c++) {
            const float z_re = z[b * channels + c], z_im = z[(samples + b) * channels + c];
            UNROLL for (int j = 0; j < wide; j++) {
                sum_re[c][j] += z_re * g_re[j];
                sum_im[c][j] += z_re * g_im[j];
                sum_re[c][j] += z_im * g_im[j];
                sum_im[c][j] -= z_im * g_re[j];
            }
        }
    }
    UNROLL for (int c = 0; c < rows; c++)
        UNROLL for (int j = 0; j < wide; j++) {
            store(out + c * 2 * columns + j * V, sum_re[c][j]);
            store(out + c * 2 * columns + columns + j * V, sum_im[c][j]);
        }
}

/* Gradient of w. */
void mix_weight_gradient(const float *z, const float *g, float *grad_w, long count, long samples, long channels,
                         long wide, int threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long k = 0; k < count; k++) {
        const float *z_k = z + k * 2 * samples * channels, *g_k = g + k * 2 * samples * wide;
        float *out = grad_w + k * channels * 2 * wide;
        for (long c = 0; c < channels; c += 4)
            for (long o = 0; o < wide;) {
                const int two = V <= 8 ? 0 : o + 2 * V <= wide;
                if (two) weight_tile(4, 2, samples, channels, wide, z_k + c, g_k + o, out + c * 2 * wide + o);
                else weight_tile(4, 1, samples, channels, wide, z_k + c, g_k + o, out + c * 2 * wide + o);
                o += two ? 2 * V : V;
            }
    }
}

/* ---- Sums over neighbours ---- */

/* So many samples and vectors of channels at once, of all points in turns: what these have of them stays in the cache. */
#define SAMPLES 4
#define BESIDE_OF(channels) ((channels) % (2 * V) ? 1 : 2)

INLINE void row_sums_of(const int samples, const int wide, long begin, long end, const float *weight, const int64_t *index,
                    const float *f, long apart, long channels, float *out, long apart_out)
{
    vec sums[SAMPLES][2] = {0};
    for (long e = begin; e < end; e++) {
        const float *k = weight + e * channels, *mine = f + index[e] * channels;
        UNROLL for (int j = 0; j < wide; j++) {
            const vec factor = load(k + j * V);
            UNROLL for (int b = 0; b < samples; b++) sums[b][j] += factor * load(mine + b * apart + j * V);
        }
    }
    UNROLL for (int b = 0; b < samples; b++)
        UNROLL for (int j = 0; j < wide; j++) store(out + b * apart_out + j * V, sums[b][j]);
}

#define ANY_SAMPLES(samples, wide, call)                                                                      \
    if (samples == 4) { if (wide == 2) call(4, 2); else call(4, 1); }                                         \
    else if (samples == 3) { if (wide == 2) call(3, 2); else call(3, 1); }                                    \
    else if (samples == 2) { if (wide == 2) call(2, 2); else call(2, 1); }                                    \
    else { if (wide == 2) call(1, 2); else call(1, 1); }

/* out[b, m, c] = sum over e in indptr[m] .. indptr[m + 1] of weight[e, c] f[b, index[e], c]; points m in this order. */
void neighbour_sums(const float *weight, const int64_t *index, const int64_t *indptr, const int64_t *order,
                    const float *f, float *out, long samples, long points, long rows, long channels, int threads)
{
    const long apart = points * channels, apart_out = rows * channels, wide = BESIDE_OF(channels);
    for (long b = 0; b < samples; b += SAMPLES) {
        const long some = least(SAMPLES, samples - b);
#pragma omp parallel for collapse(2) num_threads(threads) schedule(dynamic, 64)
        for (long c = 0; c < channels; c += wide * V)
            for (long i = 0; i < rows; i++) {
                const long m = order[i];
#define SUMS(samples, wide)                                                                                   \
    row_sums_of(samples, wide, indptr[m], indptr[m + 1], weight + c, index, f + b * apart + c, apart, channels,   \
            out + b * apart_out + m * channels + c, apart_out)
                ANY_SAMPLES(some, wide, SUMS)
            }
    }
}

INLINE void products_of(const int samples, const int wide, long begin, long end, const int64_t *index, const float *f,
                        const float *g, int add, float *out, long apart, long channels, long apart_g)
{
    vec given[SAMPLES][2];
    UNROLL for (int b = 0; b < samples; b++)
        UNROLL for (int j = 0; j < wide; j++) given[b][j] = load(g + b * apart_g + j * V);
    for (long e = begin; e < end; e++) {
        const float *mine = f + index[e] * channels;
        UNROLL for (int j = 0; j < wide; j++) {
            vec sum = add ? load(out + e * channels + j * V) : all(0);
            UNROLL for (int b = 0; b < samples; b++) sum += given[b][j] * load(mine + b * apart + j * V);
            store(out + e * channels + j * V, sum);
        }
    }
}

/* Gradient of weight: out[e, c] = sum over b of g[b, m, c] f[b, index[e], c], for e in indptr[m] .. indptr[m + 1]. */
void neighbour_products(const int64_t *index, const int64_t *indptr, const int64_t *order, const float *f,
                        const float *g, float *out, long samples, long points, long rows, long channels, int threads)
{
    const long apart = points * channels, apart_g = rows * channels, wide = BESIDE_OF(channels);
    for (long b = 0; b < samples; b += SAMPLES) {
        const long some = least(SAMPLES, samples - b);
#pragma omp parallel for collapse(2) num_threads(threads) schedule(dynamic, 64)
        for (long c = 0; c < channels; c += wide * V)
            for (long i = 0; i < rows; i++) {
                const long m = order[i];
#define PRODUCTS(samples, wide)                                                                               \
    products_of(samples, wide, indptr[m], indptr[m + 1], index, f + b * apart + c,                            \
                g + b * apart_g + m * channels + c, b > 0, out + c, apart, channels, apart_g)
                ANY_SAMPLES(some, wide, PRODUCTS)
            }
    }
}

INLINE void spread_of(const int samples, const int wide, long begin, long end, const float *weight,
                      const int64_t *index, const float *g, float *out, long apart, long channels, long apart_g)
{
    vec given[SAMPLES][2];
    UNROLL for (int b = 0; b < samples; b++)
        UNROLL for (int j = 0; j < wide; j++) given[b][j] = load(g + b * apart_g + j * V);
    for (long e = begin; e < end; e++)
        UNROLL for (int j = 0; j < wide; j++) {
            const vec factor = load(weight + e * channels + j * V);
            UNROLL for (int b = 0; b < samples; b++) {
                float *there = out + b * apart + index[e] * channels + j * V;
                store(there, load(there) + factor * given[b][j]);
            }
        }
}

/* Gradient of f: weight[e, c] g[b, m, c] is added to out[b, index[e], c]. Threads have channels of their own. */
void neighbour_spread(const float *weight, const int64_t *index, const int64_t *indptr, const int64_t *order,
                      const float *g, float *out, long samples, long points, long rows, long channels, int threads)
{
    const long apart = points * channels, apart_g = rows * channels;
    const long wide = threads * 2 * V > channels ? 1 : BESIDE_OF(channels);
    for (long b = 0; b < samples; b += SAMPLES) {
        const long some = least(SAMPLES, samples - b);
#pragma omp parallel for num_threads(threads) schedule(static)
        for (long c = 0; c < channels; c += wide * V)
            for (long i = 0; i < rows; i++) {
                const long m = order[i];
#define SPREAD(samples, wide)                                                                                 \
    spread_of(samples, wide, indptr[m], indptr[m + 1], weight + c, index, g + b * apart_g + m * channels + c, \
              out + b * apart + c, apart, channels, apart_g)
                ANY_SAMPLES(some, wide, SPREAD)
            }
    }
}

int vector(void) { return V; }
