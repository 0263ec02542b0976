// Passes over vectors and over rows of a matrix.

// Sums f(i) over i < n by vectors, f(i) being a vector of terms, and g(i) for what remains. Blocks
// bound the rounding error of single precision sums; each block is added in double.
template <class T, class F, class G>
static inline double sum_of(int64_t n, F f, G g) {
    constexpr int w = Simd<T>::width;
    double total = 0;
    int64_t i = 0;
    while (n - i >= 4 * w) {
        Vec<T> s0{}, s1{}, s2{}, s3{};
        const int64_t end = least(n, i + 256 * w);
        for (; i + 4 * w <= end; i += 4 * w) {
            s0 += f(i);
            s1 += f(i + w);
            s2 += f(i + 2 * w);
            s3 += f(i + 3 * w);
        }
        total += double(sum<T>((s0 + s1) + (s2 + s3)));
    }
    T rest = 0;
    for (; i < n; ++i) rest += g(i);
    return total + double(rest);
}

template <class T>
static double dot(int64_t n, const T* x, const T* y) {
    return sum_of<T>(
        n, [=](int64_t i) { return load(x + i) * load(y + i); },
        [=](int64_t i) { return x[i] * y[i]; });
}

template <class T>
static double distance(int64_t n, const T* x, const T* y) {
    return sum_of<T>(
        n,
        [=](int64_t i) {
            const Vec<T> d = load(x + i) - load(y + i);
            return d * d;
        },
        [=](int64_t i) { return (x[i] - y[i]) * (x[i] - y[i]); });
}

template <class T>
static void axpby(int64_t n, T a, const T* x, T b, const T* y, T* out) {
    constexpr int w = Simd<T>::width;
    int64_t i = 0;
    if (y) {
        for (; i + w <= n; i += w) store(out + i, a * load(x + i) + b * load(y + i));
        for (; i < n; ++i) out[i] = a * x[i] + b * y[i];
    } else {
        for (; i + w <= n; i += w) store(out + i, a * load(x + i));
        for (; i < n; ++i) out[i] = a * x[i];
    }
}

// V vectors of y = A x for a symmetric A: a sum of rows, so no sum across lanes is needed. U rows at
// a time, since an addition waits for the one before.
template <class T, int V, int U>
static inline void symmetric_matvec_block(const T* a, int64_t n, const T* x, T* y) {
    constexpr int w = Simd<T>::width;
    Vec<T> s[U][V] = {};
    int64_t i = 0;
    for (; i + U <= n; i += U)
#pragma GCC unroll 8
        for (int u = 0; u < U; ++u)
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) s[u][v] += x[i + u] * load(a + (i + u) * n + v * w);
    for (; i < n; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) s[0][v] += x[i] * load(a + i * n + v * w);
#pragma GCC unroll 4
    for (int half = U / 2; half > 0; half /= 2)
#pragma GCC unroll 4
        for (int u = 0; u < half; ++u)
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) s[u][v] += s[u + half][v];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(y + v * w, s[0][v]);
}

// Columns [begin, end) of it.
template <class T>
static void symmetric_matvec(const T* a, int64_t n, const T* x, int64_t begin, int64_t end, T* y) {
    constexpr int w = Simd<T>::width;
    int64_t j = begin;
    for (; j + 4 * w <= end; j += 4 * w) symmetric_matvec_block<T, 4, 2>(a + j, n, x, y + j);
    for (; j + 2 * w <= end; j += 2 * w) symmetric_matvec_block<T, 2, 4>(a + j, n, x, y + j);
    for (; j + w <= end; j += w) symmetric_matvec_block<T, 1, 8>(a + j, n, x, y + j);
    for (; j < end; ++j) {
        T s = 0;
        for (int64_t i = 0; i < n; ++i) s += x[i] * a[i * n + j];
        y[j] = s;
    }
}

// From the lower half alone, w rows at a time, each of whose elements serves its own row and,
// mirrored, that of its column. `begin` is a multiple of w. Blocks on the diagonal are there as a whole,
// whatever else of the upper half is not.
template <class T>
static void symmetric_matvec_of_half(const View<const T>& a, const T* x, int64_t begin, int64_t end,
                                     T* y) {
    constexpr int w = Simd<T>::width;
    const int64_t stride = block_stride(a);
    int64_t i = begin;
    for (; i + w <= end; i += w) {
        Vec<T> s[w] = {};
        for (int64_t j = 0; j < i; j += w) {
            const T* const block = lower_corner(a, i, j);
            const Vec<T> xj = load(x + j);
            Vec<T> y0 = load(y + j), y1{};
#pragma GCC unroll 16
            for (int r = 0; r < w; r += 2) {
                const Vec<T> a0 = load(block + r * stride), a1 = load(block + (r + 1) * stride);
                s[r] += xj * a0;
                s[r + 1] += xj * a1;
                y0 += x[i + r] * a0;
                y1 += x[i + r + 1] * a1;
            }
            store(y + j, y0 + y1);
        }
        transpose<T>(s);
        const T* const block = lower_corner(a, i, i);
#pragma GCC unroll 16
        for (int r = 0; r < w; ++r) s[r] += x[i + r] * load(block + r * stride);
#pragma GCC unroll 4
        for (int half = w / 2; half > 0; half /= 2)
#pragma GCC unroll 16
            for (int r = 0; r < half; ++r) s[r] += s[r + half];
        store(y + i, s[0]);
    }
    for (; i < end; ++i) {
        const T* row = a.data + i * a.row_stride;
        T sum = 0;
        for (int64_t j = 0; j < i; ++j) {
            sum += row[j] * x[j];
            y[j] += row[j] * x[i];
        }
        y[i] = sum + row[i] * x[i];
    }
}

template <class T>
static double square_of_half(const View<const T>& a, int64_t begin, int64_t end) {
    double total = 0;
    if (a.layout == Layout::rows) {
        for (int64_t i = begin; i < end; ++i) {
            const T* row = a.data + i * a.row_stride;
            total += 2 * dot(i, row, row) + double(row[i]) * double(row[i]);
        }
        return total;
    }
    for (int64_t i = begin; i < end; i += block_side) {
        const T* row = lower_corner(a, i, 0);
        const int64_t before = i * block_side;
        total += 2 * dot(before, row, row) + dot(block_size, row + before, row + before);
    }
    return total;
}

template <class T>
static void pack_blocks(const T* a, int64_t n, int64_t begin, int64_t end, T* out) {
    for (int64_t i = begin * block_side; i < end * block_side; i += block_side)
        for (int64_t j = 0; j <= i; j += block_side) {
            T* const block = out + block_begin(Layout::lower_blocks, i, j, n);
            for (int64_t r = 0; r < block_side; ++r)
                axpby(block_side, T(1), a + (i + r) * n + j, T(0), static_cast<const T*>(nullptr),
                      block + r * block_side);
        }
}

template <class T>
static void unpack_blocks(const View<const T>& a, int64_t begin, int64_t end, T* out) {
    constexpr int w = Simd<T>::width;
    const int64_t n = a.rows;
    for (int64_t i = begin * block_side; i < end * block_side; i += block_side)
        for (int64_t j = 0; j <= i; j += block_side) {
            const T* const block = lower_corner(a, i, j);
            for (int64_t r = 0; r < block_side; ++r)
                axpby(block_side, T(1), block + r * block_side, T(0),
                      static_cast<const T*>(nullptr), out + (i + r) * n + j);
            if (i == j) continue;
            for (int64_t r = 0; r < block_side; r += w)
                for (int64_t c = 0; c < block_side; c += w) {
                    Vec<T> v[w];
#pragma GCC unroll 16
                    for (int l = 0; l < w; ++l) v[l] = load(block + (r + l) * block_side + c);
                    transpose<T>(v);
                    T* const to = out + (j + c) * n + i + r;
#pragma GCC unroll 16
                    for (int l = 0; l < w; ++l)
                        store(to + l * n, a.half == Mirror::skew ? -v[l] : v[l]);
                }
        }
}

// One step of Lanczos's process, given next = A v: subtracts the components along v and previous,
// returns <next, v> before and the length of next after.
template <class T>
static void lanczos_step(int64_t n, const T* v, const T* previous, double beta, T* next,
                         double* alpha, double* length) {
    constexpr int w = Simd<T>::width;
    Vec<T> products{}, squares{};
    T along = 0, rest = 0;
    int64_t i = 0;
    for (; i + w <= n; i += w) products += load(next + i) * load(v + i);
    for (; i < n; ++i) along += next[i] * v[i];
    along += sum<T>(products);
    const T b = T(beta);
    for (i = 0; i + w <= n; i += w) {
        const Vec<T> x = load(next + i) - along * load(v + i) - b * load(previous + i);
        squares += x * x;
        store(next + i, x);
    }
    for (; i < n; ++i) {
        next[i] -= along * v[i] + b * previous[i];
        rest += next[i] * next[i];
    }
    *alpha = double(along);
    *length = __builtin_sqrt(double(sum<T>(squares) + rest));
}

// All of it, for a matrix that one thread multiplies by: algorithms/spectrum.h.
template <class T>
static int lanczos(const View<const T>& a, int steps, T* v, T* previous, T* next, double* diagonal,
                   double* beside) {
    const int64_t n = a.rows;
    constexpr double rounding = 8 * double(std::numeric_limits<T>::epsilon());
    double beta = 0;
    const bool large = a.layout != Layout::rows ||
                       n * n * int64_t(sizeof(T)) > (int64_t(40) << 10);  // for the first cache
    for (int k = 0; k < steps; ++k) {
        if (large)
            symmetric_matvec_of_half(a, v, 0, n, next);
        else
            symmetric_matvec(a.data, n, v, 0, n, next);
        lanczos_step(n, v, previous, beta, next, diagonal + k, &beta);
        beside[k] = beta;
        if (!(beta > rounding * __builtin_fabs(diagonal[k]))) return k + 1;  // it has ended
        axpby(n, T(1) / T(beta), next, T(0), static_cast<const T*>(nullptr), previous);
        T* const old = v;
        v = previous;
        previous = old;
    }
    return steps;
}

template <class T>
static void sweep(const T* a, int64_t cols, int64_t stride, const T* v, int64_t row_begin,
                  int64_t row_end, T* t, T* s) {
    constexpr int w = Simd<T>::width;
    int64_t r = row_begin;
    // Four rows at a time share the loads of v and of s.
    for (; r + 4 <= row_end; r += 4) {
        const T* p = a + r * stride;
        Vec<T> d[4] = {}, e[4] = {};
        int64_t j = 0;
        for (; j + 2 * w <= cols; j += 2 * w) {
            const Vec<T> x = load(v + j), y = load(v + j + w);
#pragma GCC unroll 4
            for (int q = 0; q < 4; ++q) {
                d[q] += x * load(p + q * stride + j);
                e[q] += y * load(p + q * stride + j + w);
            }
        }
        for (; j + w <= cols; j += w) {
            const Vec<T> x = load(v + j);
#pragma GCC unroll 4
            for (int q = 0; q < 4; ++q) d[q] += x * load(p + q * stride + j);
        }
        T c[4];
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) c[q] = sum<T>(d[q] + e[q]);
        for (int64_t i = j; i < cols; ++i)
            for (int q = 0; q < 4; ++q) c[q] += p[q * stride + i] * v[i];
        for (int q = 0; q < 4; ++q) t[r + q] = c[q];
        if (!s) continue;
        for (j = 0; j + w <= cols; j += w) {
            Vec<T> y = load(s + j);
#pragma GCC unroll 4
            for (int q = 0; q < 4; ++q) y += c[q] * load(p + q * stride + j);
            store(s + j, y);
        }
        for (; j < cols; ++j)
            for (int q = 0; q < 4; ++q) s[j] += c[q] * p[q * stride + j];
    }
    for (; r < row_end; ++r) {
        const T* p = a + r * stride;
        const T c = t[r] = T(dot(cols, p, v));
        if (s) axpby(cols, c, p, T(1), s, s);
    }
}

template <class T>
static void rank_one_update(const T* a, T alpha, T beta, const T* u, const T* v, int64_t cols,
                            int64_t row_begin, int64_t row_end, T* out) {
    for (int64_t r = row_begin; r < row_end; ++r) {
        const T c = beta * u[r];
        if (a)
            axpby(cols, alpha, a + r * cols, c, v, out + r * cols);
        else
            axpby(cols, c, v, T(0), static_cast<const T*>(nullptr), out + r * cols);
    }
}

// Visits the lower half of rows [row_begin, row_end) in blocks of the vector width, each with the
// transposed block above the diagonal: f(row, col, upper) computes all of a block, also of one on
// the diagonal, where both are the same; rows that fill no block go element by element through
// g(row, col).
template <class T, class F, class G>
static inline void over_mirrored_blocks(const T* a, int64_t n, int64_t row_begin, int64_t row_end,
                                        F f, G g) {
    constexpr int w = Simd<T>::width;
    for (int64_t i = row_begin; i < row_end; i += w) {
        const int64_t rows = least(w, row_end - i);
        if (rows == w) {
            for (int64_t j = 0; j <= i; j += w) {
                Vec<T> upper[w];
#pragma GCC unroll 16
                for (int l = 0; l < w; ++l) upper[l] = load(a + (j + l) * n + i);
                transpose<T>(upper);
                f(i, j, upper);
            }
            continue;
        }
        for (int64_t r = i; r < i + rows; ++r)
            for (int64_t c = 0; c <= r; ++c) g(r, c);
    }
}

// Stores a block of rows and, transposed, its mirror image unless half is enough. One on the diagonal
// is its own.
template <class T, bool Skew>
static inline void store_mirrored_block(Vec<T>* block, const View<T>& out, int64_t i, int64_t j) {
    constexpr int w = Simd<T>::width;
    T* to = lower_corner(out, i, j);
    const int64_t stride = block_stride(out);
#pragma GCC unroll 16
    for (int l = 0; l < w; ++l) store(to + l * stride, block[l]);
    // Blocks of the layout are whole on the diagonal, where smaller ones have a mirror image.
    const bool there = out.half == Mirror::none ||
                       (out.layout != Layout::rows && i / block_side == j / block_side);
    if (!there || i == j) return;
    transpose<T>(block);
    to = out.layout == Layout::rows
             ? out.data + j * out.row_stride + i
             : lower_corner(out, i / block_side * block_side, j / block_side * block_side) +
                   j % block_side * block_side + i % block_side;
#pragma GCC unroll 16
    for (int l = 0; l < w; ++l) store(to + l * stride, Skew ? -block[l] : block[l]);
}

template <class T>
static double skew(const T* a, int64_t row_begin, int64_t row_end, const View<T>& out) {
    constexpr int w = Simd<T>::width;
    const int64_t n = out.rows;
    double total = 0;  // of both halves
    over_mirrored_blocks(
        a, n, row_begin, row_end,
        [&](int64_t i, int64_t j, Vec<T>* upper) {
            Vec<T> block[w], square{};
#pragma GCC unroll 16
            for (int l = 0; l < w; ++l) {
                block[l] = load(a + (i + l) * n + j) - upper[l];
                square += block[l] * block[l];
            }
            total += (i == j ? 1 : 2) * double(sum<T>(square));
            store_mirrored_block<T, true>(block, out, i, j);
        },
        [&](int64_t r, int64_t c) {
            const T x = a[r * n + c] - a[c * n + r];
            out.data[r * n + c] = x;
            if (out.half == Mirror::none) out.data[c * n + r] = -x;
            total += 2 * double(x) * double(x);
        });
    return total;
}

template <class T>
static void symmetrize(const T* a, T alpha, int64_t n, int64_t row_begin, int64_t row_end, T* out) {
    constexpr int w = Simd<T>::width;
    over_mirrored_blocks(
        a, n, row_begin, row_end,
        [&](int64_t i, int64_t j, Vec<T>* upper) {
            Vec<T> block[w];
#pragma GCC unroll 16
            for (int l = 0; l < w; ++l) block[l] = alpha * (load(a + (i + l) * n + j) + upper[l]);
            store_mirrored_block<T, false>(block, View<T>{out, n, n, n, 1}, i, j);
        },
        [&](int64_t r, int64_t c) {
            const T x = alpha * (a[r * n + c] + a[c * n + r]);
            out[r * n + c] = x;
            out[c * n + r] = x;
        });
}

template <class T>
static void gather(const View<const T>& a, int64_t row_begin, int64_t row_end, T* out) {
    for (int64_t i = row_begin; i < row_end; ++i) {
        const T* in = a.data + i * a.row_stride;
        T* to = out + i * a.cols;
        if (a.col_stride == 1)
            axpby(a.cols, T(1), in, T(0), static_cast<const T*>(nullptr), to);
        else
            for (int64_t j = 0; j < a.cols; ++j) to[j] = in[j * a.col_stride];
    }
}
