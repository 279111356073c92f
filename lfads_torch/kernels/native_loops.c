/* The loops over bins of the recurrent nets, for float32 on the CPU.
 *
 * Each thread takes its share of the trials through the whole sequence, so that threads meet once
 * per call and a trial's rows stay in cache. On the way back, weight gradients are added up bin by bin
 * while a bin is in cache. The equations are those of torch_loops.py, which is always there;
 * docs/performance.md says what this one gains.
 *
 * Arrays are row-major over (K nets, T bins, B trials, units); weights are (K, out, in).
 */
#include "native_product.h"

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

/* Gradient of the state to those of update gate and candidate; `carry` is what the update gate
 * carries on. */
PER_CPU static void grad_zn_rows(int rows, int n, const float *gates, const float *cand,
                                 const float *h, const float *state, float clip,
                                 const float *grad_h, float *carry, float *grad_x, int64_t ld) {
    for (int i = 0; i < rows; i++) {
        const float *z = gates + (int64_t)i * 2 * n, *c = cand + (int64_t)i * n;
        const float *hi = h + (int64_t)i * n, *s = state + (int64_t)i * n;
        const float *g = grad_h + (int64_t)i * n;
        float *back = carry + (int64_t)i * n, *gx = grad_x + i * ld;
        UNITS for (int j = 0; j < n; j++) {
            float d = fabsf(s[j]) < clip ? g[j] : 0.0f;
            float dz = d * z[j];
            gx[j] = dz * (1.0f - z[j]) * (hi[j] - c[j]);
            gx[2 * n + j] = (d - dz) * (1.0f - c[j] * c[j]);
            back[j] = dz;
        }
    }
}

/* `rh` goes in as the gradient of reset gate times state and out as that product. */
PER_CPU static void grad_r_rows(int rows, int n, const float *gates, const float *h, float *rh,
                                float *carry, float *grad_x, int64_t ld) {
    for (int i = 0; i < rows; i++) {
        const float *r = gates + (int64_t)i * 2 * n + n, *hi = h + (int64_t)i * n;
        float *g = carry + (int64_t)i * n, *gr = grad_x + i * ld + n, *ri = rh + (int64_t)i * n;
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

/* A GRU with n units: packed recurrent weights of both gates and of the candidate. */
typedef struct {
    int n;
    float clip;
    const float *zr, *cand;
} cell;

/* Pack w (3n x n) for the forward loop, which multiplies by its transpose, or for the backward one. */
static cell pack_cell(int n, float clip, const float *w, int forward, float **room) {
    cell c = {n, clip, *room, NULL};
    const float *w_cand = w + (int64_t)2 * n * n;
    if (forward) {
        c.cand = pack(n, 2 * n, w, 1, n, *room);
        *room = pack(n, n, w_cand, 1, n, (float *)c.cand);
    } else {
        c.cand = pack(2 * n, n, w, n, 1, *room);
        *room = pack(n, n, w_cand, n, 1, (float *)c.cand);
    }
    return c;
}

static int64_t cell_room(int n) { return room_for(2 * n, n) + room_for(n, 2 * n) + room_for(n, n); }

/* x: input products, rows x 3n by ld. extra: a further input, once with the weights of the gates and
 * once with those of the candidate; may be NULL. rh: scratch, rows x n. */
static void cell_forward(const cell *c, int rows, const float *x, int64_t ld, const term *extra,
                         const float *h, float *gates, float *cand, float *rh, float *state) {
    const int n = c->n, n_terms = extra ? 2 : 1;
    term terms[2] = {{h, n, n, c->zr}};
    if (extra) terms[1] = extra[0];
    multiply(rows, 2 * n, x, ld, n_terms, terms, gates, 2 * n);
    gate_rows(rows, n, gates, h, rh);
    terms[0] = (term){rh, n, n, c->cand};
    if (extra) terms[1] = extra[1];
    multiply(rows, n, x + 2 * n, ld, n_terms, terms, cand, n);
    state_rows(rows, n, gates, cand, h, c->clip, state);
}

/* grad_h: gradient after the bin; becomes that before it. grad_x: rows x 3n by ld. sum_zr and
 * sum_cand: the weights' gradients so far. scratch: 2 x rows x n. */
static void cell_backward(const cell *c, int rows, const float *h, const float *state,
                          const float *gates, const float *cand, float *grad_h, float *grad_x,
                          int64_t ld, float *sum_zr, float *sum_cand, float *scratch) {
    const int n = c->n;
    float *carry = scratch, *rh = scratch + (int64_t)rows * n;
    const term from_cand = {grad_x + 2 * n, ld, n, c->cand}, from_zr = {grad_x, ld, 2 * n, c->zr};
    grad_zn_rows(rows, n, gates, cand, h, state, c->clip, grad_h, carry, grad_x, ld);
    multiply(rows, n, NULL, 0, 1, &from_cand, rh, n);
    grad_r_rows(rows, n, gates, h, rh, carry, grad_x, ld);
    multiply(rows, n, carry, n, 1, &from_zr, grad_h, n);
    outer(rows, n, 2 * n, h, n, grad_x, ld, sum_zr);
    outer(rows, n, n, rh, n, grad_x + 2 * n, ld, sum_cand);
}

/* Where the gradient of a weight belongs: k x n by strides for each net. */
typedef struct {
    int k, n;
    float *grad;
    int64_t by_k, by_n, by_net;
} place;

/* The recurrent weights of a cell, gates and candidate. */
static void cell_places(int n, float *grad, place *to) {
    to[0] = (place){n, 2 * n, grad, 1, n, (int64_t)3 * n * n};
    to[1] = (place){n, n, grad + (int64_t)2 * n * n, 1, n, (int64_t)3 * n * n};
}

static int64_t sums_room(int n_places, const place *places) {
    int64_t size = 0;
    for (int i = 0; i < n_places; i++) size += room_for(places[i].k, places[i].n);
    return size;
}

/* Point `sums` at the room of a task for each weight. */
static void divide(int n_places, const place *places, float *room, float **sums) {
    for (int i = 0; i < n_places; i++) {
        sums[i] = room;
        room += room_for(places[i].k, places[i].n);
    }
}

/* Add up what the tasks have, in their order, so that a result does not depend on which was first. */
static void join(int n_places, const place *places, int tasks, int chunks, float *room) {
    const int64_t size = sums_room(n_places, places);
    for (int task = 0; task < tasks; task++, room += size) {
        const float *sums = room;
        for (int i = 0; i < n_places; sums += room_for(places[i].k, places[i].n), i++) {
            const place *p = places + i;
            if (p->grad)
                add_sums(p->k, p->n, sums, p->grad + task / chunks * p->by_net, p->by_k, p->by_n);
        }
    }
}

/* Cut K nets x n_trials rows into tasks of at most so many, a multiple of threads. */
static int share_rows(int n_nets, int n_trials, int most) {
    int threads = 1;
#ifdef _OPENMP
    threads = omp_get_max_threads();
#endif
    int pieces = (int)(((int64_t)n_trials + most - 1) / most);
    while ((pieces * n_nets) % threads && pieces < n_trials) pieces++;
    return (n_trials + pieces - 1) / pieces;
}

enum { FEW = 128 }; /* Rows that stay in cache. */

static int chunk_rows(int n_nets, int n_trials) { return share_rows(n_nets, n_trials, FEW); }

/* y = x w^T + b for K maps of R rows: x (K, R, N) by strides over K and R, w (K, M, N), b (K, M),
 * y (K, R, M). */
void lfads_linear(int K, int R, int N, int M, const float *x, const int64_t *x_s, const float *w,
                  const float *b, float *y) {
    const int step = share_rows(K, R, INT32_MAX), chunks = (R + step - 1) / step;
#pragma omp parallel for schedule(static)
    for (int task = 0; task < K * chunks; task++) {
        const int64_t k = task / chunks, first = task % chunks * (int64_t)step;
        const int64_t end = first + step < R ? first + step : R;
        float *packed = malloc(sizeof(float) * room_for(N, M));
        pack(N, M, w + k * M * N, 1, N, packed);
        for (int64_t r = first; r < end; r += FEW) {
            const term in = {x + k * x_s[0] + r * x_s[1], x_s[1], N, packed};
            multiply(end - r < FEW ? (int)(end - r) : FEW, M, b + k * M, 0, 1, &in,
                     y + (k * R + r) * M, M);
        }
        free(packed);
    }
}

/* From grad (K, R, M) of y: grad_x (K, R, N), unless NULL; added to: grad_w (K, M, N), grad_b (K, M). */
void lfads_linear_backward(int K, int R, int N, int M, const float *x, const int64_t *x_s,
                           const float *grad, const float *w, float *grad_x, float *grad_w,
                           float *grad_b) {
    const int step = share_rows(K, R, INT32_MAX), chunks = (R + step - 1) / step;
    const place places[2] = {{N, M, grad_w, 1, N, (int64_t)M * N}, {1, M, grad_b, 0, 1, M}};
    const int64_t room_each = sums_room(2, places);
    float *all_sums = calloc(K * chunks * room_each, sizeof(float)), ones[FEW];
    for (int i = 0; i < FEW; i++) ones[i] = 1.0f;
#pragma omp parallel for schedule(static)
    for (int task = 0; task < K * chunks; task++) {
        const int64_t k = task / chunks, first = task % chunks * (int64_t)step;
        const int64_t end = first + step < R ? first + step : R;
        float *sums[2], *packed = malloc(sizeof(float) * room_for(M, N));
        divide(2, places, all_sums + task * room_each, sums);
        pack(M, N, w + k * M * N, N, 1, packed);
        for (int64_t r = first; r < end; r += FEW) {
            const int rows = end - r < FEW ? (int)(end - r) : FEW;
            const float *g = grad + (k * R + r) * M;
            outer(rows, N, M, x + k * x_s[0] + r * x_s[1], x_s[1], g, M, sums[0]);
            outer(rows, 1, M, ones, 1, g, M, sums[1]);
            if (grad_x)
                multiply(rows, N, NULL, 0, 1, &(term){g, M, M, packed}, grad_x + (k * R + r) * N, N);
        }
        free(packed);
    }
    join(2, places, K * chunks, chunks, all_sums);
    free(all_sums);
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
        const float *h0 = a->h0 + ((int64_t)k * B + b) * n;
        float *room = malloc(sizeof(float) * (rows * n + cell_room(n))), *rh = room;
        float *packed = rh + (int64_t)rows * n;
        const cell c = pack_cell(n, a->clip, a->w + (int64_t)k * 3 * n * n, 1, &packed);
        for (int i = 0; i < T; i++) {
            const int t = back ? T - 1 - i : i;
            float *s = a->states + (((int64_t)k * T + t) * B + b) * n;
            const float *h = i == 0 ? h0 : back ? s + (int64_t)B * n : s - (int64_t)B * n;
            float *gates = a->gates + k * a->gates_s[0] + t * a->gates_s[1] + (int64_t)b * 2 * n;
            float *cand = a->cand + k * a->cand_s[0] + t * a->cand_s[1] + (int64_t)b * n;
            cell_forward(&c, rows, x + net_at(a, k, x_s) + t * x_s[2] + b * x_s[3], x_s[3], NULL, h,
                         gates, cand, rh, s);
        }
        free(room);
    }
}

/* grad_states (K, T, B, n) and grad_last (K, B, n), of the last state that a net computes, may be
 * NULL. Out: grad_x by strides, grad_h0 (K, B, n); added to: grad_w (K, 3n, n). */
void lfads_clipped_gru_backward(const gru *a, const float *grad_states, const float *grad_last,
                        float *grad_x, const int64_t *grad_s, float *grad_h0, float *grad_w) {
    const int n = a->n, T = a->T, B = a->B;
    const int step = chunk_rows(a->K, B), chunks = (B + step - 1) / step;
    place places[2];
    cell_places(n, grad_w, places);
    const int64_t room_each = sums_room(2, places);
    float *all_sums = calloc(a->K * chunks * room_each, sizeof(float));
#pragma omp parallel for schedule(static)
    for (int task = 0; task < a->K * chunks; task++) {
        const int k = task / chunks, b = task % chunks * step, rows = B - b < step ? B - b : step;
        const int back = a->two_way && k % 2;
        float *sums[2];
        divide(2, places, all_sums + task * room_each, sums);
        const int64_t first = ((int64_t)k * B + b) * n, size = (int64_t)rows * n;
        float *room = malloc(sizeof(float) * (2 * size + cell_room(n))), *packed = room + 2 * size;
        const cell c = pack_cell(n, a->clip, a->w + (int64_t)k * 3 * n * n, 0, &packed);
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
                          sums[0], sums[1], room);
        }
        free(room);
    }
    join(2, places, a->K * chunks, chunks, all_sums);
    free(all_sums);
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

/* One net's packed weights, and where its share of the trials lies. `room` is to be freed. */
typedef struct {
    int k, b, rows;
    float *room;
    cell con, gen;
    const float *con_fac[2], *co, *b_co, *gen_u[2], *fac; /* [2]: gates, candidate */
} share;

static int widest(const decoder *d) {
    int n = d->F > d->G ? d->F : d->G;
    n = n > d->C ? n : d->C;
    return n > 2 * d->U ? n : 2 * d->U;
}

/* Gates and candidate of input weights w (3n x m), for the forward loop. */
static float *pack_input(int n, int m, const float *w, const float **to, float *room) {
    to[0] = room;
    to[1] = pack(m, 2 * n, w, 1, m, room);
    return pack(m, n, w + (int64_t)2 * n * m, 1, m, (float *)to[1]);
}

static int64_t input_room(int n, int m) { return 2 * room_for(m, 2 * n) + room_for(3 * n, m); }

static share share_of(const decoder *d, int task, int step, int forward) {
    const int C = d->C, G = d->G, F = d->F, U = d->U, chunks = (d->B + step - 1) / step;
    const int b = task % chunks * step;
    const int64_t k = task / chunks;
    share s = {.k = (int)k, .b = b, .rows = d->B - b < step ? d->B - b : step};
    s.room = malloc(sizeof(float) * (cell_room(C) + cell_room(G) + input_room(C, F) + input_room(G, U) +
                                     room_for(C, 2 * U) + room_for(2 * U, C) + room_for(G, F) +
                                     room_for(F, G)));
    float *to = s.room;
    s.con = pack_cell(C, d->clip, d->w_con_hh + k * 3 * C * C, forward, &to);
    s.gen = pack_cell(G, d->clip, d->w_gen_hh + k * 3 * G * G, forward, &to);
    const float *con_fac = d->w_con_fac + k * 3 * C * F, *gen_u = d->w_gen_u + k * 3 * G * U;
    const float *co = d->w_co + k * 2 * U * C, *fac = d->w_fac + k * F * G;
    s.b_co = d->b_co + k * 2 * U;
    s.co = to;
    to = forward ? pack(C, 2 * U, co, 1, C, to) : pack(2 * U, C, co, C, 1, to);
    s.fac = to;
    to = forward ? pack(G, F, fac, 1, G, to) : pack(F, G, fac, G, 1, to);
    if (forward) {
        to = pack_input(C, F, con_fac, s.con_fac, to);
        pack_input(G, U, gen_u, s.gen_u, to);
    } else {
        s.con_fac[0] = to;
        s.gen_u[0] = to = pack(3 * C, F, con_fac, F, 1, to);
        pack(3 * G, U, gen_u, U, 1, to);
    }
    return s;
}

/* Row `at` of an array of T bins, or where the bin is the one before the first, row `at0` of the
 * initial ones. */
INLINE float *entry(int t, float *initial, int64_t at0, float *bins, int64_t at, int n) {
    return t < 0 ? initial + at0 * n : bins + at * n;
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
        const share s = share_of(d, task, step, 1);
        const int64_t k = s.k, b = s.b;
        const int rows = s.rows;
        const int64_t size = (int64_t)rows * widest(d);
        float *scratch = malloc(sizeof(float) * 2 * size), *rh = scratch + size;
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
                const term facs[2] = {{f_in, F, F, s.con_fac[0]}, {f_in, F, F, s.con_fac[1]}};
                cell_forward(&s.con, rows, con_x + k * con_s[0] + t * con_s[1] + b * con_s[2],
                             con_s[2], facs, entry(t - 1, d->con_h0, at0, d->con_states, was, C), gates,
                             cand, rh, c);

                float *co = d->co + at * 2 * U, *u = d->inputs + at * U;
                multiply(rows, 2 * U, s.b_co, 0, 1, &(term){c, C, C, s.co}, co, 2 * U);
                draw_rows(rows, U, co, d->noise ? d->noise + at * U : NULL, u);

                gates = d->gen_gates + k * d->gen_gates_s[0] + t * d->gen_gates_s[1] + b * 2 * G;
                cand = d->gen_cand + k * d->gen_cand_s[0] + t * d->gen_cand_s[1] + b * G;
                const term ins[2] = {{u, U, U, s.gen_u[0]}, {u, U, U, s.gen_u[1]}};
                cell_forward(&s.gen, rows, gen_x + k * gen_s[0] + t * gen_s[1] + b * gen_s[2],
                             gen_s[2], ins, entry(t - 1, d->gen_h0, at0, d->gen_states, was, G), gates,
                             cand, rh, g);
            }
            const float *g_out = masked(g, d->gen_mask ? d->gen_mask + at1 * G : NULL,
                                        (int64_t)rows * G, scratch);
            multiply(rows, F, NULL, 0, 1, &(term){g_out, G, G, s.fac}, f, F);
        }
        free(scratch);
        free(s.room);
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

static void swap(float **a, float **b) {
    float *was = *a;
    *a = *b;
    *b = was;
}

/* Gradients from outside, each of which may be NULL. */
typedef struct {
    const float *factors, *gen_states, *con_states, *co, *inputs; /* (K, T, B, .) */
} outside;

/* What the backward loop gives: gradients of the input products, con_x (K, T, B, 3C) and gen_x by
 * strides over K and T; of the initial states; and, added to, of the weights. `gen_sum` (K, 3G) is
 * the sum of gen_x over bins and trials, or NULL. */
typedef struct {
    float *con_x, *gen_x, *con_h0, *gen_h0;
    float *con_fac, *con_hh, *co, *b_co, *gen_u, *gen_hh, *fac, *gen_sum;
    int64_t gen_x_s[2];
} found;

enum { CON_HH, GEN_HH = 2, CON_FAC = 4, CO, B_CO, GEN_U, FAC, GEN_SUM, N_SUMS };

void lfads_decoder_backward(const decoder *d, const outside *grad, const found *out) {
    const int C = d->C, G = d->G, F = d->F, U = d->U, T = d->T, B = d->B;
    const int step = chunk_rows(d->K, B), chunks = (B + step - 1) / step, tasks = d->K * chunks;
    place places[N_SUMS] = {
        [CON_FAC] = {F, 3 * C, out->con_fac, 1, F, (int64_t)3 * C * F},
        [CO] = {2 * U, C, out->co, C, 1, (int64_t)2 * U * C},
        [B_CO] = {1, 2 * U, out->b_co, 0, 1, 2 * U},
        [GEN_U] = {U, 3 * G, out->gen_u, 1, U, (int64_t)3 * G * U},
        [FAC] = {F, G, out->fac, G, 1, (int64_t)F * G},
        [GEN_SUM] = {1, 3 * G, out->gen_sum, 0, 1, 3 * G},
    };
    cell_places(C, out->con_hh, places + CON_HH);
    cell_places(G, out->gen_hh, places + GEN_HH);
    const int64_t room_each = sums_room(N_SUMS, places);
    float *all_sums = calloc(tasks * room_each, sizeof(float));
#pragma omp parallel for schedule(static)
    for (int task = 0; task < tasks; task++) {
        const share s = share_of(d, task, step, 0);
        const int64_t k = s.k, b = s.b;
        const int rows = s.rows;
        const int64_t n_c = (int64_t)rows * C, n_g = (int64_t)rows * G, n_f = (int64_t)rows * F;
        const int64_t size = (int64_t)rows * widest(d);
        float *sums[N_SUMS];
        divide(N_SUMS, places, all_sums + task * room_each, sums);
        float *scratch = malloc(sizeof(float) * (5 * size + 2 * n_c + 2 * n_g + n_f + rows));
        float *inputs = scratch + 2 * size, *gu = inputs + size, *gco = gu + size;
        float *gc = gco + size, *gc_next = gc + n_c, *gg = gc_next + n_c, *gg_next = gg + n_g;
        float *gf = gg_next + n_g, *ones = gf + n_f;
        memset(gc, 0, sizeof(float) * n_c);
        memset(gg, 0, sizeof(float) * n_g);
        memset(gf, 0, sizeof(float) * n_f);
        for (int i = 0; i < rows; i++) ones[i] = 1.0f;
        for (int t = T - 1; t >= -1; t--) {
            const int64_t at0 = k * B + b, at = (k * T + t) * B + b, was = at - B;
            const int64_t at1 = (k * (T + 1) + t + 1) * B + b;
            const float *gen_mask = d->gen_mask ? d->gen_mask + at1 * G : NULL;
            const float *g = entry(t, d->gen_h0, at0, d->gen_states, at, G);
            if (t >= 0 && grad->factors) add_rows(n_f, grad->factors + at * F, gf);
            outer(rows, F, G, gf, F, masked(g, gen_mask, n_g, inputs), G, sums[FAC]);
            const term from_fac = {gf, F, F, s.fac};
            multiply(rows, G, gen_mask ? NULL : gg, G, 1, &from_fac, gg_next, G);
            if (gen_mask)
                add_times_rows(n_g, gg_next, gen_mask, gg);
            else
                swap(&gg, &gg_next);
            if (t < 0) break;
            if (grad->gen_states) add_rows(n_g, grad->gen_states + at * G, gg);
            float *ggx = out->gen_x + k * out->gen_x_s[0] + t * out->gen_x_s[1] + b * 3 * G;
            cell_backward(&s.gen, rows, entry(t - 1, d->gen_h0, at0, d->gen_states, was, G), g,
                          d->gen_gates + k * d->gen_gates_s[0] + t * d->gen_gates_s[1] + b * 2 * G,
                          d->gen_cand + k * d->gen_cand_s[0] + t * d->gen_cand_s[1] + b * G, gg,
                          ggx, 3 * G, sums[GEN_HH], sums[GEN_HH + 1], scratch);
            if (out->gen_sum) outer(rows, 1, 3 * G, ones, 1, ggx, 3 * G, sums[GEN_SUM]);

            outer(rows, U, 3 * G, d->inputs + at * U, U, ggx, 3 * G, sums[GEN_U]);
            multiply(rows, U, grad->inputs ? grad->inputs + at * U : NULL, U, 1,
                     &(term){ggx, 3 * G, 3 * G, s.gen_u[0]}, gu, U);
            if (grad->co)
                memcpy(gco, grad->co + at * 2 * U, sizeof(float) * rows * 2 * U);
            else
                memset(gco, 0, sizeof(float) * rows * 2 * U);
            grad_draw_rows(rows, U, gu, d->co + at * 2 * U, d->noise ? d->noise + at * U : NULL,
                           gco);

            const float *c = d->con_states + at * C;
            outer(rows, 2 * U, C, gco, 2 * U, c, C, sums[CO]);
            outer(rows, 1, 2 * U, ones, 1, gco, 2 * U, sums[B_CO]);
            multiply(rows, C, gc, C, 1, &(term){gco, 2 * U, 2 * U, s.co}, gc_next, C);
            swap(&gc, &gc_next);
            if (grad->con_states) add_rows(n_c, grad->con_states + at * C, gc);
            float *gcx = out->con_x + at * 3 * C;
            cell_backward(&s.con, rows, entry(t - 1, d->con_h0, at0, d->con_states, was, C), c,
                          d->con_gates + k * d->con_gates_s[0] + t * d->con_gates_s[1] + b * 2 * C,
                          d->con_cand + k * d->con_cand_s[0] + t * d->con_cand_s[1] + b * C, gc,
                          gcx, 3 * C, sums[CON_HH], sums[CON_HH + 1], scratch);

            const float *mask = d->fac_mask ? d->fac_mask + at * F : NULL;
            const float *f = entry(t - 1, d->first, at0, d->factors, was, F);
            outer(rows, F, 3 * C, masked(f, mask, n_f, inputs), F, gcx, 3 * C, sums[CON_FAC]);
            multiply(rows, F, NULL, 0, 1, &(term){gcx, 3 * C, 3 * C, s.con_fac[0]}, gf, F);
            if (mask) times_rows(n_f, gf, mask, gf);
        }
        memcpy(out->con_h0 + (k * B + b) * C, gc, sizeof(float) * n_c);
        memcpy(out->gen_h0 + (k * B + b) * G, gg, sizeof(float) * n_g);
        free(scratch);
        free(s.room);
    }
    join(N_SUMS, places, tasks, chunks, all_sums);
    free(all_sums);
}
