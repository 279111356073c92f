/* Matrix products in tiles of rows by vectors that stay in registers; `native_product.h` includes this
 * once for each kind of processor, with LANES (floats of a vector), ROWS (of a tile), TARGET and NAME.
 */
typedef float NAME(vector) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define LOAD(from) (*(const NAME(vector) *)(from))
#define STORE(to, x) (*(NAME(vector) *)(to) = (x))
/* Where vector v of n_vectors begins, see `vectors_of`. */
#define COLUMN(v) ((v) == n_vectors - 1 ? last : (v) * LANES)

INLINE void NAME(multiply_tile)(const int n_rows, const int n_vectors, int last, int row,
                                const float *in, int64_t ld_in, int n_terms, const term *terms,
                                int64_t packed, float *out, int64_t ld_out) {
    NAME(vector) sum[ROWS][WIDEST], w[WIDEST];
    UNROLL for (int i = 0; i < n_rows; i++)
        UNROLL for (int v = 0; v < n_vectors; v++)
            sum[i][v] = in ? LOAD(in + i * ld_in + COLUMN(v)) : (NAME(vector)){0.0f};
    for (int t = 0; t < n_terms; t++) {
        const float *a = terms[t].a + row * terms[t].ld, *wp = terms[t].w + packed * terms[t].k;
        const int64_t ld = terms[t].ld;
        for (int p = 0; p < terms[t].k; p++, wp += n_vectors * LANES) {
            UNROLL for (int v = 0; v < n_vectors; v++) w[v] = LOAD(wp + v * LANES);
            UNROLL for (int i = 0; i < n_rows; i++)
                UNROLL for (int v = 0; v < n_vectors; v++) sum[i][v] += a[i * ld + p] * w[v];
        }
    }
    UNROLL for (int i = 0; i < n_rows; i++)
        UNROLL for (int v = 0; v < n_vectors; v++) STORE(out + i * ld_out + COLUMN(v), sum[i][v]);
}

INLINE void NAME(multiply_vectors)(const int n_vectors, int last, int rows, const float *in,
                                   int64_t ld_in, int n_terms, const term *terms, int row,
                                   int64_t packed, float *out, int64_t ld_out) {
    if (rows >= ROWS)
        for (int i = 0; i < rows; i += ROWS) {
            i = i > rows - ROWS ? rows - ROWS : i;
            NAME(multiply_tile)(ROWS, n_vectors, last, row + i, in ? in + i * ld_in : NULL, ld_in, n_terms,
                                terms, packed, out + i * ld_out, ld_out);
        }
    else
        for (int i = 0; i < rows; i++)
            NAME(multiply_tile)(1, n_vectors, last, row + i, in ? in + i * ld_in : NULL, ld_in, n_terms,
                                terms, packed, out + i * ld_out, ld_out);
}

TARGET static void NAME(multiply)(int rows, int n, const float *in, int64_t ld_in, int n_terms,
                                  const term *terms, float *out, int64_t ld_out) {
    if (n < LANES) { /* weights are packed with zeros up to one vector */
        for (int i = 0; i < rows; i += ROWS) {
            const int here = rows - i < ROWS ? rows - i : ROWS;
            float few[ROWS * LANES] = {0.0f};
            for (int r = 0; in && r < here; r++)
                memcpy(few + r * LANES, in + (i + r) * ld_in, n * sizeof(float));
            NAME(multiply_vectors)(1, 0, here, few, LANES, n_terms, terms, i, 0, few, LANES);
            for (int r = 0; r < here; r++)
                memcpy(out + (i + r) * ld_out, few + r * LANES, n * sizeof(float));
        }
        return;
    }
    for (int j = 0, v; j < n; j += v * LANES) {
        v = vectors_of(n - j, LANES);
        const int last = (j + v * LANES > n ? n - LANES : j + (v - 1) * LANES) - j;
        const float *from = in ? in + j : NULL;
        if (v == 3)
            NAME(multiply_vectors)(3, last, rows, from, ld_in, n_terms, terms, 0, j, out + j, ld_out);
        else if (v == 2)
            NAME(multiply_vectors)(2, last, rows, from, ld_in, n_terms, terms, 0, j, out + j, ld_out);
        else
            NAME(multiply_vectors)(1, last, rows, from, ld_in, n_terms, terms, 0, j, out + j, ld_out);
    }
}

INLINE void NAME(outer_tile)(const int n_rows, const int n_vectors, int last, int rows,
                             const float *a, int64_t ld_a, const float *g, int64_t ld_g,
                             float *sums) {
    NAME(vector) sum[ROWS][WIDEST], gp[WIDEST];
    UNROLL for (int i = 0; i < n_rows; i++)
        UNROLL for (int v = 0; v < n_vectors; v++)
            sum[i][v] = LOAD(sums + (i * n_vectors + v) * LANES);
    for (int p = 0; p < rows; p++, a += ld_a, g += ld_g) {
        UNROLL for (int v = 0; v < n_vectors; v++) gp[v] = LOAD(g + COLUMN(v));
        UNROLL for (int i = 0; i < n_rows; i++)
            UNROLL for (int v = 0; v < n_vectors; v++) sum[i][v] += a[i] * gp[v];
    }
    UNROLL for (int i = 0; i < n_rows; i++)
        UNROLL for (int v = 0; v < n_vectors; v++)
            STORE(sums + (i * n_vectors + v) * LANES, sum[i][v]);
}

INLINE float *NAME(outer_vectors)(const int n_vectors, int last, int rows, int k, const float *a,
                                  int64_t ld_a, const float *g, int64_t ld_g, float *sums) {
    const int tall = k >= ROWS ? ROWS : 1;
    for (int i = 0; i < k; i += tall, sums += tall * n_vectors * LANES) {
        const int first = i > k - tall ? k - tall : i;
        if (tall == ROWS)
            NAME(outer_tile)(ROWS, n_vectors, last, rows, a + first, ld_a, g, ld_g, sums);
        else
            NAME(outer_tile)(1, n_vectors, last, rows, a + first, ld_a, g, ld_g, sums);
    }
    return sums;
}

TARGET static void NAME(outer)(int rows, int k, int n, const float *a, int64_t ld_a, const float *g,
                               int64_t ld_g, float *sums) {
    if (n < LANES) {
        for (int p = 0; p < rows; p++)
            for (int i = 0; i < k; i++)
                for (int j = 0; j < n; j++) sums[i * n + j] += a[p * ld_a + i] * g[p * ld_g + j];
        return;
    }
    for (int j = 0, v; j < n; j += v * LANES) {
        v = vectors_of(n - j, LANES);
        const int last = (j + v * LANES > n ? n - LANES : j + (v - 1) * LANES) - j;
        if (v == 3)
            sums = NAME(outer_vectors)(3, last, rows, k, a, ld_a, g + j, ld_g, sums);
        else if (v == 2)
            sums = NAME(outer_vectors)(2, last, rows, k, a, ld_a, g + j, ld_g, sums);
        else
            sums = NAME(outer_vectors)(1, last, rows, k, a, ld_a, g + j, ld_g, sums);
    }
}
#undef LOAD
#undef STORE
#undef COLUMN
#undef LANES
#undef ROWS
#undef TARGET
#undef NAME
