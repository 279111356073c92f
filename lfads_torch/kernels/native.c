/* The loops over bins of the recurrent nets, for float32 on the CPU.
 *
 * Each thread takes its share of the trials through the whole sequence, so that threads meet once
 * per call and a trial's rows stay in cache. Matrix products go to the BLAS that torch carries,
 * whose address Python hands over. The equations are those of loops.py, which is always there;
 * docs/performance.md says what this one gains.
 *
 * Arrays are row-major over (K nets, T bins, B trials, units); weights (K, out, in).
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
/* One machine builds, another may run: the loader picks by the features of the processor. */
#define PER_CPU __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define PER_CPU
#endif
/* No two arrays of a loop over units overlap. */
#ifdef __clang__
#define UNITS _Pragma("clang loop vectorize(assume_safety)")
#else
#define UNITS _Pragma("GCC ivdep")
#endif
#define INLINE static inline __attribute__((always_inline))

typedef void (*sgemm_fn)(const char *, const char *, const int *, const int *, const int *,
                         const float *, const float *, const int *, const float *, const int *,
                         const float *, float *, const int *);
static sgemm_fn sgemm;

void lfads_set_sgemm(void *address) { sgemm = (sgemm_fn)address; }

/* c (m x n) += a (m x k) w^T, w (n x k). */
static void add_product_t(int m, int n, int k, const float *a, int lda, const float *w, float *c,
                          int ldc) {
    const float one = 1.0f;
    if (m && n && k) sgemm("T", "N", &n, &m, &k, &one, w, &k, a, &lda, &one, c, &ldc);
}

/* c (m x n) = beta c + a (m x k) w, w (k x n). */
static void product(int m, int n, int k, const float *a, int lda, const float *w, float beta,
                    float *c, int ldc) {
    const float one = 1.0f;
    if (m && n && k) sgemm("N", "N", &n, &m, &k, &one, w, &n, a, &lda, &beta, c, &ldc);
}

/* exp to about 2 units in the last place (Cephes); NaN stays NaN. */
INLINE float exp_(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float shifted = x * 1.44269504088896341f + 12582912.0f; /* rounds to a whole number */
    float n = shifted - 12582912.0f;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits;
    memcpy(&bits, &shifted, 4);
    bits = (bits + 127) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return p * scale;
}
INLINE float sigmoid_(float x) { return 1.0f / (1.0f + exp_(-x)); }
INLINE float tanh_(float x) { return 2.0f / (1.0f + exp_(-2.0f * x)) - 1.0f; }

static void copy_rows(int rows, int n, const float *from, int64_t stride, float *to, int ld) {
    for (int i = 0; i < rows; i++) memcpy(to + (int64_t)i * ld, from + i * stride, n * sizeof(float));
}

PER_CPU static void gate_rows(int rows, int n, float *gates, const float *h, float *rh) {
    for (int i = 0; i < rows; i++) {
        float *z = gates + (int64_t)i * 2 * n, *r = z + n;
        const float *hi = h + (int64_t)i * n;
        float *out = rh + (int64_t)i * n;
        UNITS for (int j = 0; j < n; j++) z[j] = sigmoid_(z[j]);
        UNITS for (int j = 0; j < n; j++) {
            r[j] = sigmoid_(r[j]);
            out[j] = r[j] * hi[j];
        }
    }
}

PER_CPU static void state_rows(int rows, int n, const float *gates, float *cand, const float *h,
                               float clip, float *state) {
    for (int i = 0; i < rows; i++) {
        const float *z = gates + (int64_t)i * 2 * n, *hi = h + (int64_t)i * n;
        float *c = cand + (int64_t)i * n, *s = state + (int64_t)i * n;
        UNITS for (int j = 0; j < n; j++) {
            c[j] = tanh_(c[j]);
            float v = c[j] + z[j] * (hi[j] - c[j]);
            v = v > clip ? clip : v;
            s[j] = v < -clip ? -clip : v;
        }
    }
}

/* Gradient of the state (scaled in place to what the update gate carries on) to those of update
 * gate and candidate. */
PER_CPU static void grad_zn_rows(int rows, int n, const float *gates, const float *cand,
                                 const float *h, const float *state, float clip, float *grad_h,
                                 float *grad_x) {
    for (int i = 0; i < rows; i++) {
        const float *z = gates + (int64_t)i * 2 * n, *c = cand + (int64_t)i * n;
        const float *hi = h + (int64_t)i * n, *s = state + (int64_t)i * n;
        float *g = grad_h + (int64_t)i * n, *gx = grad_x + (int64_t)i * 3 * n;
        UNITS for (int j = 0; j < n; j++) {
            float d = fabsf(s[j]) < clip ? g[j] : 0.0f;
            float dz = d * z[j];
            gx[j] = dz * (1.0f - z[j]) * (hi[j] - c[j]);
            gx[2 * n + j] = (d - dz) * (1.0f - c[j] * c[j]);
            g[j] = dz;
        }
    }
}

PER_CPU static void grad_r_rows(int rows, int n, const float *gates, const float *h,
                                const float *grad_rh, float *grad_h, float *grad_x) {
    for (int i = 0; i < rows; i++) {
        const float *r = gates + (int64_t)i * 2 * n + n, *hi = h + (int64_t)i * n;
        const float *grh = grad_rh + (int64_t)i * n;
        float *g = grad_h + (int64_t)i * n, *gr = grad_x + (int64_t)i * 3 * n + n;
        UNITS for (int j = 0; j < n; j++) {
            float back = grh[j] * r[j];
            gr[j] = back * hi[j] * (1.0f - r[j]);
            g[j] += back;
        }
    }
}

PER_CPU static void times_rows(int64_t n, const float *a, const float *b, float *out) {
    UNITS for (int64_t j = 0; j < n; j++) out[j] = a[j] * b[j];
}
PER_CPU static void add_rows(int64_t n, const float *a, float *out) {
    UNITS for (int64_t j = 0; j < n; j++) out[j] += a[j];
}
PER_CPU static void add_times_rows(int64_t n, const float *a, const float *b, float *out) {
    UNITS for (int64_t j = 0; j < n; j++) out[j] += a[j] * b[j];
}

/* A GRU with n units, rows of trials. `w` stacks update, reset and candidate (3n x n). */
typedef struct {
    int n;
    const float *w;
    float clip;
} cell;

static void cell_gates_done(const cell *c, int rows, const float *h, float *gates, float *cand,
                            float *rh, float *state) {
    const int n = c->n;
    add_product_t(rows, 2 * n, n, h, n, c->w, gates, 2 * n);
    gate_rows(rows, n, gates, h, rh);
    add_product_t(rows, n, n, rh, n, c->w + (int64_t)2 * n * n, cand, n);
    state_rows(rows, n, gates, cand, h, c->clip, state);
}

/* grad_h: gradient after the bin; becomes that before it. grad_rh: scratch, rows x n. */
static void cell_backward(const cell *c, int rows, const float *h, const float *state,
                          const float *gates, const float *cand, float *grad_h, float *grad_x,
                          float *grad_rh) {
    const int n = c->n;
    grad_zn_rows(rows, n, gates, cand, h, state, c->clip, grad_h, grad_x);
    product(rows, n, n, grad_x + 2 * n, 3 * n, c->w + (int64_t)2 * n * n, 0.0f, grad_rh, n);
    grad_r_rows(rows, n, gates, h, grad_rh, grad_h, grad_x);
    product(rows, n, 2 * n, grad_x, 3 * n, c->w, 1.0f, grad_h, n);
}

/* Cut K nets x B trials into tasks of few enough rows to stay in cache, a multiple of threads. */
static int chunk_rows(int n_nets, int n_trials, int most) {
    int threads = 1;
#ifdef _OPENMP
    threads = omp_get_max_threads();
#endif
    int pieces = (n_trials + most - 1) / most;
    while ((pieces * n_nets) % threads && pieces < n_trials) pieces++;
    return (n_trials + pieces - 1) / pieces;
}

/* x: strides over K, T, B in floats, last axis contiguous. gates_t, cand_t: floats per bin, 0
 * where all bins share one buffer. */
void lfads_gru_forward(int K, int T, int B, int n, const float *x, int64_t xk, int64_t xt,
                       int64_t xb, const float *h0, const float *w, float clip, float *states,
                       float *gates, int64_t gates_k, int64_t gates_t, float *cand, int64_t cand_k,
                       int64_t cand_t) {
    const int step = chunk_rows(K, B, 128), chunks = (B + step - 1) / step;
#pragma omp parallel for schedule(static)
    for (int task = 0; task < K * chunks; task++) {
        const int k = task / chunks, b = task % chunks * step, rows = B - b < step ? B - b : step;
        const cell c = {n, w + (int64_t)k * 3 * n * n, clip};
        float *rh = malloc(sizeof(float) * rows * n);
        const float *h = h0 + ((int64_t)k * B + b) * n;
        for (int t = 0; t < T; t++) {
            float *g = gates + k * gates_k + t * gates_t + (int64_t)b * 2 * n;
            float *cd = cand + k * cand_k + t * cand_t + (int64_t)b * n;
            float *s = states + (((int64_t)k * T + t) * B + b) * n;
            const float *xs = x + k * xk + t * xt + b * xb;
            copy_rows(rows, 2 * n, xs, xb, g, 2 * n);
            copy_rows(rows, n, xs + 2 * n, xb, cd, n);
            cell_gates_done(&c, rows, h, g, cd, rh, s);
            h = s;
        }
        free(rh);
    }
}

void lfads_gru_backward(int K, int T, int B, int n, const float *grad_states, const float *h0,
                        const float *w, float clip, const float *states, const float *gates,
                        const float *cand, float *grad_x, float *grad_h0) {
    const int step = chunk_rows(K, B, 128), chunks = (B + step - 1) / step;
#pragma omp parallel for schedule(static)
    for (int task = 0; task < K * chunks; task++) {
        const int k = task / chunks, b = task % chunks * step, rows = B - b < step ? B - b : step;
        const cell c = {n, w + (int64_t)k * 3 * n * n, clip};
        float *grad_rh = malloc(sizeof(float) * rows * n);
        float *gh = grad_h0 + ((int64_t)k * B + b) * n;
        memset(gh, 0, sizeof(float) * rows * n);
        for (int t = T - 1; t >= 0; t--) {
            const int64_t at = ((int64_t)k * T + t) * B + b;
            const float *h = t ? states + (at - B) * n : h0 + ((int64_t)k * B + b) * n;
            add_rows((int64_t)rows * n, grad_states + at * n, gh);
            cell_backward(&c, rows, h, states + at * n, gates + at * 2 * n, cand + at * n, gh,
                          grad_x + at * 3 * n, grad_rh);
        }
        free(grad_rh);
    }
}

/* The decoder: C controller, G generator, F factors, U inferred inputs. Optional arrays are NULL. */
typedef struct {
    int K, T, B, C, G, F, U;
    float clip;
    const float *con_proj, *gen_proj; /* (K, T, B, 3C), (K, T, B, 3G) by strides */
    int64_t con_s[3], gen_s[3];
    const float *con_h0, *gen_h0, *w_con_fac, *w_con_hh, *w_co, *b_co, *w_gen_u, *w_gen_hh, *w_fac;
    const float *noise, *fac_mask, *gen_mask;
    float *factors; /* (K, T + 1, B, F), entry 0 of the initial state */
    float *gen_states, *con_states, *co, *inputs;
    float *con_gates, *con_cand, *gen_gates, *gen_cand;
    int64_t con_gates_s[2], con_cand_s[2], gen_gates_s[2], gen_cand_s[2]; /* over K, T */
} decoder;

static const float *masked(const float *x, const float *mask, int64_t n, float *scratch) {
    if (!mask) return x;
    times_rows(n, x, mask, scratch);
    return scratch;
}

PER_CPU static void draw_rows(int rows, int n, const float *co, const float *noise, float *u) {
    for (int i = 0; i < rows; i++)
        UNITS for (int j = 0; j < n; j++) {
            const float mean = co[(int64_t)i * 2 * n + j];
            const float half = 0.5f * co[(int64_t)i * 2 * n + n + j];
            u[(int64_t)i * n + j] = noise ? mean + noise[(int64_t)i * n + j] * exp_(half) : mean;
        }
}

void lfads_decoder_forward(const decoder *d) {
    const int C = d->C, G = d->G, F = d->F, U = d->U, T = d->T, B = d->B;
    const int step = chunk_rows(d->K, B, 128), chunks = (B + step - 1) / step;
#pragma omp parallel for schedule(static)
    for (int task = 0; task < d->K * chunks; task++) {
        const int k = task / chunks, b = task % chunks * step, rows = B - b < step ? B - b : step;
        const cell con = {C, d->w_con_hh + (int64_t)k * 3 * C * C, d->clip};
        const cell gen = {G, d->w_gen_hh + (int64_t)k * 3 * G * G, d->clip};
        const float *w_cf = d->w_con_fac + (int64_t)k * 3 * C * F;
        const float *w_gu = d->w_gen_u + (int64_t)k * 3 * G * U;
        const float *w_co = d->w_co + (int64_t)k * 2 * U * C, *b_co = d->b_co + (int64_t)k * 2 * U;
        const float *w_fac = d->w_fac + (int64_t)k * F * G;
        const int widest = F > G ? (F > C ? F : C) : (G > C ? G : C);
        float *scratch = malloc(sizeof(float) * rows * widest);
        const float *c = d->con_h0 + ((int64_t)k * B + b) * C;
        const float *g = d->gen_h0 + ((int64_t)k * B + b) * G;
        for (int t = -1; t < T; t++) {
            const int64_t at = ((int64_t)k * T + t) * B + b;           /* per bin */
            const int64_t at1 = ((int64_t)k * (T + 1) + t + 1) * B + b; /* from the initial state */
            float *f = d->factors + at1 * F;
            if (t >= 0) {
                const float *before = f - (int64_t)B * F;
                const float *f_in = masked(before, d->fac_mask ? d->fac_mask + at * F : NULL,
                                           (int64_t)rows * F, scratch);
                float *gates = d->con_gates + k * d->con_gates_s[0] + t * d->con_gates_s[1];
                float *cand = d->con_cand + k * d->con_cand_s[0] + t * d->con_cand_s[1];
                gates += (int64_t)b * 2 * C;
                cand += (int64_t)b * C;
                const float *x = d->con_proj + k * d->con_s[0] + t * d->con_s[1] + b * d->con_s[2];
                copy_rows(rows, 2 * C, x, d->con_s[2], gates, 2 * C);
                copy_rows(rows, C, x + 2 * C, d->con_s[2], cand, C);
                add_product_t(rows, 2 * C, F, f_in, F, w_cf, gates, 2 * C);
                add_product_t(rows, C, F, f_in, F, w_cf + (int64_t)2 * C * F, cand, C);
                float *c_new = d->con_states + at * C;
                cell_gates_done(&con, rows, c, gates, cand, scratch, c_new);
                c = c_new;

                float *co = d->co + at * 2 * U, *u = d->inputs + at * U;
                copy_rows(rows, 2 * U, b_co, 0, co, 2 * U);
                add_product_t(rows, 2 * U, C, c, C, w_co, co, 2 * U);
                draw_rows(rows, U, co, d->noise ? d->noise + at * U : NULL, u);

                gates = d->gen_gates + k * d->gen_gates_s[0] + t * d->gen_gates_s[1];
                cand = d->gen_cand + k * d->gen_cand_s[0] + t * d->gen_cand_s[1];
                gates += (int64_t)b * 2 * G;
                cand += (int64_t)b * G;
                x = d->gen_proj + k * d->gen_s[0] + t * d->gen_s[1] + b * d->gen_s[2];
                copy_rows(rows, 2 * G, x, d->gen_s[2], gates, 2 * G);
                copy_rows(rows, G, x + 2 * G, d->gen_s[2], cand, G);
                add_product_t(rows, 2 * G, U, u, U, w_gu, gates, 2 * G);
                add_product_t(rows, G, U, u, U, w_gu + (int64_t)2 * G * U, cand, G);
                float *g_new = d->gen_states + at * G;
                cell_gates_done(&gen, rows, g, gates, cand, scratch, g_new);
                g = g_new;
            }
            const float *g_out = masked(g, d->gen_mask ? d->gen_mask + at1 * G : NULL,
                                        (int64_t)rows * G, scratch);
            memset(f, 0, sizeof(float) * rows * F);
            add_product_t(rows, F, G, g_out, G, w_fac, f, F);
        }
        free(scratch);
    }
}

PER_CPU static void grad_draw_rows(int rows, int n, const float *grad_u, const float *co,
                                   const float *noise, float *grad_co) {
    for (int i = 0; i < rows; i++)
        UNITS for (int j = 0; j < n; j++) {
            const float gu = grad_u[(int64_t)i * n + j];
            const int64_t mean = (int64_t)i * 2 * n + j, logvar = mean + n;
            grad_co[mean] += gu;
            if (noise)
                grad_co[logvar] += gu * 0.5f * noise[(int64_t)i * n + j] * exp_(0.5f * co[logvar]);
        }
}

/* grad_f (K, T + 1, B, F) and grad_co (K, T, B, 2U) come in as the gradients from outside and go
 * out as the whole ones; the other outside gradients may be NULL. */
void lfads_decoder_backward(const decoder *d, const float *grad_gen, const float *grad_con,
                            const float *grad_u, float *grad_f, float *grad_co, float *con_grad_x,
                            float *gen_grad_x, float *grad_c0, float *grad_g0) {
    const int C = d->C, G = d->G, F = d->F, U = d->U, T = d->T, B = d->B;
    const int step = chunk_rows(d->K, B, 128), chunks = (B + step - 1) / step;
#pragma omp parallel for schedule(static)
    for (int task = 0; task < d->K * chunks; task++) {
        const int k = task / chunks, b = task % chunks * step, rows = B - b < step ? B - b : step;
        const cell con = {C, d->w_con_hh + (int64_t)k * 3 * C * C, d->clip};
        const cell gen = {G, d->w_gen_hh + (int64_t)k * 3 * G * G, d->clip};
        const float *w_cf = d->w_con_fac + (int64_t)k * 3 * C * F;
        const float *w_gu = d->w_gen_u + (int64_t)k * 3 * G * U;
        const float *w_co = d->w_co + (int64_t)k * 2 * U * C;
        const float *w_fac = d->w_fac + (int64_t)k * F * G;
        int widest = F > G ? F : G;
        widest = widest > C ? widest : C;
        widest = widest > U ? widest : U;
        float *scratch = malloc(sizeof(float) * rows * widest);
        const int64_t first = (int64_t)k * B + b;
        float *gc = grad_c0 + first * C, *gg = grad_g0 + first * G;
        memset(gc, 0, sizeof(float) * rows * C);
        memset(gg, 0, sizeof(float) * rows * G);
        for (int t = T - 1; t >= -1; t--) {
            const int64_t at = ((int64_t)k * T + t) * B + b;
            const int64_t at1 = ((int64_t)k * (T + 1) + t + 1) * B + b;
            const int64_t nG = (int64_t)rows * G, nF = (int64_t)rows * F;
            product(rows, G, F, grad_f + at1 * F, F, w_fac, 0.0f, scratch, G);
            if (d->gen_mask)
                add_times_rows(nG, scratch, d->gen_mask + at1 * G, gg);
            else
                add_rows(nG, scratch, gg);
            if (t < 0) break;
            if (grad_gen) add_rows(nG, grad_gen + at * G, gg);
            const float *g = t ? d->gen_states + (at - B) * G : d->gen_h0 + first * G;
            float *ggx = gen_grad_x + at * 3 * G;
            cell_backward(&gen, rows, g, d->gen_states + at * G, d->gen_gates + at * 2 * G,
                          d->gen_cand + at * G, gg, ggx, scratch);

            float *gu = scratch;
            if (grad_u)
                memcpy(gu, grad_u + at * U, sizeof(float) * rows * U);
            product(rows, U, 3 * G, ggx, 3 * G, w_gu, grad_u ? 1.0f : 0.0f, gu, U);
            float *gco = grad_co + at * 2 * U;
            grad_draw_rows(rows, U, gu, d->co + at * 2 * U, d->noise ? d->noise + at * U : NULL,
                           gco);

            product(rows, C, 2 * U, gco, 2 * U, w_co, 1.0f, gc, C);
            if (grad_con) add_rows((int64_t)rows * C, grad_con + at * C, gc);
            const float *c = t ? d->con_states + (at - B) * C : d->con_h0 + first * C;
            float *gcx = con_grad_x + at * 3 * C;
            cell_backward(&con, rows, c, d->con_states + at * C, d->con_gates + at * 2 * C,
                          d->con_cand + at * C, gc, gcx, scratch);

            product(rows, F, 3 * C, gcx, 3 * C, w_cf, 0.0f, scratch, F);
            float *gf = grad_f + (at1 - B) * F;
            if (d->fac_mask)
                add_times_rows(nF, scratch, d->fac_mask + at * F, gf);
            else
                add_rows(nF, scratch, gf);
        }
        free(scratch);
    }
}

/* Random bits by counter (splitmix64): entry i depends on the seed and i alone, whichever thread
 * draws it. Each entry takes 16 bits, and is dropped where they are below the threshold. */
enum { BLOCK = 1024, PER_WORD = 4 };

PER_CPU static void draw_block(uint64_t seed, uint64_t first, uint16_t *bits) {
    uint64_t words[BLOCK / PER_WORD];
    for (int i = 0; i < BLOCK / PER_WORD; i++) {
        uint64_t x = seed + (first / PER_WORD + i) * 0x9E3779B97F4A7C15u;
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
        words[i] = x ^ (x >> 31);
    }
    memcpy(bits, words, sizeof words);
}

PER_CPU static void scaled_block(int n, const uint16_t *bits, int threshold, float scale,
                                 float *out) {
    UNITS for (int j = 0; j < n; j++) out[j] = bits[j] >= threshold ? scale : 0.0f;
}

PER_CPU static void kept_block(int n, const uint16_t *bits, int threshold, uint8_t *out) {
    UNITS for (int j = 0; j < n; j++) out[j] = bits[j] >= threshold;
}

/* Fills whichever of `scaled` (0 or `scale`) and `kept` (0 or 1) is not NULL. */
void lfads_mask(int64_t n, uint64_t seed, int threshold, float scale, float *scaled,
                uint8_t *kept) {
    const int64_t blocks = (n + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        uint16_t bits[BLOCK];
        const int64_t at = b * BLOCK;
        const int rest = n - at < BLOCK ? (int)(n - at) : BLOCK;
        draw_block(seed, at, bits);
        if (scaled) scaled_block(rest, bits, threshold, scale, scaled + at);
        if (kept) kept_block(rest, bits, threshold, kept + at);
    }
}
