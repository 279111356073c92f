/* Passes over arrays that torch would make in several: random masks, the Poisson loss with its
 * gradient, and the sums behind bits per spike. float32 on the CPU.
 */
#include "native.h"
#ifdef __GLIBC__
#include <malloc.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>
#endif

/* Reserves room for the arrays of a step, none of which counts as used before it is written, and
 * asks for pages of 2 MiB there: in pages of 4 KiB, a pass over large arrays waits for the addresses
 * of pages. Memory has to be advised before it is written, and malloc has no hook to do it later.
 * Where addresses are limited (ulimit -v, batch systems), a reservation would be taken from them. */
static void reserve_huge_pages(void) {
#if defined(__GLIBC__) && defined(MADV_HUGEPAGE)
    struct rlimit addresses, data;
    if (getrlimit(RLIMIT_AS, &addresses) || addresses.rlim_cur != RLIM_INFINITY ||
        getrlimit(RLIMIT_DATA, &data) || data.rlim_cur != RLIM_INFINITY)
        return;
    const size_t request = (size_t)48 << 20, reserve = (size_t)1500 << 20, page = (size_t)2 << 20;
    mallopt(M_TOP_PAD, (int)reserve);
    char *taken = malloc(request), *end = sbrk(0);
    mallopt(M_TOP_PAD, 128 << 10);
    /* Else there was room already, or the system refused, and malloc found some elsewhere. */
    if (taken && end > taken && (size_t)(end - taken) > reserve) {
        char *first = (char *)(((uintptr_t)taken + page) & ~(page - 1));
        madvise(first, end - first, MADV_HUGEPAGE);
    }
    free(taken);
#endif
}

/* A step takes and frees the same large arrays again and again. By default glibc gives each back
 * to the system at once, and every page that is taken anew is a fault and zeros. The very largest
 * are still given back: kept, they would leave holes that the rest does not fit into. Free memory at
 * the end of the heap is kept as well, or the reservation would be given back at once. */
void lfads_keep_memory(void) {
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, 1 << 27);
    mallopt(M_TRIM_THRESHOLD, INT32_MAX);
#endif
    reserve_huge_pages();
}

/* Whether the loops over trials run on several threads. */
int lfads_has_threads(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
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

PER_CPU static void mask_block(int n, const uint16_t *bits, int threshold, float kept,
                               float dropped, float *out) {
    UNITS for (int j = 0; j < n; j++) out[j] = bits[j] >= threshold ? kept : dropped;
}

void lfads_mask(int64_t n, uint64_t seed, int threshold, float kept, float dropped, float *out) {
    const int64_t blocks = (n + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        uint16_t bits[BLOCK];
        const int64_t at = b * BLOCK;
        const int rest = n - at < BLOCK ? (int)(n - at) : BLOCK;
        draw_block(seed, at, bits);
        mask_block(rest, bits, threshold, kept, dropped, out + at);
    }
}

/* exp that overflows to infinity, as the loss of a diverged model should. */
INLINE float exp_or_inf(float x) { return x > 88.722839f ? INFINITY : exp_(x); }

/* Stirling's approximation of log x! for x > 1, else 0. */
static float log_factorial(float x) {
    return x > 1.0f ? x * logf(x) - x + 0.5f * logf(6.283185307179586f * x) : 0.0f;
}

/* Returns whether any count is above 1, which few blocks of spikes are without, but few entries. */
PER_CPU static int loss_block(int n, const float *log_rate, const float *count, float *loss) {
    int any = 0;
    UNITS for (int j = 0; j < n; j++) {
        loss[j] = exp_or_inf(log_rate[j]) - count[j] * log_rate[j];
        any |= count[j] > 1.0f;
    }
    return any;
}

enum { TABLE = 64 };

/* loss = exp(log_rate) - count log_rate + log count!, all of n entries. */
void lfads_poisson_loss(int64_t n, const float *log_rate, const float *count, float *loss) {
    float table[TABLE];
    for (int i = 0; i < TABLE; i++) table[i] = log_factorial((float)i);
    const int64_t blocks = (n + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t at = b * BLOCK;
        const int rest = n - at < BLOCK ? (int)(n - at) : BLOCK;
        if (!loss_block(rest, log_rate + at, count + at, loss + at)) continue;
        for (int j = 0; j < rest; j++) {
            const float x = count[at + j];
            if (x > 1.0f) {
                const int i = x < TABLE ? (int)x : 0;
                loss[at + j] += x == (float)i ? table[i] : log_factorial(x);
            }
        }
    }
}

PER_CPU static void gradient_block(int n, const float *grad, int step, const float *log_rate,
                                   const float *count, float *out) {
    if (step) {
        UNITS for (int j = 0; j < n; j++)
            out[j] = grad[j] * (exp_or_inf(log_rate[j]) - count[j]);
    } else {
        const float g = grad[0];
        UNITS for (int j = 0; j < n; j++) out[j] = g * (exp_or_inf(log_rate[j]) - count[j]);
    }
}

/* out = grad (exp(log_rate) - count); `grad` is one number for all where step is 0. */
void lfads_poisson_gradient(int64_t n, const float *grad, int step, const float *log_rate,
                            const float *count, float *out) {
    const int64_t blocks = (n + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t at = b * BLOCK;
        const int rest = n - at < BLOCK ? (int)(n - at) : BLOCK;
        gradient_block(rest, grad + (step ? at : 0), step, log_rate + at, count + at, out + at);
    }
}

PER_CPU static void sums_row(int n, const float *log_rate, const float *count, float *spikes,
                             float *nll) {
    UNITS for (int j = 0; j < n; j++) {
        spikes[j] += count[j];
        nll[j] += exp_or_inf(log_rate[j]) - count[j] * log_rate[j];
    }
}

/* Per channel, spikes and exp(log_rate) - count log_rate over B trials and T bins: `sums`, 2 x N
 * doubles. Strides over trials and bins in floats. */
void lfads_spike_sums(int B, int T, int N, const float *log_rate, int64_t rate_b, int64_t rate_t,
                      const float *count, int64_t count_b, int64_t count_t, double *sums) {
    const size_t width = 2 * (size_t)N;
    int threads = 1;
#ifdef _OPENMP
    threads = omp_get_max_threads();
#endif
    /* Added up in the order of the threads, so that the same data give the same sums. */
    double *parts = calloc(threads * width, sizeof(double));
#pragma omp parallel num_threads(threads)
    {
        int thread = 0;
#ifdef _OPENMP
        thread = omp_get_thread_num();
#endif
        double *own = parts + thread * width;
        float *trial = malloc(width * sizeof(float));
#pragma omp for schedule(static)
        for (int b = 0; b < B; b++) {
            memset(trial, 0, width * sizeof(float));
            for (int t = 0; t < T; t++)
                sums_row(N, log_rate + b * rate_b + t * rate_t, count + b * count_b + t * count_t,
                         trial, trial + N);
            for (size_t j = 0; j < width; j++) own[j] += trial[j];
        }
        free(trial);
    }
    memset(sums, 0, width * sizeof(double));
    for (int i = 0; i < threads; i++)
        for (size_t j = 0; j < width; j++) sums[j] += parts[i * width + j];
    free(parts);
}
