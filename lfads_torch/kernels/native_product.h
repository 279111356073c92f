/* Matrix products of the loops: sizes of one bin, weights packed once a call.
 *
 * On x86 with AVX2 or AVX-512 they are ours. BLAS packs its operands at every call, which for a bin
 * costs a fifth of the product, and on processors of AMD the one that torch carries leaves AVX-512
 * unused. Elsewhere they go to BLAS, whose address Python hands over.
 */
#ifndef LFADS_NATIVE_PRODUCT_H
#define LFADS_NATIVE_PRODUCT_H
#include "native.h"

typedef void (*sgemm_fn)(const char *, const char *, const int *, const int *, const int *,
                         const float *, const float *, const int *, const float *, const int *,
                         const float *, float *, const int *);
static sgemm_fn sgemm;

/* a (rows x k, rows `ld` apart) times w (k x n), which `pack` packed. */
typedef struct {
    const float *a;
    int64_t ld;
    int k;
    const float *w;
} term;

enum { WIDEST = 3 }; /* vectors of a tile */
#define UNROLL _Pragma("GCC unroll 8")

/* Vectors of the next tile, where `left` columns are left. Where the last vector would reach past
 * the end, it begins earlier, and columns are computed twice: so nothing may be added in place. */
INLINE int vectors_of(int left, int lanes) {
    const int vectors = (left + lanes - 1) / lanes, tiles = (vectors + WIDEST - 1) / WIDEST;
    return (vectors + tiles - 1) / tiles;
}

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_TILES
#define LANES 16
#define ROWS 8
#define TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,fma")))
#define NAME(x) x##_16
#include "native_tiles.h"
#define LANES 8
#define ROWS 4
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(x) x##_8
#include "native_tiles.h"
#endif

/* out = in + the sum of terms; rows of `in` are ld_in apart, all the same where that is 0; without
 * `in`, out = the sum. `out` is apart from all else. */
static void multiply_blas(int rows, int n, const float *in, int64_t ld_in, int n_terms,
                          const term *terms, float *out, int64_t ld_out) {
    const float one = 1.0f;
    const int ld = (int)ld_out;
    for (int i = 0; i < rows; i++)
        if (in)
            memcpy(out + i * ld_out, in + i * ld_in, n * sizeof(float));
        else
            memset(out + i * ld_out, 0, n * sizeof(float));
    for (const term *t = terms; t < terms + n_terms; t++) {
        const int ld_a = (int)t->ld;
        if (rows && n && t->k)
            sgemm("N", "N", &n, &rows, &t->k, &one, t->w, &n, t->a, &ld_a, &one, out, &ld);
    }
}

/* sums += a^T g: a (rows x k), g (rows x n); `add_sums` takes them out. */
static void outer_blas(int rows, int k, int n, const float *a, int64_t ld_a, const float *g,
                       int64_t ld_g, float *sums) {
    const float one = 1.0f;
    const int lda = (int)ld_a, ldg = (int)ld_g;
    if (rows && k && n) sgemm("N", "T", &n, &k, &rows, &one, g, &ldg, a, &lda, &one, sums, &n);
}

static int lanes, tile_rows; /* 0 lanes: BLAS */
static void (*multiply)(int, int, const float *, int64_t, int, const term *, float *, int64_t);
static void (*outer)(int, int, int, const float *, int64_t, const float *, int64_t, float *);

/* Use products of that many lanes, if this processor has them, else of the next fewer; 0: of BLAS.
 * Returns the lanes. */
int lfads_use_lanes(int most) {
    lanes = 0, tile_rows = 1, multiply = multiply_blas, outer = outer_blas;
#ifdef HAS_TILES
    __builtin_cpu_init();
    const int fma = __builtin_cpu_supports("fma");
    if (most >= 16 && fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
        lanes = 16, tile_rows = 8, multiply = multiply_16, outer = outer_16;
    else if (most >= 8 && fma && __builtin_cpu_supports("avx2"))
        lanes = 8, tile_rows = 4, multiply = multiply_8, outer = outer_8;
#endif
    return lanes;
}

void lfads_set_sgemm(void *address) {
    sgemm = (sgemm_fn)address;
    lfads_use_lanes(16);
}

/* Floats that packed weights or sums of k x n take at most. */
static int64_t room_for(int k, int n) { return ((int64_t)k + 8) * (n + 16); }

/* w (k x n), whose rows and columns are by_k and by_n apart, in the order of the tiles. Returns where
 * it ends. */
static float *pack(int k, int n, const float *w, int64_t by_k, int64_t by_n, float *to) {
    if (!lanes) {
        for (int p = 0; p < k; p++)
            for (int j = 0; j < n; j++) *to++ = w[p * by_k + j * by_n];
        return to;
    }
    for (int j = 0, v; j < n; j += v * lanes) {
        v = vectors_of(n - j, lanes);
        for (int p = 0; p < k; p++)
            for (int i = 0; i < v * lanes; i++) {
                /* The last vector ends with the last column; one that is wider is filled up. */
                const int back = j + v * lanes - n, in_last = i >= (v - 1) * lanes;
                const int col = j + i - (in_last && back > 0 && n >= lanes ? back : 0);
                *to++ = col < n ? w[p * by_k + col * by_n] : 0.0f;
            }
    }
    return to;
}

/* grad (k x n by strides) += what `outer` added up. */
static void add_sums(int k, int n, const float *sums, float *grad, int64_t by_k, int64_t by_n) {
    if (!lanes || n < lanes) {
        for (int i = 0; i < k; i++)
            for (int j = 0; j < n; j++) grad[i * by_k + j * by_n] += *sums++;
        return;
    }
    const int tall = k >= tile_rows ? tile_rows : 1;
    for (int j = 0, v; j < n; j += v * lanes) {
        v = vectors_of(n - j, lanes);
        const int back = j + v * lanes > n ? j + v * lanes - n : 0;
        for (int i = 0; i < k; i += tall) {
            const int up = i > k - tall ? i - (k - tall) : 0;
            for (int r = 0; r < tall; r++)
                for (int c = 0; c < v * lanes; c++, sums++) {
                    const int in_last = c >= (v - 1) * lanes;
                    /* What an earlier tile or vector has, too, is left out. */
                    if (r < up || (in_last && c - (v - 1) * lanes < back)) continue;
                    grad[(i + r - up) * by_k + (j + c - (in_last ? back : 0)) * by_n] += *sums;
                }
        }
    }
}
#endif
