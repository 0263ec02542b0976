// The CPU backend of the algorithms: products and passes on matrices, cut into tasks.
#pragma once

#include <algorithm>
#include <cmath>

#include "../algorithms/spectrum.h"
#include "arena.h"
#include "kernels.h"
#include "packed_product.h"
#include "parallel.h"
#include "shares.h"
#include "split_product.h"

namespace lipfuse::cpu {

template <class T>
class Backend {
public:
    using Scalar = T;
    static constexpr bool inverts = true;
    static constexpr bool near_scratch = false;  // nearer than a result is

    explicit Backend(Parallel parallel = {})
        : kernels_(kernels<T>()),
          parallel_(parallel),
          shares_(kernels_, parallel_),
          arena_(Arena::of_this_thread()),
          entry_(arena_.mark()) {}
    Backend(const Backend&) = delete;
    Backend& operator=(const Backend&) = delete;
    // An algorithm that was left by an exception has not released what it holds.
    ~Backend() { arena_.release(entry_); }

    // Scratch memory, released in the reverse order of its marks.
    Arena::Mark mark() const { return arena_.mark(); }
    void release(Arena::Mark mark) { arena_.release(mark); }
    T* allocate(int64_t count) { return arena_.allocate<T>(count); }

    static View<const T> view(const T* data, int64_t rows, int64_t cols) {
        return {data, rows, cols, cols, 1};
    }
    static Epilogue<T> epilogue(T* out) {
        Epilogue<T> e;
        e.out[0] = out;
        return e;
    }

    void multiply(View<const T> a, View<const T> b, T* out, bool symmetric) {
        multiply(a, b, epilogue(out), symmetric);
    }
    void multiply(View<const T> a, View<const T> b, const Epilogue<T>& e, bool symmetric) {
        multiply(a, b, e, symmetric ? Mirror::symmetric : Mirror::none);
    }
    void multiply(View<const T> a, View<const T> b, const Epilogue<T>& e, Mirror mirror) {
        Product<T> product;
        product.terms[0] = {a, b};
        product.mirror = mirror;
        product.epilogue = e;
        compute(product);
    }

    // Symmetric and skew-symmetric matrices are kept as their lower halves if an algorithm allows it.
    // For products on a tile unit that is done in blocks: half of the memory, in one piece each. Where
    // there is no such unit it is done row by row if several threads share a matrix of medium size:
    // what products need of the upper half they find while they pack their operands, and a mirror image
    // in memory would travel from core to core. Small matrices are not packed, and large ones not twice.
    bool keeps_blocks(int64_t n) const {
        if (n % block_side != 0) return false;
        const double work = 0.5 * double(n) * double(n) * double(n);
        return split().pays(n, n, work, task_count(work, product_work));
    }
    bool keeps_half(int64_t n) const {
        if (kernels_.split_product) return keeps_blocks(n);
        return parallel_.threads > 1 && n > 160 && n <= half_most;
    }
    View<const T> half(const T* data, int64_t n, Mirror mirror = Mirror::symmetric) const {
        return {data, n, n, n, 1, keeps_half(n) ? mirror : Mirror::none, layout(n)};
    }
    // How many elements that takes, of the n² there is room for.
    int64_t size_of_half(int64_t n) const {
        return keeps_blocks(n) ? n * (n + block_side) / 2 : n * n;
    }
    void multiply_half(View<const T> a, View<const T> b, const Epilogue<T>& e,
                       Mirror mirror = Mirror::symmetric) {
        Product<T> product;
        product.terms[0] = {a, b};
        product.mirror = mirror;
        product.half = keeps_half(a.rows);
        product.layout = layout(a.rows);
        product.epilogue = e;
        compute(product);
    }
    // Makes such a matrix a whole one, row by row.
    void complete(T* x, int64_t n, Mirror mirror = Mirror::symmetric) {
        if (!keeps_half(n)) return;
        const int tasks = task_count(double(n) * double(n), 2e4);
        if (!keeps_blocks(n)) {
            shares_.over_triangle(n, tasks, [&](int, int64_t begin, int64_t end) {
                kernels_.mirror(x, n, n, begin, end, mirror == Mirror::skew);
            });
            return;
        }
        const auto mark = arena_.mark();
        T* copy = allocate(size_of_half(n));
        axpby(size_of_half(n), T(1), x, T(0), nullptr, copy);
        shares_.over_blocks(n, tasks, [&](int64_t begin, int64_t end) {
            kernels_.unpack_blocks(half(copy, n, mirror), begin, end, x);
        });
        arena_.release(mark);
    }
    // The opposite: whoever has written a whole one wants it kept as half.
    void keep_half(T* x, int64_t n) {
        if (!keeps_blocks(n)) return;
        const auto mark = arena_.mark();
        T* blocks = allocate(size_of_half(n));
        shares_.over_blocks(
            n, task_count(double(n) * double(n), 2e4),
            [&](int64_t begin, int64_t end) { kernels_.pack_blocks(x, n, begin, end, blocks); });
        axpby(size_of_half(n), T(1), blocks, T(0), nullptr, x);
        arena_.release(mark);
    }
    // The sum of its squares, both halves counted.
    double square_of_half(const T* x, int64_t n) {
        if (!keeps_half(n)) return dot(n * n, x, x);
        double partial[Shares<T>::max_tasks];
        const int tasks = shares_.over_rows_of_half(
            n, half_step(n), task_count(double(n) * double(n), 2e4),
            [&](int t, int64_t begin, int64_t end) {
                partial[t] = kernels_.square_of_half(half(x, n), begin, end);
            });
        return sum(partial, tasks);
    }

    // previous <- k + fd (k - previous) + fr (c - (H K + K H)) for a symmetric h and skew-symmetric
    // k, previous and c, of whose upper halves those of the last two are not read: one step of a
    // three-term iteration.
    void sylvester_step(const T* h, const T* k, const T* c, T fd, T fr, T* previous, T* spare,
                        int64_t n) {
        auto e = epilogue(previous);
        e.acc[0] = -fr;
        e.x[0] = k;
        e.x0[0] = 1 + fd;
        e.x[1] = previous;
        e.x1[0] = -fd;
        e.x[2] = c;
        e.x2[0] = fr;
        anticommutator(h, k, n, e, spare);
    }

    // The first step, from k = start c and nothing before it: k and previous are only written.
    void first_sylvester_step(const T* h, const T* c, T start, T fd, T fr, T* k, T* previous,
                              T* spare, int64_t n) {
        auto e = epilogue(previous);
        e.outputs = 2;
        e.out[1] = k;
        e.x[0] = c;
        e.acc[0] = -fr * start;
        e.x0[0] = (1 + fd) * start + fr;
        e.acc[1] = 0;
        e.x0[1] = start;
        anticommutator(h, c, n, e, spare);
    }
    // out = alpha (A B + C D)
    void multiply_both(View<const T> a, View<const T> b, View<const T> c, View<const T> d, T alpha,
                       T* out) {
        Product<T> product;
        product.count = 2;
        product.terms[0] = {a, b};
        product.terms[1] = {c, d};
        product.epilogue = epilogue(out);
        product.epilogue.acc[0] = alpha;
        compute(product);
    }

    // a <- its inverse, for a symmetric positive definite n x n matrix whose rows are `stride` apart.
    // By halves, so that nearly all of the work is products. root (may be null): the inverse of its
    // Cholesky factor, with zeros above the diagonal.
    void invert(T* a, int64_t n, int64_t stride, T* root = nullptr, int64_t root_stride = 0) {
        if (n <= invert_most) return kernels_.invert(a, n, stride, root, root_stride);
        const int64_t step = std::min(shares_.row_step(), invert_most);
        const int64_t top = std::max(step, n / 2 / step * step), rest = n - top;
        T *const upper = a + top, *const lower = a + top * stride, *const corner = lower + top;
        auto at = [](const T* x, int64_t rows, int64_t cols, int64_t stride) {
            return View<const T>{x, rows, cols, stride, 1};
        };
        auto product = [&](View<const T> x, View<const T> y, T* out, int64_t out_stride, T factor,
                           T keep, bool symmetric = false) {
            auto e = epilogue(out);
            e.stride = out_stride;
            e.acc[0] = factor;
            e.x[0] = keep != T(0) ? out : nullptr;
            e.x0[0] = keep;
            multiply(x, y, e, symmetric);
        };
        const auto mark = arena_.mark();
        const int64_t first_stride = root ? root_stride : top;
        T* const first = root ? root : allocate(top * top);
        T* const u = allocate(rest * top);
        T* const t = allocate(rest * top);
        // [A Bᵀ; B D] with X the inverse of A's factor: U = B Xᵀ, S = D - U Uᵀ, T = U X = B A⁻¹; the
        // inverse is [A⁻¹ + Tᵀ S⁻¹ T, .; -S⁻¹ T, S⁻¹]. Without U, as D - T Bᵀ, S would lose as many
        // digits again as A⁻¹ has lost.
        invert(a, top, stride, first, first_stride);
        const auto x = at(first, top, top, first_stride), tv = view(t, rest, top);
        product(at(lower, rest, top, stride), x.transposed(), u, top, 1, 0);
        product(view(u, rest, top), view(u, rest, top).transposed(), corner, stride, -1, 1, true);
        product(view(u, rest, top), x, t, top, 1, 0);
        T* const second = root ? root + top * root_stride + top : nullptr;
        invert(corner, rest, stride, second, root_stride);
        product(at(corner, rest, rest, stride), tv, lower, stride, -1, 0);
        product(tv.transposed(), at(lower, rest, top, stride), a, stride, -1, 1, true);
        kernels_.transpose(lower, stride, upper, stride, rest, top);
        if (root) {
            product(at(second, rest, rest, root_stride), tv, root + top * root_stride, root_stride,
                    -1, 0);
            for (int64_t i = 0; i < top; ++i) std::fill_n(root + i * root_stride + top, rest, T(0));
        }
        arena_.release(mark);
    }

    // y = A x for a symmetric A
    void symmetric_matvec(const View<const T>& a, const T* x, T* y) {
        const int64_t n = a.rows;
        const int tasks = task_count(double(n) * double(n), matvec_work);
        if (a.half == Mirror::none) {
            const int64_t blocks = Shares<T>::panels(n, 64);
            parallel_.for_each(tasks, [&](int t) {
                kernels_.symmetric_matvec(a.data, n, x, std::min(n, part(blocks, t, tasks) * 64),
                                          std::min(n, part(blocks, t + 1, tasks) * 64), y);
            });
            return;
        }
        // Rows give elements of y to the left of the diagonal as well, each task to a copy.
        const auto mark = arena_.mark();
        T* partial = allocate((tasks - 1) * n);
        shares_.over_rows_of_half(n, half_step(n), tasks, [&](int t, int64_t begin, int64_t end) {
            T* to = t == tasks - 1 ? y : partial + t * n;
            std::fill(to, to + begin, T(0));
            kernels_.symmetric_matvec_of_half(a, x, begin, end, to);
        });
        for (int t = 0; t < tasks - 1; ++t)
            kernels_.axpby(Shares<T>::row_of_half(n, half_step(n), t + 1, tasks), T(1),
                           partial + t * n, T(1), y, y);
        arena_.release(mark);
    }

    // Lanczos's process for as long as one thread is enough for a product with A.
    bool lanczos(const View<const T>& a, int steps, Tridiagonal& t) {
        const int64_t n = a.rows;
        if (task_count(double(n) * double(n), matvec_work) > 1) return false;
        const auto mark = arena_.mark();
        T* v = allocate(3 * n);
        fill_start_vector(v, n);
        fill(v + n, n, T(0));
        t.size = kernels_.lanczos(a, int(std::min<int64_t>({n, steps, Tridiagonal::most})), v,
                                  v + n, v + 2 * n, t.diagonal, t.beside);
        arena_.release(mark);
        return true;
    }

    void lanczos_step(int64_t n, const T* v, const T* previous, double beta, T* next, double* alpha,
                      double* length) {
        kernels_.lanczos_step(n, v, previous, beta, next, alpha, length);
    }

    // t = A v and s = Aᵀ t in one reading of A.
    void sweep(View<const T> a, const T* v, T* t, T* s) {
        const int tasks = task_count(double(a.rows) * double(a.cols), 2e4);
        const auto mark = arena_.mark();
        T* partial = tasks > 1 ? allocate(tasks * a.cols) : s;
        parallel_.for_each(tasks, [&](int i) {
            T* sum = s ? partial + i * a.cols : nullptr;
            if (sum) std::fill(sum, sum + a.cols, T(0));
            kernels_.sweep(a.data, a.cols, a.row_stride, v, part(a.rows, i, tasks),
                           part(a.rows, i + 1, tasks), t, sum);
        });
        if (s && tasks > 1) {
            std::copy(partial, partial + a.cols, s);
            for (int i = 1; i < tasks; ++i)
                kernels_.axpby(a.cols, T(1), s, T(1), partial + i * a.cols, s);
        }
        arena_.release(mark);
    }

    // v = Aᵀu
    void product_of_transpose(View<const T> a, const T* u, T* v) {
        std::fill(v, v + a.cols, T(0));
        for (int64_t i = 0; i < a.rows; ++i)
            kernels_.axpby(a.cols, u[i], a.data + i * a.row_stride, T(1), v, v);
    }
    // v = Aᵀu / ‖Aᵀu‖; where that vanishes, a vector of equal components.
    void normalized_product_of_transpose(View<const T> a, const T* u, T* v, double eps) {
        product_of_transpose(a, u, v);
        const double norm = std::sqrt(dot(a.cols, v, v));
        if (norm > eps && std::isfinite(norm))
            axpby(a.cols, T(1 / norm), v, T(0), nullptr, v);
        else
            fill(v, a.cols, T(1 / std::sqrt(double(a.cols))));
    }

    double dot(int64_t n, const T* x, const T* y) {
        return reduce(n, [&](int64_t begin, int64_t end) {
            return kernels_.dot(end - begin, x + begin, y + begin);
        });
    }

    // For vectors too short to share out.
    double short_dot(int64_t n, const T* x, const T* y) { return kernels_.dot(n, x, y); }

    // The squared distance of two vectors.
    double distance(int64_t n, const T* x, const T* y) {
        return reduce(n, [&](int64_t begin, int64_t end) {
            return kernels_.distance(end - begin, x + begin, y + begin);
        });
    }

    void axpby(int64_t n, T a, const T* x, T b, const T* y, T* out) {
        const int tasks = task_count(double(n), 1e4);
        parallel_.for_each(tasks, [&](int t) {
            const int64_t begin = part(n, t, tasks), end = part(n, t + 1, tasks);
            kernels_.axpby(end - begin, a, x + begin, b, y ? y + begin : nullptr, out + begin);
        });
    }

    // out = a X + d I for matrices that are kept as half
    void combine(T a, const T* x, int64_t n, T d, T* out) {
        axpby(size_of_half(n), a, x, T(0), nullptr, out);
        const auto kept = half(out, n);
        for (int64_t i = 0; i < n; ++i) out[lower_corner(kept, i, i) - kept.data] += d;
    }

    void add_diagonal(T* x, int64_t n, T d) {
        for (int64_t i = 0; i < n; ++i) x[i * n + i] += d;
    }

    void fill(T* x, int64_t n, T value) { std::fill(x, x + n, value); }

    // The Euclidean norm, or where squares leave the range of T the largest magnitude. NaN if there
    // is one.
    double largest(const T* x, int64_t n) {
        const double squares = dot(n, x, x);
        // The squares' sum is all that is needed unless it left the range of T.
        if (std::isfinite(squares) && squares > 1e-12 && squares < 1e12) return std::sqrt(squares);
        double most = 0;
        for (int64_t i = 0; i < n; ++i) {
            if (x[i] != x[i]) return double(x[i]);
            most = std::max(most, std::fabs(double(x[i])));
        }
        return most;
    }

    // out = a - aᵀ, one that is kept as half; returns the sum of squares.
    double skew(const T* a, int64_t n, T* out) {
        const auto kept = half(out, n, Mirror::skew);
        return over_lower_half(n, [&](int64_t begin, int64_t end) {
            return kernels_.skew(a, begin, end, View<T>{out, n, n, n, 1, kept.half, kept.layout});
        });
    }

    void symmetrize(const T* a, T alpha, int64_t n, T* out) {
        over_lower_half(n, [&](int64_t begin, int64_t end) {
            kernels_.symmetrize(a, alpha, n, begin, end, out);
            return 0.0;
        });
    }

    void rank_one_update(const T* a, T alpha, T beta, const T* u, const T* v, int64_t rows,
                         int64_t cols, T* out) {
        const int tasks = task_count(double(rows) * double(cols), 1e4);
        parallel_.for_each(tasks, [&](int t) {
            kernels_.rank_one_update(a, alpha, beta, u, v, cols, part(rows, t, tasks),
                                     part(rows, t + 1, tasks), out);
        });
    }

    // A contiguous copy of a strided matrix.
    void gather(View<const T> a, T* out) {
        const int tasks = task_count(double(a.rows) * double(a.cols), 2e4);
        parallel_.for_each(tasks, [&](int t) {
            kernels_.gather(a, part(a.rows, t, tasks), part(a.rows, t + 1, tasks), out);
        });
    }

    void fill_start_vector(T* v, int64_t n) {
        uint32_t state = 0x9e3779b9u;
        for (int64_t i = 0; i < n; ++i) {
            state = state * 1664525u + 1013904223u;
            v[i] = T(start_element(state, i, n));
        }
    }

private:
    static constexpr double product_work = 6e4, matvec_work = 6.5e4;
    static constexpr int64_t half_most = 320;

    // HK + KH for a symmetric h and a skew-symmetric k, both kept as half: skew-symmetric again.
    void anticommutator(const T* h, const T* k, int64_t n, const Epilogue<T>& e, T* spare) {
        Product<T> product;
        product.count = 2;
        product.terms[0] = {half(h, n), half(k, n, Mirror::skew)};
        product.terms[1] = {half(k, n, Mirror::skew), half(h, n)};
        product.mirror = Mirror::skew;
        product.half = keeps_half(n);
        product.layout = layout(n);
        product.epilogue = e;
        const double work = double(n) * double(n) * double(n);
        const int tasks = task_count(work, product_work);
        if (split().pays(n, n, work, tasks))
            split().anticommutator(half(h, n), half(k, n, Mirror::skew), e, spare, work, tasks);
        else
            compute(product);
    }

    SplitProduct<T> split() const { return {kernels_, parallel_, arena_}; }
    Layout layout(int64_t n) const { return keeps_blocks(n) ? Layout::lower_blocks : Layout::rows; }
    int64_t half_step(int64_t n) const {
        return keeps_blocks(n) ? block_side : shares_.fine_step();
    }
    int task_count(double work, double work_a_task) const {
        return shares_.task_count(work, work_a_task);
    }
    static int64_t part(int64_t n, int t, int tasks) { return Shares<T>::part(n, t, tasks); }

    void compute(Product<T>& p) {
        const int64_t m = p.terms[0].a.rows, n = p.terms[0].b.cols, depth = p.terms[0].a.cols;
        const double work =
            double(m) * double(n) * double(depth) * p.count * (p.mirror == Mirror::none ? 1 : 0.5);
        const int tasks = task_count(work, product_work);
        const bool in_blocks = p.layout != Layout::rows || p.terms[0].a.layout != Layout::rows ||
                               p.terms[0].b.layout != Layout::rows;
        if (in_blocks || split().pays(m, n, work, tasks))
            split().compute(p, work, tasks);
        else
            PackedProduct<T>(kernels_, shares_, arena_).compute(p, tasks);
    }

    static double sum(const double* partial, int count) {
        double total = 0;
        for (int i = 0; i < count; ++i) total += partial[i];
        return total;
    }
    template <class F>
    double reduce(int64_t n, F f) {
        const int tasks = task_count(double(n), 1e4);
        double partial[Shares<T>::max_tasks];
        parallel_.for_each(
            tasks, [&](int t) { partial[t] = f(part(n, t, tasks), part(n, t + 1, tasks)); });
        return sum(partial, tasks);
    }
    template <class F>
    double over_lower_half(int64_t n, F f) {
        double partial[Shares<T>::max_tasks];
        const int tasks = shares_.over_triangle(
            n, task_count(double(n) * double(n) * 0.5, 4e3),
            [&](int t, int64_t begin, int64_t end) { partial[t] = f(begin, end); });
        return sum(partial, tasks);
    }

    const Kernels<T>& kernels_;
    Parallel parallel_;
    Shares<T> shares_;
    Arena& arena_;
    const Arena::Mark entry_;
};

// What algorithms put together from smaller steps elsewhere.
template <class T>
Tridiagonal lanczos(Backend<T>& backend, const View<const T>& s, int steps) {
    Tridiagonal t;
    if (backend.lanczos(s, steps, t)) return t;
    return lipfuse::lanczos<Backend<T>>(backend, s, steps);
}
template <class T>
void first_sylvester_step(Backend<T>& backend, const T* h, const T* c, T start, T fd, T fr, T* k,
                          T* previous, T* spare, int64_t n) {
    backend.first_sylvester_step(h, c, start, fd, fr, k, previous, spare, n);
}
template <class T>
void multiply_both(Backend<T>& backend, View<const T> a, View<const T> b, View<const T> c,
                   View<const T> d, T alpha, T* out) {
    backend.multiply_both(a, b, c, d, alpha, out);
}

}  // namespace lipfuse::cpu
