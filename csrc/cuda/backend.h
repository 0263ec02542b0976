// The CUDA backend of the algorithms. Every thread of a team of blocks runs the same algorithm in
// step: each method shares its work out over the team and ends with a barrier, and every thread
// gets the same sums, so that all take the same branches. No decision ever needs the host.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "../algorithms/minimax.h"
#include "../algorithms/spectrum.h"
#include "execution.h"

namespace lipfuse::cuda {

constexpr int block_threads = 256;
constexpr int block_warps = block_threads / 32;
constexpr int most_polynomials = 120;

// The polynomials for one tolerance, made on the host and handed over with the launch: entry i
// serves singular values in [l, 1] for every l from low[i] up to low[i - 1].
struct Polynomials {
    int choices = 0, cubics = 0;
    double low[most_polynomials], cubic_low[24];
    Minimax choice[most_polynomials], cubic[24];
};

template <class T>
struct View {
    const T* data;
    int64_t rows, cols, row_stride, col_stride;
    T unit = T(1);  // a power of two that sweeps multiply by

    LIPFUSE_DEVICE View transposed() const {
        return {data, cols, rows, col_stride, row_stride, unit};
    }
};

// What happens to a product's accumulator on its way to memory:
//   out[r] = acc[r] * (A B) + x0[r] * X0 + x1[r] * X1 + diagonal[r] * I,   r < outputs.
// out[0] may be X0 or X1 itself.
template <class T>
struct Epilogue {
    int outputs = 1;
    T* out[2] = {nullptr, nullptr};
    const T* x[2] = {nullptr, nullptr};
    T acc[2] = {1, 1};
    T x0[2] = {0, 0};
    T x1[2] = {0, 0};
    T diagonal[2] = {0, 0};
};

// How a launch is laid out. Teams of several blocks must all be resident: a cooperative launch.
struct Layout {
    int64_t batch = 0;
    int team_blocks = 1;
    int64_t shared_scratch = 0;  // bytes of shared memory for arrays, teams of one block only
    char* scratch = nullptr;     // global memory, scratch_bytes for each team
    int64_t scratch_bytes = 0;
    unsigned* counters = nullptr;  // one for each team, zero
    double* partial = nullptr;     // 2 * team_blocks for each team
};

// Shared memory that the backend itself uses, in front of the arrays.
template <class T>
struct Shared {
    static constexpr int depth = 16, side = 64, pitch = side + 4;
    double sums[2][block_warps];
    T column[block_warps * 4];
    alignas(16) T a[2][depth][pitch];
    alignas(16) T b[2][depth][pitch];
};

constexpr int64_t array_gap =
#ifdef __CUDACC__
    0;
#else
    64;  // forbidden ground between arrays
#endif

inline constexpr int64_t array_bytes(int64_t count, int64_t item) {
    return (count * item + 15) / 16 * 16 + array_gap;
}
inline constexpr int64_t shared_bytes(int64_t fixed) {
    return (fixed + 15) / 16 * 16;
}

struct Sum {
    static LIPFUSE_DEVICE double of(double a, double b) { return a + b; }
};
struct Largest {
    static LIPFUSE_DEVICE double of(double a, double b) { return a > b ? a : b; }
};

template <class T>
class Backend {
public:
    using Scalar = T;
    static constexpr bool inverts = false;  // n dependent steps with a barrier each
    struct Mark {
        int64_t shared, global;
    };

    LIPFUSE_DEVICE Backend(const Layout& layout, const Polynomials* polynomials)
        : polynomials_(polynomials), blocks_(layout.team_blocks) {
        const int team = block_index() / blocks_;
        block_ = block_index() % blocks_;
        thread_ = thread_index();
        rank_ = int64_t(block_) * block_threads + thread_;
        size_ = int64_t(blocks_) * block_threads;
        shared_ = shared_memory() + shared_bytes(sizeof(Shared<T>));
        shared_size_ = blocks_ == 1 ? layout.shared_scratch : 0;
        global_ = layout.scratch + team * layout.scratch_bytes;
        global_size_ = layout.scratch_bytes;
        counter_ = layout.counters + team;
        partial_ = layout.partial + int64_t(team) * 2 * blocks_;
        if (shared_size_ > 0) forbid(shared_, shared_size_);
    }
    LIPFUSE_DEVICE ~Backend() {
        if (shared_size_ > 0) permit(shared_, shared_size_);
    }

    LIPFUSE_DEVICE bool leads() const { return rank_ == 0; }
    LIPFUSE_DEVICE const Polynomials& polynomials() const { return *polynomials_; }

    // Scratch memory: shared while it lasts, then global. All threads get the same.
    LIPFUSE_DEVICE Mark mark() const { return {shared_used_, global_used_}; }
    LIPFUSE_DEVICE void release(Mark mark) {
        forbid(shared_ + mark.shared, shared_used_ - mark.shared);
        shared_used_ = mark.shared;
        global_used_ = mark.global;
    }
    LIPFUSE_DEVICE T* allocate(int64_t count) {
        const int64_t bytes = array_bytes(count, sizeof(T));
        if (shared_used_ + bytes <= shared_size_) {
            T* p = reinterpret_cast<T*>(shared_ + shared_used_);
            shared_used_ += bytes;
            permit(p, count * int64_t(sizeof(T)));
            return p;
        }
        if (global_used_ + bytes > global_size_) fail();  // never a silent overlap
        T* p = reinterpret_cast<T*>(global_ + global_used_);
        global_used_ += bytes;
        return p;
    }

    static LIPFUSE_DEVICE View<T> view(const T* data, int64_t rows, int64_t cols) {
        return {data, rows, cols, cols, 1};
    }
    static LIPFUSE_DEVICE Epilogue<T> epilogue(T* out) {
        Epilogue<T> e;
        e.out[0] = out;
        return e;
    }

    LIPFUSE_DEVICE void multiply(View<T> a, View<T> b, T* out, bool symmetric) {
        multiply(a, b, epilogue(out), symmetric);
    }
    LIPFUSE_DEVICE void multiply(View<T> a, View<T> b, const Epilogue<T>& e, bool symmetric) {
        // Small tiles where large ones would leave threads or whole blocks idle.
        const int64_t tiles = ((a.rows + 63) / 64) * ((b.cols + 63) / 64);
        if (tiles >= blocks_ && (a.rows > 32 || b.cols > 32))
            product<4>(a, b, e, symmetric);
        else
            product<2>(a, b, e, symmetric);
    }

    // y = A x for a symmetric A: a warp a row.
    LIPFUSE_DEVICE LIPFUSE_NOINLINE void symmetric_matvec(const T* a, int64_t n, const T* x, T* y) {
        const int lane = thread_ % 32;
        for (int64_t i = rank_ / 32; i < n; i += size_ / 32) {
            const double sum = warp_dot(n, a + i * n, x, lane);
            if (lane == 0) y[i] = T(sum);
        }
        barrier();
    }

    // next <- next - <next, v> v - beta previous; *alpha = <next, v>, *length = ‖next‖
    LIPFUSE_DEVICE LIPFUSE_NOINLINE void lanczos_step(int64_t n, const T* v, const T* previous,
                                                      double beta, T* next, double* alpha,
                                                      double* length) {
        const double along = dot(n, next, v);
        const T a = T(along), b = T(beta);
        double squares = 0;
        for (int64_t i = rank_; i < n; i += size_) {
            const T x = next[i] - a * v[i] - b * previous[i];
            next[i] = x;
            squares += double(x) * double(x);
        }
        *alpha = along;
        *length = std::sqrt(reduce<Sum>(squares));  // its barrier serves `next` too
    }

    // t = A v and s = Aᵀt (or, where t is given and v is null, only the latter) for a row-major A,
    // which is read from memory once: rows are taken in groups small enough to stay in cache
    // between their use for t and for s.
    LIPFUSE_DEVICE LIPFUSE_NOINLINE void sweep(View<T> a, const T* v, T* t, T* s) {
        const int64_t first = a.rows * block_ / blocks_, last = a.rows * (block_ + 1) / blocks_;
        const int lane = thread_ % 32, warp = thread_ / 32;
        const Mark begin = mark();
        T* const sums = s && blocks_ > 1 ? allocate(a.cols * blocks_) : s;
        T* const own = s && blocks_ > 1 ? sums + block_ * a.cols : s;
        T* const column = shared().column;
        const int64_t row_bytes = a.cols * int64_t(sizeof(T));
        const int rows_a_warp = row_bytes <= 4096 ? 4 : row_bytes <= 8192 ? 2 : 1;
        const int group = block_warps * rows_a_warp;
        if (own)
            for (int64_t j = thread_; j < a.cols; j += block_threads) own[j] = T(0);
        for (int64_t r = first; r < last; r += group) {
            for (int q = 0; q < rows_a_warp; ++q) {
                const int place = q * block_warps + warp;
                const int64_t row = r + place;
                T value = T(0);
                if (row < last) {
                    value = v ? T(warp_dot(a.cols, a.data + row * a.row_stride, v, lane, a.unit))
                              : t[row];
                    if (v && lane == 0) t[row] = value;
                }
                if (lane == 0) column[place] = value;
            }
            if (!own) continue;
            sync_threads();
            const int count = last - r < group ? int(last - r) : group;
            for (int64_t j = thread_; j < a.cols; j += block_threads) {
                const T* p = a.data + r * a.row_stride + j;
                T sum = own[j];
                for (int q = 0; q < count; ++q) sum += column[q] * (a.unit * p[q * a.row_stride]);
                own[j] = sum;
            }
            sync_threads();
        }
        barrier();
        if (own != s) {
            for (int64_t j = rank_; j < a.cols; j += size_) {
                T sum = T(0);
                for (int b = 0; b < blocks_; ++b) sum += sums[b * a.cols + j];
                s[j] = sum;
            }
            barrier();
        }
        release(begin);
    }

    // v = Aᵀu / ‖Aᵀu‖; where that vanishes or is not finite, a vector of equal components.
    LIPFUSE_DEVICE void normalized_product_of_transpose(View<T> a, T* u, T* v, double eps) {
        sweep(a, nullptr, u, v);
        const double norm = std::sqrt(dot(a.cols, v, v));
        if (norm > eps && std::isfinite(norm))
            axpby(a.cols, T(1 / norm), v, T(0), nullptr, v);
        else
            fill(v, a.cols, T(1 / std::sqrt(double(a.cols))));
    }

    LIPFUSE_DEVICE LIPFUSE_NOINLINE double dot(int64_t n, const T* x, const T* y) {
        return sum_over(n, [=](int64_t i) { return x[i] * y[i]; });
    }
    LIPFUSE_DEVICE LIPFUSE_NOINLINE double distance(int64_t n, const T* x, const T* y) {
        return sum_over(n, [=](int64_t i) { return (x[i] - y[i]) * (x[i] - y[i]); });
    }

    LIPFUSE_DEVICE LIPFUSE_NOINLINE void axpby(int64_t n, T a, const T* x, T b, const T* y,
                                               T* out) {
        if (y)
            for (int64_t i = rank_; i < n; i += size_) out[i] = a * x[i] + b * y[i];
        else
            for (int64_t i = rank_; i < n; i += size_) out[i] = a * x[i];
        barrier();
    }

    // out = a X + d I
    LIPFUSE_DEVICE void combine(T a, const T* x, int64_t n, T d, T* out) {
        for (int64_t i = rank_; i < n * n; i += size_) out[i] = a * x[i] + (i % (n + 1) ? T(0) : d);
        barrier();
    }
    LIPFUSE_DEVICE void add_diagonal(T* x, int64_t n, T d) {
        for (int64_t i = rank_; i < n; i += size_) x[i * n + i] += d;
        barrier();
    }
    LIPFUSE_DEVICE LIPFUSE_NOINLINE void fill(T* x, int64_t n, T value) {
        for (int64_t i = rank_; i < n; i += size_) x[i] = value;
        barrier();
    }

    // A measure of the magnitude: the Euclidean norm, or where that leaves the range of T the
    // largest element; NaN if there is one.
    LIPFUSE_DEVICE double largest(const T* x, int64_t n) {
        const double squares = dot(n, x, x);
        if (std::isfinite(squares) && squares > 1e-12 && squares < 1e12) return std::sqrt(squares);
        return largest_element(x, n);
    }
    LIPFUSE_DEVICE LIPFUSE_NOINLINE double largest_element(const T* x, int64_t n) {
        double most = 0, nan = 0;
        for (int64_t i = rank_; i < n; i += size_) {
            const double y = std::fabs(double(x[i]));
            if (y != y) nan = 1;
            if (y > most) most = y;
        }
        nan = reduce<Largest>(nan);
        most = reduce<Largest>(most);
        return nan > 0 ? std::numeric_limits<double>::quiet_NaN() : most;
    }

    // out = a - aᵀ; returns the sum of squares.
    LIPFUSE_DEVICE LIPFUSE_NOINLINE double skew(const T* a, int64_t n, T* out) {
        double total = 0;
        over_pairs(n, [&](int64_t at, int64_t mirror) {
            const T x = a[at] - a[mirror];
            out[at] = x;
            total += double(x) * double(x);
        });
        return reduce<Sum>(total);  // its barrier serves `out` too
    }
    // One step of a three-term recurrence on a skew-symmetric matrix, in place:
    //   r = c - (p - pᵀ);  d = fd * d + fr * r;  k += d;  returns the sum of r².
    // Both halves are computed; negation is exact, so k stays exactly skew.
    LIPFUSE_DEVICE LIPFUSE_NOINLINE double skew_step(const T* p, const T* c, T fd, T fr, T* d, T* k,
                                                     int64_t n) {
        double total = 0;
        over_pairs(n, [&](int64_t at, int64_t mirror) {
            const T r = c[at] - (p[at] - p[mirror]);
            total += double(r) * double(r);
            // With fd = 0 the old direction does not exist.
            const T step = (fd == T(0) ? T(0) : fd * d[at]) + fr * r;
            d[at] = step;
            k[at] += step;
        });
        return reduce<Sum>(total);
    }
    // previous <- k + fd (k - previous) + fr (c - (H K + K H)) for a symmetric h and skew-symmetric k,
    // previous and c, of which KH = -(HK)ᵀ.
    LIPFUSE_DEVICE LIPFUSE_NOINLINE void sylvester_step(const T* h, const T* k, const T* c, T fd,
                                                        T fr, T* previous, int64_t n) {
        const auto before = mark();
        T* p = allocate(n * n);
        multiply(view(h, n, n), view(k, n, n), p, false);
        over_pairs(n, [&](int64_t at, int64_t mirror) {
            previous[at] = k[at] + fd * (k[at] - previous[at]) + fr * (c[at] - (p[at] - p[mirror]));
        });
        barrier();
        release(before);
    }
    // out = alpha (a + aᵀ)
    LIPFUSE_DEVICE LIPFUSE_NOINLINE void symmetrize(const T* a, T alpha, int64_t n, T* out) {
        over_pairs(n, [&](int64_t at, int64_t mirror) { out[at] = alpha * (a[at] + a[mirror]); });
        barrier();
    }

    // out = alpha a + beta u vᵀ; a may be null, or out.
    LIPFUSE_DEVICE LIPFUSE_NOINLINE void rank_one_update(const T* a, T alpha, T beta, const T* u,
                                                         const T* v, int64_t rows, int64_t cols,
                                                         T* out) {
        const int64_t row_step = cols ? size_ / cols : 0, col_step = cols ? size_ % cols : 0;
        int64_t r = cols ? rank_ / cols : 0, c = cols ? rank_ % cols : 0;
        for (int64_t i = rank_; i < rows * cols; i += size_) {
            const T x = beta * u[r] * v[c];
            out[i] = a ? alpha * a[i] + x : x;
            r += row_step;
            c += col_step;
            if (c >= cols) {
                c -= cols;
                ++r;
            }
        }
        barrier();
    }

    LIPFUSE_DEVICE LIPFUSE_NOINLINE void fill_start_vector(T* v, int64_t n) {
        uint32_t state = 0x9e3779b9u;
        int64_t mine = rank_;
        for (int64_t i = 0; i < n && mine < n; ++i) {
            state = state * 1664525u + 1013904223u;
            if (i != mine) continue;
            v[i] = T(start_element(state, i, n));
            mine += size_;
        }
        barrier();
    }

    // Whether every eigenvalue of S lies below c: Cholesky's factorisation of c I - S, a warp a row.
    LIPFUSE_DEVICE LIPFUSE_NOINLINE bool proves_below(const T* s, int64_t n, double c) {
        const Mark begin = mark();
        T* l = allocate(n * n);
        T* pivots = allocate(1);
        const int lane = thread_ % 32;
        bool positive = true;
        for (int64_t j = 0; j < n && positive; ++j) {
            for (int64_t i = j + rank_ / 32; i < n; i += size_ / 32) {
                const double sum = warp_dot(j, l + i * n, l + j * n, lane);
                if (lane == 0) {
                    const double x = -double(s[i * n + j]) - sum;
                    if (i == j)
                        pivots[0] = T(c + x);
                    else
                        l[i * n + j] = T(x);
                }
            }
            barrier();
            const double pivot = double(pivots[0]);
            positive = pivot > 0;
            const double root = std::sqrt(pivot);
            if (positive && lane == 0)
                for (int64_t i = j + rank_ / 32; i < n; i += size_ / 32)
                    if (i > j) l[i * n + j] = T(double(l[i * n + j]) / root);
            barrier();
        }
        release(begin);
        return positive;
    }

    LIPFUSE_DEVICE void barrier() {
        sync_threads();
        if (blocks_ == 1) return;
        target_ += unsigned(blocks_);
        if (thread_ == 0) arrive_and_wait(counter_, target_);
        sync_threads();
    }

private:
    static LIPFUSE_DEVICE Shared<T>& shared() {
        return *reinterpret_cast<Shared<T>*>(shared_memory());
    }

    // The same value in every lane. Each lane sums in T over a bounded number of elements and
    // carries on in double.
    static LIPFUSE_DEVICE double warp_dot(int64_t n, const T* x, const T* y, int lane,
                                          T unit = T(1)) {
        double total = 0;
        for (int64_t i = lane; i < n;) {
            T part = T(0);
            const int64_t end = i + 32 * 64 < n ? i + 32 * 64 : n;
            for (; i < end; i += 32) part += unit * x[i] * y[i];
            total += double(part);
        }
        for (int mask = 16; mask; mask /= 2) total += shuffle_xor(total, mask);
        return total;
    }

    template <class F>
    LIPFUSE_DEVICE double sum_over(int64_t n, F f) {
        double total = 0;
        for (int64_t i = rank_; i < n;) {
            T part = T(0);
            for (int q = 0; q < 32 && i < n; ++q, i += size_) part += f(i);
            total += double(part);
        }
        return reduce<Sum>(total);
    }

    // The same result, bit for bit, in all threads of the team. Slots alternate: a thread that
    // writes to one again has passed a barrier that all have reached after reading it.
    template <class Op>
    LIPFUSE_DEVICE LIPFUSE_NOINLINE double reduce(double x) {
        for (int mask = 16; mask; mask /= 2) x = Op::of(x, shuffle_xor(x, mask));
        double* sums = shared().sums[turn_];
        if (thread_ % 32 == 0) sums[thread_ / 32] = x;
        sync_threads();
        x = sums[0];
        for (int w = 1; w < block_warps; ++w) x = Op::of(x, sums[w]);
        if (blocks_ > 1) {
            double* all = partial_ + turn_ * blocks_;
            if (thread_ == 0) all[block_] = x;
            barrier();
            x = all[0];
            for (int b = 1; b < blocks_; ++b) x = Op::of(x, all[b]);
        }
        turn_ ^= 1;
        return x;
    }

    // Calls f(i n + j, j n + i) for all i, j. Even n: along diagonals, where both run through
    // shared memory without bank conflicts; odd n: along rows, where they do anyway.
    template <class F>
    LIPFUSE_DEVICE void over_pairs(int64_t n, F f) {
        const bool diagonals = blocks_ == 1 && n % 2 == 0;
        for (int64_t e = rank_; e < n * n; e += size_) {
            int64_t i = e / n, j = e - i * n;
            if (diagonals) {
                const int64_t offset = i;
                i = j;
                j = i + offset < n ? i + offset : i + offset - n;
            }
            f(i * n + j, j * n + i);
        }
    }

    // Elements of a chunk of an operand, from memory to registers: M for each thread.
    // `along_depth`: neighbouring threads take neighbours in depth, else in the other direction.
    template <int M>
    static LIPFUSE_DEVICE void fetch(const T* data, int64_t stride, int64_t depth_stride,
                                     bool along_depth, int64_t first, int64_t count, int64_t k0,
                                     int64_t depth, int thread, T* to) {
        constexpr int D = Shared<T>::depth, side = 16 * M;
        for (int q = 0; q < M; ++q) {
            const int e = q * block_threads + thread;
            const int k = along_depth ? e % D : e / side, i = along_depth ? e / D : e % side;
            const bool inside = first + i < count && k0 + k < depth;
            to[q] = inside ? data[(first + i) * stride + (k0 + k) * depth_stride] : T(0);
        }
    }
    template <int M>
    static LIPFUSE_DEVICE void stage(const T* from, bool along_depth, int thread,
                                     T (*to)[Shared<T>::pitch]) {
        constexpr int D = Shared<T>::depth, side = 16 * M;
        for (int q = 0; q < M; ++q) {
            const int e = q * block_threads + thread;
            to[along_depth ? e % D : e / side][along_depth ? e / D : e % side] = from[q];
        }
    }

    // One tile of 16 M x 16 M: 256 threads with M x M sums each, operands by chunks of the inner
    // dimension through shared memory, the next chunk on its way while one is in use.
    template <int M>
    LIPFUSE_DEVICE void tile(const View<T>& a, const View<T>& b, const Epilogue<T>& e,
                             bool symmetric, int64_t i0, int64_t j0) {
        constexpr int D = Shared<T>::depth;
        Shared<T>& s = shared();
        const int64_t depth = a.cols, m = a.rows, n = b.cols;
        const bool a_along = a.col_stride == 1, b_along = b.row_stride == 1 && b.col_stride != 1;
        const int tx = thread_ % 16 * M, ty = thread_ / 16 * M;
        T sum[M][M] = {}, next_a[M], next_b[M];
        fetch<M>(a.data, a.row_stride, a.col_stride, a_along, i0, m, 0, depth, thread_, next_a);
        fetch<M>(b.data, b.col_stride, b.row_stride, b_along, j0, n, 0, depth, thread_, next_b);
        int turn = 0;
        for (int64_t k0 = 0; k0 < depth; k0 += D, turn ^= 1) {
            stage<M>(next_a, a_along, thread_, s.a[turn]);
            stage<M>(next_b, b_along, thread_, s.b[turn]);
            sync_threads();
            if (k0 + D < depth) {
                fetch<M>(a.data, a.row_stride, a.col_stride, a_along, i0, m, k0 + D, depth, thread_,
                         next_a);
                fetch<M>(b.data, b.col_stride, b.row_stride, b_along, j0, n, k0 + D, depth, thread_,
                         next_b);
            }
            LIPFUSE_UNROLL
            for (int k = 0; k < D; ++k) {
                T x[M], y[M];
                LIPFUSE_UNROLL
                for (int q = 0; q < M; ++q) {
                    x[q] = s.a[turn][k][ty + q];
                    y[q] = s.b[turn][k][tx + q];
                }
                LIPFUSE_UNROLL
                for (int p = 0; p < M; ++p) LIPFUSE_UNROLL
                for (int q = 0; q < M; ++q) sum[p][q] += x[p] * y[q];
            }
        }
        sync_threads();  // before the next tile overwrites what others may still read
        LIPFUSE_UNROLL
        for (int p = 0; p < M; ++p) LIPFUSE_UNROLL
        for (int q = 0; q < M; ++q) {
            const int64_t i = i0 + ty + p, j = j0 + tx + q, at = i * n + j;
            if (i >= m || j >= n || (symmetric && j > i)) continue;
            const T x0 = e.x[0] ? e.x[0][at] : T(0), x1 = e.x[1] ? e.x[1][at] : T(0);
            for (int o = 0; o < e.outputs; ++o) {
                T y = e.acc[o] * sum[p][q] + e.x0[o] * x0 + e.x1[o] * x1;
                if (i == j) y += e.diagonal[o];
                e.out[o][at] = y;
                if (symmetric && i != j) e.out[o][j * n + i] = y;
            }
        }
    }

    template <int M>
    LIPFUSE_DEVICE LIPFUSE_NOINLINE void product(View<T> a, View<T> b, const Epilogue<T>& e,
                                                 bool symmetric) {
        constexpr int side = 16 * M;
        int turn = 0;
        for (int64_t i = 0; i < a.rows; i += side)
            for (int64_t j = 0; j < b.cols && !(symmetric && j > i); j += side) {
                if (turn == block_) tile<M>(a, b, e, symmetric, i, j);
                if (++turn == blocks_) turn = 0;
            }
        barrier();
    }

    const Polynomials* polynomials_;
    int blocks_, block_, thread_, turn_ = 0;
    unsigned target_ = 0;
    int64_t rank_, size_;
    unsigned char* shared_;
    int64_t shared_size_, shared_used_ = 0;
    char* global_;
    int64_t global_size_, global_used_ = 0;
    unsigned* counter_;
    double* partial_;
};

// The algorithms' choices, from the table that came with the launch.
template <class T>
LIPFUSE_DEVICE const Minimax& choose_polynomial(Backend<T>& backend, double l, double) {
    const Polynomials& p = backend.polynomials();
    int i = 0;
    while (i + 1 < p.choices && p.low[i] > l) ++i;
    return p.choice[i];
}
template <class T>
LIPFUSE_DEVICE const Minimax& choose_cubic(Backend<T>& backend, double l) {
    const Polynomials& p = backend.polynomials();
    int i = 0;
    while (i + 1 < p.cubics && p.cubic_low[i] > l) ++i;
    return p.cubic[i];
}
template <class T>
LIPFUSE_DEVICE bool lies_below(Backend<T>& backend, const T* s, int64_t n, double c) {
    return backend.proves_below(s, n, c);
}

}  // namespace lipfuse::cuda
