// Hermitian matrices of many frequencies, one a lane: the Gram matrices of a convolution's symbol,
//   S = sum over terms t of even_t cos_t + i odd_t sin_t,
// even_t symmetric, odd_t skew, the same for all frequencies. Every lane does the same at the same
// time, so that small matrices run at the speed of large ones.
//
// In memory: the lower triangle row by row, the vector of real parts before that of imaginary ones.

template <class T>
static inline T* wave_row(T* s, int64_t i) {
    return s + i * (i + 1) * Simd<T>::width;
}

// even, odd: [n][n][terms]; cosines, sines: [terms][lanes].
template <class T>
static void wave_build(const T* even, const T* odd, int64_t n, int64_t terms, const T* cosines,
                       const T* sines, T* s) {
    constexpr int w = Simd<T>::width, block = 4;
    for (int64_t i = 0; i < n; ++i) {
        T* row = wave_row(s, i);
        for (int64_t j = 0; j <= i; j += block) {
            // Columns beyond the diagonal are computed again and left out.
            const T *e[block], *o[block];
#pragma GCC unroll 4
            for (int q = 0; q < block; ++q) {
                const int64_t at = (i * n + least(j + q, i)) * terms;
                e[q] = even + at;
                o[q] = odd + at;
            }
            Vec<T> re[block] = {}, im[block] = {};
            for (int64_t t = 0; t < terms; ++t) {
                const Vec<T> c = load(cosines + t * w), d = load(sines + t * w);
#pragma GCC unroll 4
                for (int q = 0; q < block; ++q) {
                    re[q] += e[q][t] * c;
                    im[q] += o[q][t] * d;
                }
            }
            for (int q = 0; q < block && j + q <= i; ++q) {
                store(row + (j + q) * 2 * w, re[q]);
                store(row + (j + q) * 2 * w + w, im[q]);
            }
        }
    }
}

// Power iteration from x: after `steps`, scores[lane] is the norm of S x for x of norm 1.
template <class T>
static void wave_scores(const T* even, const T* odd, int64_t n, int64_t terms, const T* cosines,
                        const T* sines, const T* start, int steps, T* scratch, T* scores) {
    constexpr int w = Simd<T>::width;
    T* x = scratch;
    T* y = x + n * 2 * w;
    T* s = y + n * 2 * w;
    wave_build(even, odd, n, terms, cosines, sines, s);
    for (int64_t i = 0; i < n; ++i) {
        store(x + i * 2 * w, splat(start[i]));
        store(x + i * 2 * w + w, splat(T(0)));
    }
    Vec<T> norm = {};
    for (int step = 0; step < steps; ++step) {
        Vec<T> squares = {};
        for (int64_t i = 0; i < n; ++i)
            squares += load(x + i * 2 * w) * load(x + i * 2 * w) +
                       load(x + i * 2 * w + w) * load(x + i * 2 * w + w);
        for (int64_t i = 0; i < n; ++i) {
            const T* row = wave_row(s, i);
            const Vec<T> xr = load(x + i * 2 * w), xi = load(x + i * 2 * w + w);
            Vec<T> yr = load(row + i * 2 * w) * xr, yi = load(row + i * 2 * w) * xi;
            for (int64_t j = 0; j < i; ++j) {
                const Vec<T> sr = load(row + j * 2 * w), si = load(row + j * 2 * w + w);
                const Vec<T> vr = load(x + j * 2 * w), vi = load(x + j * 2 * w + w);
                yr += sr * vr - si * vi;
                yi += sr * vi + si * vr;
                // The conjugate element above the diagonal.
                store(y + j * 2 * w, load(y + j * 2 * w) + (sr * xr + si * xi));
                store(y + j * 2 * w + w, load(y + j * 2 * w + w) + (sr * xi - si * xr));
            }
            store(y + i * 2 * w, yr);
            store(y + i * 2 * w + w, yi);
        }
        Vec<T> sum = {};
        for (int64_t i = 0; i < n; ++i)
            sum += load(y + i * 2 * w) * load(y + i * 2 * w) +
                   load(y + i * 2 * w + w) * load(y + i * 2 * w + w);
        Vec<T> scale = {};
        for (int l = 0; l < w; ++l) {
            norm[l] = squares[l] > 0 ? __builtin_sqrt(double(sum[l]) / double(squares[l])) : T(0);
            scale[l] = sum[l] > 0 ? T(1 / __builtin_sqrt(double(sum[l]))) : T(0);
        }
        for (int64_t i = 0; i < 2 * n; ++i) store(x + i * w, load(y + i * w) * scale);
    }
    store(scores, norm);
}

// One element of several rows of the factor: rows times the conjugate of row j, up to column j.
template <class T, int rows>
static inline void wave_column(T* const* row, const T* other, int64_t j, Vec<T> inverse) {
    constexpr int w = Simd<T>::width;
    Vec<T> re[rows], im[rows];
#pragma GCC unroll 4
    for (int q = 0; q < rows; ++q) {
        re[q] = load(row[q] + j * 2 * w);
        im[q] = load(row[q] + j * 2 * w + w);
    }
    for (int64_t k = 0; k < j; ++k) {
        const Vec<T> br = load(other + k * 2 * w), bi = load(other + k * 2 * w + w);
#pragma GCC unroll 4
        for (int q = 0; q < rows; ++q) {
            const Vec<T> ar = load(row[q] + k * 2 * w), ai = load(row[q] + k * 2 * w + w);
            re[q] -= ar * br;
            re[q] -= ai * bi;
            im[q] -= ai * br;
            im[q] += ar * bi;
        }
    }
#pragma GCC unroll 4
    for (int q = 0; q < rows; ++q) {
        store(row[q] + j * 2 * w, re[q] * inverse);
        store(row[q] + j * 2 * w + w, im[q] * inverse);
    }
}

// flags[lane]: whether threshold I - S has no Cholesky factor, so that an eigenvalue of S may exceed
// the threshold.
template <class T>
static void wave_exceeds(const T* even, const T* odd, int64_t n, int64_t terms, const T* cosines,
                         const T* sines, T threshold, T* scratch, uint8_t* flags) {
    constexpr int w = Simd<T>::width, rows = 4;
    T* inverses = scratch;
    T* s = inverses + n * w;
    wave_build(even, odd, n, terms, cosines, sines, s);
    for (int64_t i = 0; i < n; ++i) {
        T* row = wave_row(s, i);
        for (int64_t j = 0; j < 2 * i; ++j) store(row + j * w, -load(row + j * w));
        store(row + i * 2 * w, threshold - load(row + i * 2 * w));
    }
    for (int l = 0; l < w; ++l) flags[l] = 0;
    for (int64_t first = 0; first < n; first += rows) {
        const int64_t end = least(first + rows, n);
        T* row[rows];
        for (int q = 0; q < rows; ++q) row[q] = wave_row(s, least(first + q, n - 1));
        int64_t j = 0;
        if (end - first == rows)
            for (; j < first; ++j)
                wave_column<T, rows>(row, wave_row(s, j), j, load(inverses + j * w));
        for (int64_t i = first; i < end; ++i) {
            T* own = wave_row(s, i);
            for (int64_t k = j; k < i; ++k)
                wave_column<T, 1>(&own, wave_row(s, k), k, load(inverses + k * w));
            Vec<T> pivot = load(own + i * 2 * w);
            for (int64_t k = 0; k < i; ++k) {
                const Vec<T> re = load(own + k * 2 * w), im = load(own + k * 2 * w + w);
                pivot -= re * re;
                pivot -= im * im;
            }
            Vec<T> inverse = {};
            bool all = true;
            for (int l = 0; l < w; ++l) {
                const bool positive = pivot[l] > 0 && pivot[l] < T(1e30);
                flags[l] |= !positive;
                all = all && flags[l];
                inverse[l] = positive ? T(1 / __builtin_sqrt(double(pivot[l]))) : T(0);
            }
            if (all) return;
            store(inverses + i * w, inverse);
        }
    }
}
