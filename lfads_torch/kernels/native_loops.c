/* The loops over bins of the recurrent nets, for float32 on the CPU.
 *
 * Each thread takes its share of the trials through the whole sequence, so that threads meet once
 * per call and a trial's rows stay in cache. Matrix products go to the BLAS that torch carries,
 * whose address Python hands over. The equations are those of torch_loops.py, which is always there;
 * docs/performance.md says what this one gains.
 *
 * Arrays are row-major over (K nets, T bins, B trials, units); weights are (K, in, out) for the
 * forward loops and (K, out, in) for the backward loops.
 */
#include "native.h"

typedef void (*sgemm_fn)(const char *, const char *, const int *, const int *, const int *,
                         const float *, const float *, const int *, const float *, const int *,
                         const float *, float *, const int *);
static sgemm_fn sgemm;

void lfads_set_sgemm(void *address) { sgemm = (sgemm_fn)address; }

/* c (m x n) = beta c + a (m x k) w, w (k x n). Rows are ld. apart. Weights come in the order that this
 * wants: BLAS is up to twice slower where it has to turn small ones. */
static void product(int m, int n, int k, const float *a, int lda, const float *w, int ldw,
                    float beta, float *c, int ldc) {
    const float one = 1.0f;
    if (m && n && k)
        sgemm("N", "N", &n, &m, &k, &one, w, &ldw, a, &lda, &beta, c, &ldc);
    else if (beta == 0.0f)
        for (int i = 0; i < m; i++) memset(c + (int64_t)i * ldc, 0, n * sizeof(float));
}

static void copy_rows(int rows, int n, const float *from, int64_t stride, float *to, int ld) {
    for (int i = 0; i < rows; i++) memcpy(to + (int64_t)i * ld, from + i * stride, n * sizeof(float));
}

/* Input products of a cell, rows of x by stride, to `gates` and `cand`. BLAS then adds to them: to
 * have it write over them would cost a pass that fills them with zeros. */
static void input_rows(int rows, int n, const float *x, int64_t stride, float *gates, float *cand) {
    copy_rows(rows, 2 * n, x, stride, gates, 2 * n);
    copy_rows(rows, n, x + 2 * n, stride, cand, n);
}

/* As input_rows, plus u (rows x m) times w (m x 3n). For the few inferred inputs this takes less
 * time than two products of BLAS, which packs its operands. */
PER_CPU static void driven_rows(int rows, int n, int m, const float *x, int64_t stride,
                                const float *u, const float *w, float *gates, float *cand) {
    for (int i = 0; i < rows; i++) {
        const float *from = x + i * stride, *ui = u + (int64_t)i * m;
        for (int part = 0; part < 2; part++) {
            const int width = part ? n : 2 * n, first = part ? 2 * n : 0;
            float *out = part ? cand + (int64_t)i * n : gates + (int64_t)i * 2 * n;
            const float *in = from + first;
            int k = 0;
            for (; k + 4 <= m; k += 4, in = out) {
                const float *w0 = w + (int64_t)k * 3 * n + first, *w1 = w0 + 3 * n;
                const float *w2 = w1 + 3 * n, *w3 = w2 + 3 * n;
                const float a = ui[k], b = ui[k + 1], c = ui[k + 2], d = ui[k + 3];
                UNITS for (int j = 0; j < width; j++)
                    out[j] = in[j] + (a * w0[j] + b * w1[j]) + (c * w2[j] + d * w3[j]);
            }
            for (; k < m; k++, in = out) {
                const float *wk = w + (int64_t)k * 3 * n + first, a = ui[k];
                UNITS for (int j = 0; j < width; j++) out[j] = in[j] + a * wk[j];
            }
            if (!m) memcpy(out, in, width * sizeof(float));
        }
    }
}

/* Products in `gates` become update and reset gate. */
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
                                 float *grad_x, int64_t ld) {
    for (int i = 0; i < rows; i++) {
        const float *z = gates + (int64_t)i * 2 * n, *c = cand + (int64_t)i * n;
        const float *hi = h + (int64_t)i * n, *s = state + (int64_t)i * n;
        float *g = grad_h + (int64_t)i * n, *gx = grad_x + i * ld;
        UNITS for (int j = 0; j < n; j++) {
            float d = fabsf(s[j]) < clip ? g[j] : 0.0f;
            float dz = d * z[j];
            gx[j] = dz * (1.0f - z[j]) * (hi[j] - c[j]);
            gx[2 * n + j] = (d - dz) * (1.0f - c[j] * c[j]);
            g[j] = dz;
        }
    }
}

/* `rh` goes in as the gradient of reset gate times state and out as that product. */
PER_CPU static void grad_r_rows(int rows, int n, const float *gates, const float *h, float *rh,
                                float *grad_h, float *grad_x, int64_t ld) {
    for (int i = 0; i < rows; i++) {
        const float *r = gates + (int64_t)i * 2 * n + n, *hi = h + (int64_t)i * n;
        float *g = grad_h + (int64_t)i * n, *gr = grad_x + i * ld + n, *ri = rh + (int64_t)i * n;
        UNITS for (int j = 0; j < n; j++) {
            float back = ri[j] * r[j], product = r[j] * hi[j];
            gr[j] = back * hi[j] * (1.0f - r[j]);
            g[j] += back;
            ri[j] = product;
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

/* A GRU with n units. `w` holds update, reset and candidate: turned (n x 3n) for the forward loop,
 * as they are (3n x n) for the backward loop. */
typedef struct {
    int n;
    const float *w;
    float clip;
} cell;

/* `gates` and `cand` hold the products of all inputs. rh: scratch, rows x n. */
static void cell_forward(const cell *c, int rows, const float *h, float *gates, float *cand,
                         float *rh, float *state) {
    const int n = c->n;
    product(rows, 2 * n, n, h, n, c->w, 3 * n, 1.0f, gates, 2 * n);
    gate_rows(rows, n, gates, h, rh);
    product(rows, n, n, rh, n, c->w + 2 * n, 3 * n, 1.0f, cand, n);
    state_rows(rows, n, gates, cand, h, c->clip, state);
}

/* grad_h: gradient after the bin; becomes that before it. grad_x: rows x 3n by ld. rh: out, reset
 * gate times state, which the weights' gradients need. */
static void cell_backward(const cell *c, int rows, const float *h, const float *state,
                          const float *gates, const float *cand, float *grad_h, float *grad_x,
                          int64_t ld, float *rh) {
    const int n = c->n;
    grad_zn_rows(rows, n, gates, cand, h, state, c->clip, grad_h, grad_x, ld);
    product(rows, n, n, grad_x + 2 * n, ld, c->w + (int64_t)2 * n * n, n, 0.0f, rh, n);
    grad_r_rows(rows, n, gates, h, rh, grad_h, grad_x, ld);
    product(rows, n, 2 * n, grad_x, ld, c->w, n, 1.0f, grad_h, n);
}

/* Cut K nets x B trials into tasks of few enough rows to stay in cache, a multiple of threads. */
static int chunk_rows(int n_nets, int n_trials) {
    const int most = 128;
    int threads = 1;
#ifdef _OPENMP
    threads = omp_get_max_threads();
#endif
    int pieces = (n_trials + most - 1) / most;
    while ((pieces * n_nets) % threads && pieces < n_trials) pieces++;
    return (n_trials + pieces - 1) / pieces;
}

/* A clipped GRU: `h0` (K, B, n), `states` (K, T, B, n). With two_way, every other net runs backward.
 * Strides in floats; where all bins share one buffer, that over bins is 0. */
typedef struct {
    int K, T, B, n, two_way;
    float clip;
    const float *w, *h0;
    float *states, *gates, *cand;
    int64_t gates_s[2], cand_s[2]; /* over K, T */
    int each;                      /* nets of a model, see `net_at` */
} gru;

/* Where net k lies in an input product or its gradient, of strides over models, a model's nets, bins
 * and trials: a model's nets come from one product, so that nets are not evenly spaced. */
static int64_t net_at(const gru *a, int k, const int64_t *s) {
    return k / a->each * s[0] + k % a->each * s[1];
}

void lfads_clipped_gru(const gru *a, const float *x, const int64_t *x_s) {
    const int n = a->n, T = a->T, B = a->B;
    const int step = chunk_rows(a->K, B), chunks = (B + step - 1) / step;
#pragma omp parallel for schedule(static)
    for (int task = 0; task < a->K * chunks; task++) {
        const int k = task / chunks, b = task % chunks * step, rows = B - b < step ? B - b : step;
        const int back = a->two_way && k % 2;
        const cell c = {n, a->w + (int64_t)k * 3 * n * n, a->clip};
        const float *h0 = a->h0 + ((int64_t)k * B + b) * n;
        float *rh = malloc(sizeof(float) * rows * n);
        for (int i = 0; i < T; i++) {
            const int t = back ? T - 1 - i : i;
            float *s = a->states + (((int64_t)k * T + t) * B + b) * n;
            const float *h = i == 0 ? h0 : back ? s + (int64_t)B * n : s - (int64_t)B * n;
            float *gates = a->gates + k * a->gates_s[0] + t * a->gates_s[1] + (int64_t)b * 2 * n;
            float *cand = a->cand + k * a->cand_s[0] + t * a->cand_s[1] + (int64_t)b * n;
            input_rows(rows, n, x + net_at(a, k, x_s) + t * x_s[2] + b * x_s[3], x_s[3], gates, cand);
            cell_forward(&c, rows, h, gates, cand, rh, s);
        }
        free(rh);
    }
}

/* grad_states (K, T, B, n) and grad_last (K, B, n), of the last state that a net computes, may be
 * NULL. Out: grad_x by strides, grad_h0 (K, B, n), rh (K, T, B, n). */
void lfads_clipped_gru_backward(const gru *a, const float *grad_states, const float *grad_last,
                        float *grad_x, const int64_t *grad_s, float *grad_h0, float *rh) {
    const int n = a->n, T = a->T, B = a->B;
    const int step = chunk_rows(a->K, B), chunks = (B + step - 1) / step;
#pragma omp parallel for schedule(static)
    for (int task = 0; task < a->K * chunks; task++) {
        const int k = task / chunks, b = task % chunks * step, rows = B - b < step ? B - b : step;
        const int back = a->two_way && k % 2;
        const int64_t first = ((int64_t)k * B + b) * n, size = (int64_t)rows * n;
        const cell c = {n, a->w + (int64_t)k * 3 * n * n, a->clip};
        float *gh = grad_h0 + first;
        if (grad_last)
            memcpy(gh, grad_last + first, sizeof(float) * size);
        else
            memset(gh, 0, sizeof(float) * size);
        for (int i = T - 1; i >= 0; i--) {
            const int t = back ? T - 1 - i : i;
            const int64_t at = (((int64_t)k * T + t) * B + b) * n;
            const float *s = a->states + at;
            const int64_t before = back ? (int64_t)B * n : -(int64_t)B * n;
            const float *h = i == 0 ? a->h0 + first : s + before;
            if (grad_states) add_rows(size, grad_states + at, gh);
            cell_backward(&c, rows, h, s,
                          a->gates + k * a->gates_s[0] + t * a->gates_s[1] + (int64_t)b * 2 * n,
                          a->cand + k * a->cand_s[0] + t * a->cand_s[1] + (int64_t)b * n, gh,
                          grad_x + net_at(a, k, grad_s) + t * grad_s[2] + b * grad_s[3], grad_s[3],
                          rh + at);
        }
    }
}

/* The decoder: C controller, G generator, F factors, U inferred inputs. Optional arrays are NULL.
 * Initial states (K, B, .), `first` the factors that they make; all else (K, T, B, .) but gen_mask
 * (K, T + 1, B, G), whose entry 0 belongs to the initial state. Strides as in `gru`. */
typedef struct {
    int K, T, B, C, G, F, U;
    float clip;
    const float *w_con_fac, *w_con_hh, *w_co, *b_co, *w_gen_u, *w_gen_hh, *w_fac;
    const float *noise, *fac_mask, *gen_mask;
    float *con_h0, *gen_h0, *first, *con_states, *gen_states, *factors, *co, *inputs;
    float *con_gates, *con_cand, *gen_gates, *gen_cand;
    int64_t con_gates_s[2], con_cand_s[2], gen_gates_s[2], gen_cand_s[2];
} decoder;

/* One net's weights, and where its share of the trials lies. */
typedef struct {
    int k, b, rows;
    cell con, gen;
    const float *w_con_fac, *w_co, *b_co, *w_gen_u, *w_fac;
} share;

static share share_of(const decoder *d, int task, int step) {
    const int C = d->C, G = d->G, F = d->F, U = d->U, chunks = (d->B + step - 1) / step;
    const int b = task % chunks * step;
    const int64_t k = task / chunks;
    return (share){
        .k = (int)k,
        .b = b,
        .rows = d->B - b < step ? d->B - b : step,
        .con = {C, d->w_con_hh + k * 3 * C * C, d->clip},
        .gen = {G, d->w_gen_hh + k * 3 * G * G, d->clip},
        .w_con_fac = d->w_con_fac + k * 3 * C * F,
        .w_co = d->w_co + k * 2 * U * C,
        .b_co = d->b_co + k * 2 * U,
        .w_gen_u = d->w_gen_u + k * 3 * G * U,
        .w_fac = d->w_fac + k * F * G,
    };
}

/* Row `at` of an array of T bins, or where the bin is the one before the first, row `at0` of the
 * initial ones. */
INLINE float *entry(int t, float *initial, int64_t at0, float *bins, int64_t at, int n) {
    return t < 0 ? initial + at0 * n : bins + at * n;
}

static int widest(const decoder *d) {
    int n = d->F > d->G ? d->F : d->G;
    n = n > d->C ? n : d->C;
    return n > d->U ? n : d->U;
}

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

/* con_x and gen_x: input products, their rows by strides over K, T, B. */
void lfads_decoder(const decoder *d, const float *con_x, const int64_t *con_s,
                           const float *gen_x, const int64_t *gen_s) {
    const int C = d->C, G = d->G, F = d->F, U = d->U, T = d->T, B = d->B;
    const int step = chunk_rows(d->K, B), tasks = d->K * ((B + step - 1) / step);
#pragma omp parallel for schedule(static)
    for (int task = 0; task < tasks; task++) {
        const share s = share_of(d, task, step);
        const int64_t k = s.k, b = s.b;
        const int rows = s.rows;
        float *scratch = malloc(sizeof(float) * rows * widest(d));
        for (int t = -1; t < T; t++) {
            const int64_t at0 = k * B + b, at = (k * T + t) * B + b, was = at - B;
            const int64_t at1 = (k * (T + 1) + t + 1) * B + b;
            float *f = entry(t, d->first, at0, d->factors, at, F);
            float *g = entry(t, d->gen_h0, at0, d->gen_states, at, G);
            if (t >= 0) {
                const float *f_in = masked(entry(t - 1, d->first, at0, d->factors, was, F),
                                           d->fac_mask ? d->fac_mask + at * F : NULL,
                                           (int64_t)rows * F, scratch);
                float *gates = d->con_gates + k * d->con_gates_s[0] + t * d->con_gates_s[1] + b * 2 * C;
                float *cand = d->con_cand + k * d->con_cand_s[0] + t * d->con_cand_s[1] + b * C;
                float *c = d->con_states + at * C;
                input_rows(rows, C, con_x + k * con_s[0] + t * con_s[1] + b * con_s[2], con_s[2], gates,
                           cand);
                product(rows, 2 * C, F, f_in, F, s.w_con_fac, 3 * C, 1.0f, gates, 2 * C);
                product(rows, C, F, f_in, F, s.w_con_fac + 2 * C, 3 * C, 1.0f, cand, C);
                cell_forward(&s.con, rows, entry(t - 1, d->con_h0, at0, d->con_states, was, C), gates,
                             cand, scratch, c);

                float *co = d->co + at * 2 * U, *u = d->inputs + at * U;
                copy_rows(rows, 2 * U, s.b_co, 0, co, 2 * U);
                product(rows, 2 * U, C, c, C, s.w_co, 2 * U, 1.0f, co, 2 * U);
                draw_rows(rows, U, co, d->noise ? d->noise + at * U : NULL, u);

                gates = d->gen_gates + k * d->gen_gates_s[0] + t * d->gen_gates_s[1] + b * 2 * G;
                cand = d->gen_cand + k * d->gen_cand_s[0] + t * d->gen_cand_s[1] + b * G;
                driven_rows(rows, G, U, gen_x + k * gen_s[0] + t * gen_s[1] + b * gen_s[2], gen_s[2], u,
                            s.w_gen_u, gates, cand);
                cell_forward(&s.gen, rows, entry(t - 1, d->gen_h0, at0, d->gen_states, was, G), gates,
                             cand, scratch, g);
            }
            const float *g_out = masked(g, d->gen_mask ? d->gen_mask + at1 * G : NULL,
                                        (int64_t)rows * G, scratch);
            product(rows, F, G, g_out, G, s.w_fac, F, 0.0f, f, F);
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

/* Gradients from outside, each of which may be NULL. */
typedef struct {
    const float *factors, *gen_states, *con_states, *inputs; /* (K, T, B, .) */
} outside;

/* What the backward loop gives, axes (K, T, B, .) or, of grad_f and gen_in, (K, T + 1, B, .).
 * grad_co comes in as the gradient from outside. con_rh, gen_rh: reset gate times state. fac_in,
 * gen_in: factors and generator states times their masks; NULL where there is no mask. */
typedef struct {
    float *con_x, *gen_x, *con_h0, *gen_h0, *grad_f, *grad_co, *con_rh, *gen_rh, *fac_in, *gen_in;
} found;

void lfads_decoder_backward(const decoder *d, const outside *grad, const found *out) {
    const int C = d->C, G = d->G, F = d->F, U = d->U, T = d->T, B = d->B;
    const int step = chunk_rows(d->K, B), tasks = d->K * ((B + step - 1) / step);
#pragma omp parallel for schedule(static)
    for (int task = 0; task < tasks; task++) {
        const share s = share_of(d, task, step);
        const int64_t k = s.k, b = s.b;
        const int rows = s.rows;
        const int64_t n_c = (int64_t)rows * C, n_g = (int64_t)rows * G, n_f = (int64_t)rows * F;
        float *scratch = malloc(sizeof(float) * rows * widest(d));
        float *gc = out->con_h0 + (k * B + b) * C, *gg = out->gen_h0 + (k * B + b) * G;
        memset(gc, 0, sizeof(float) * n_c);
        memset(gg, 0, sizeof(float) * n_g);
        for (int t = T - 1; t >= -1; t--) {
            const int64_t at0 = k * B + b, at = (k * T + t) * B + b, was = at - B;
            const int64_t at1 = (k * (T + 1) + t + 1) * B + b;
            float *gf = out->grad_f + at1 * F;
            const float *g = entry(t, d->gen_h0, at0, d->gen_states, at, G);
            if (t == T - 1) memset(gf, 0, sizeof(float) * n_f);
            if (t >= 0 && grad->factors) add_rows(n_f, grad->factors + at * F, gf);
            if (d->gen_mask) {
                product(rows, G, F, gf, F, s.w_fac, G, 0.0f, scratch, G);
                add_times_rows(n_g, scratch, d->gen_mask + at1 * G, gg);
                times_rows(n_g, g, d->gen_mask + at1 * G, out->gen_in + at1 * G);
            } else {
                product(rows, G, F, gf, F, s.w_fac, G, 1.0f, gg, G);
            }
            if (t < 0) break;
            if (grad->gen_states) add_rows(n_g, grad->gen_states + at * G, gg);
            float *ggx = out->gen_x + at * 3 * G;
            cell_backward(&s.gen, rows, entry(t - 1, d->gen_h0, at0, d->gen_states, was, G), g,
                          d->gen_gates + k * d->gen_gates_s[0] + t * d->gen_gates_s[1] + b * 2 * G,
                          d->gen_cand + k * d->gen_cand_s[0] + t * d->gen_cand_s[1] + b * G, gg,
                          ggx, 3 * G, out->gen_rh + at * G);

            float *gu = scratch, *gco = out->grad_co + at * 2 * U;
            if (grad->inputs) memcpy(gu, grad->inputs + at * U, sizeof(float) * rows * U);
            product(rows, U, 3 * G, ggx, 3 * G, s.w_gen_u, U, grad->inputs ? 1.0f : 0.0f, gu, U);
            grad_draw_rows(rows, U, gu, d->co + at * 2 * U, d->noise ? d->noise + at * U : NULL,
                           gco);

            product(rows, C, 2 * U, gco, 2 * U, s.w_co, C, 1.0f, gc, C);
            if (grad->con_states) add_rows(n_c, grad->con_states + at * C, gc);
            const float *c = d->con_states + at * C;
            float *gcx = out->con_x + at * 3 * C;
            cell_backward(&s.con, rows, entry(t - 1, d->con_h0, at0, d->con_states, was, C), c,
                          d->con_gates + k * d->con_gates_s[0] + t * d->con_gates_s[1] + b * 2 * C,
                          d->con_cand + k * d->con_cand_s[0] + t * d->con_cand_s[1] + b * C, gc,
                          gcx, 3 * C, out->con_rh + at * C);

            float *gf_before = gf - (int64_t)B * F;
            product(rows, F, 3 * C, gcx, 3 * C, s.w_con_fac, F, 0.0f, gf_before, F);
            if (d->fac_mask) {
                const float *mask = d->fac_mask + at * F;
                times_rows(n_f, gf_before, mask, gf_before);
                times_rows(n_f, entry(t - 1, d->first, at0, d->factors, was, F), mask,
                           out->fac_in + at * F);
            }
        }
        free(scratch);
    }
}
