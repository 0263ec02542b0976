// The kernels: what each does to one matrix, on the algorithms that the CPU runs too. A launch takes
// a table of items, each some equal matrices.
#pragma once

#include "../algorithms/bjorck.h"
#include "../algorithms/polar_gradient.h"
#include "../algorithms/polar_saved.h"
#include "../algorithms/spectral_bound.h"
#include "krylov.h"
#include "sweep.h"

namespace lipfuse::cuda {

// Calls job(backend, item, index) for every matrix of every item, a team of blocks for each.
template <class T, class Item, class Job>
LIPFUSE_DEVICE void for_each_matrix(const Layout& layout, const Table<Item>& table,
                                    const Polynomials* polynomials, Job job) {
    Backend<T> backend(layout, polynomials);
    for (int64_t turn = 0;; ++turn) {
        const Task task = backend.role().task(layout, turn);
        if (task.item < 0) return;
        job(backend, table.item[task.item], task.matrix);
        backend.barrier();
    }
}

inline LIPFUSE_DEVICE double away_from_zero(double sigma, double eps) {
    return std::fabs(sigma) < eps ? eps : sigma;
}

// ---- power iteration -----------------------------------------------------------------------------

template <class T>
struct PowerArguments {
    const T *weight, *u, *v;  // v may be null
    T *new_u, *new_v, *sigma;
    int64_t rows, cols;
    double eps;
    int n_iterations, sigma_step;
    // of the normalisation
    T* out;
    double scale;
};

// From u and v as given, to new_u, new_v and sigma.
template <class T>
LIPFUSE_DEVICE LIPFUSE_NOINLINE double iterate(Backend<T>& backend, const PowerArguments<T>& a,
                                               int64_t i) {
    const T* none = nullptr;
    auto w = backend.view(a.weight + i * a.rows * a.cols, a.rows, a.cols);
    T* u = a.new_u + i * a.rows;
    T* v = a.new_v + i * a.cols;
    double sigma = 0, unit = 1;
    for (int attempt = 0; attempt < 2; ++attempt) {
        backend.axpby(a.rows, T(1), a.u + i * a.rows, T(0), none, u);
        if (a.v)
            backend.axpby(a.cols, T(1), a.v + i * a.cols, T(0), none, v);
        else
            normalized_product_of_transpose(backend, w, u, v, a.eps * unit);
        bool leaves_range;
        sigma = power_iteration_in_range(backend, w, u, v, a.n_iterations, a.eps * unit,
                                         &leaves_range) /
                unit;
        if (attempt || (!leaves_range && (a.n_iterations || std::isfinite(sigma)))) break;
        // Once more from the start, reading W in units of a power of two. Where W is not finite or
        // of ordinary size, it is the products that vanish.
        const double size = backend.largest(w.data, a.rows * a.cols);
        if (!(size > 0) || !std::isfinite(size) || (size > 0.5 && size < 4)) {
            sigma = size;
            break;
        }
        const int exponent = std::ilogb(size), most = sizeof(T) == 4 ? 120 : 1000;
        unit = std::ldexp(1.0, exponent > most ? -most : exponent < -most ? most : -exponent);
        w.unit = T(unit);
    }
    if (backend.leads()) a.sigma[i * a.sigma_step] = T(sigma);
    return sigma;
}

template <class T>
LIPFUSE_DEVICE void power_iteration_kernel(const Layout& layout,
                                           const Table<PowerArguments<T>>& table) {
    for_each_matrix<T>(
        layout, table, nullptr,
        [](Backend<T>& backend, const PowerArguments<T>& a, int64_t i) { iterate(backend, a, i); });
}

template <class T>
LIPFUSE_DEVICE void spectral_normalize_kernel(const Layout& layout,
                                              const Table<PowerArguments<T>>& table) {
    for_each_matrix<T>(layout, table, nullptr,
                       [](Backend<T>& backend, const PowerArguments<T>& a, int64_t i) {
                           const int64_t area = a.rows * a.cols;
                           const double sigma = iterate(backend, a, i);
                           backend.axpby(area, T(a.scale / away_from_zero(sigma, a.eps)),
                                         a.weight + i * area, T(0), nullptr, a.out + i * area);
                       });
}

template <class T>
struct OuterArguments {
    const T *grad, *grad_sigma, *normalized, *sigma, *u, *v;  // the first three may be null
    T* out;
    int64_t rows, cols;
    double eps, scale;
};

// d sigma / dW = u vᵀ
template <class T>
LIPFUSE_DEVICE void power_iteration_backward_kernel(const Layout& layout,
                                                    const Table<OuterArguments<T>>& table) {
    for_each_matrix<T>(
        layout, table, nullptr, [](Backend<T>& backend, const OuterArguments<T>& a, int64_t i) {
            backend.rank_one_update(nullptr, T(0), a.grad_sigma[i], a.u + i * a.rows,
                                    a.v + i * a.cols, a.rows, a.cols, a.out + i * a.rows * a.cols);
        });
}

// (c G - <G, Ŵ> u vᵀ) / sigma + g_sigma u vᵀ; below eps the divisor is a constant.
template <class T>
LIPFUSE_DEVICE void spectral_normalize_backward_kernel(const Layout& layout,
                                                       const Table<OuterArguments<T>>& table) {
    for_each_matrix<T>(
        layout, table, nullptr, [](Backend<T>& backend, const OuterArguments<T>& a, int64_t i) {
            const int64_t area = a.rows * a.cols;
            const double sigma = double(a.sigma[i]);
            double along = 0;
            if (!(std::fabs(sigma) < a.eps))
                along = -backend.dot(area, a.grad + i * area, a.normalized + i * area) / sigma;
            if (a.grad_sigma) along += double(a.grad_sigma[i]);
            backend.rank_one_update(a.grad + i * area, T(a.scale / away_from_zero(sigma, a.eps)),
                                    T(along), a.u + i * a.rows, a.v + i * a.cols, a.rows, a.cols,
                                    a.out + i * area);
        });
}

// ---- Frobenius normalisation: a row is a matrix --------------------------------------------------

template <class T>
struct FrobeniusArguments {
    const T *in, *normalized, *norm;  // the latter two of the backward only
    T *out, *new_norm;
    int64_t n;
    double eps, scale;
};

template <class T>
LIPFUSE_DEVICE void frobenius_normalize_kernel(const Layout& layout,
                                               const Table<FrobeniusArguments<T>>& table) {
    for_each_matrix<T>(layout, table, nullptr,
                       [](Backend<T>& backend, const FrobeniusArguments<T>& a, int64_t i) {
                           const T* in = a.in + i * a.n;
                           const double norm = std::sqrt(backend.dot(a.n, in, in));
                           if (backend.leads()) a.new_norm[i] = T(norm);
                           backend.axpby(a.n, T(a.scale / (norm < a.eps ? a.eps : norm)), in, T(0),
                                         nullptr, a.out + i * a.n);
                       });
}

template <class T>
LIPFUSE_DEVICE void frobenius_normalize_backward_kernel(const Layout& layout,
                                                        const Table<FrobeniusArguments<T>>& table) {
    for_each_matrix<T>(
        layout, table, nullptr, [](Backend<T>& backend, const FrobeniusArguments<T>& a, int64_t i) {
            const T* g = a.in + i * a.n;
            const T* w = a.normalized + i * a.n;
            const double norm = double(a.norm[i]);
            const double along = norm < a.eps ? 0.0 : -backend.dot(a.n, g, w) / (a.scale * norm);
            backend.axpby(a.n, T(a.scale / (norm < a.eps ? a.eps : norm)), g, T(along), w,
                          a.out + i * a.n);
        });
}

// ---- Björck --------------------------------------------------------------------------------------

template <class T>
struct BjorckArguments {
    const T* weight;
    T *out, *history;  // history may be null
    int64_t* steps;
    int64_t rows, cols;
    int max_iterations;
    double beta, eps, scale;
};

template <class T>
LIPFUSE_DEVICE int iterate(Backend<T>& backend, const BjorckArguments<T>& a, const T* weight,
                           bool guard, int64_t i, double* shrink) {
    const int64_t area = a.rows * a.cols;
    const int steps = bjorck(backend, weight, a.rows, a.cols, a.beta, a.max_iterations, a.eps,
                             a.scale, guard, a.out + i * area,
                             a.history ? a.history + i * a.max_iterations * area : nullptr, shrink);
    if (backend.leads()) a.steps[i] = steps;
    return steps;
}

template <class T>
LIPFUSE_DEVICE void bjorck_kernel(const Layout& layout, const Table<BjorckArguments<T>>& table) {
    for_each_matrix<T>(layout, table, nullptr,
                       [](Backend<T>& backend, const BjorckArguments<T>& a, int64_t i) {
                           double shrink;
                           iterate(backend, a, a.weight + i * a.rows * a.cols, false, i, &shrink);
                       });
}

// sigma by power iteration, W / sigma, Björck, times `scale`; sigma holds (sigma, shrink).
template <class T>
struct ChainArguments {
    PowerArguments<T> power;
    BjorckArguments<T> bjorck;
};

template <class T>
LIPFUSE_DEVICE void spectral_bjorck_kernel(const Layout& layout,
                                           const Table<ChainArguments<T>>& table) {
    for_each_matrix<T>(layout, table, nullptr,
                       [](Backend<T>& backend, const ChainArguments<T>& a, int64_t i) {
                           const int64_t area = a.bjorck.rows * a.bjorck.cols;
                           const double sigma = iterate(backend, a.power, i);
                           const auto mark = backend.mark();
                           T* scaled = backend.allocate(area);
                           backend.axpby(area, T(1 / away_from_zero(sigma, a.power.eps)),
                                         a.bjorck.weight + i * area, T(0), nullptr, scaled);
                           double shrink;
                           iterate(backend, a.bjorck, scaled, true, i, &shrink);
                           backend.release(mark);
                           if (backend.leads()) a.power.sigma[2 * i + 1] = T(shrink);
                       });
}

template <class T>
struct BjorckBackwardArguments {
    const T *grad, *history;
    const int64_t* steps;
    T* out;
    int64_t rows, cols;
    int most_steps;  // that `history` keeps; if `steps` says more, those
    double beta, scale;
    // of the whole chain; sigma is null for the iteration alone
    const T *sigma, *u, *v;
    double eps;
};

template <class T>
LIPFUSE_DEVICE void bjorck_backward_kernel(const Layout& layout,
                                           const Table<BjorckBackwardArguments<T>>& table) {
    for_each_matrix<T>(
        layout, table, nullptr,
        [](Backend<T>& backend, const BjorckBackwardArguments<T>& a, int64_t i) {
            const int64_t area = a.rows * a.cols;
            T* out = a.out + i * area;
            const T* first = a.history + i * a.most_steps * area;
            const int64_t taken = a.steps[i];
            const int steps = taken < 0              ? 0
                              : taken > a.most_steps ? a.most_steps
                                                     : static_cast<int>(taken);
            bjorck_backward(backend, a.grad + i * area, first, a.rows, a.cols, steps, a.beta,
                            a.scale, out);
            if (!a.sigma) return;
            // W0 = shrink W / sigma, sigma = uᵀWv
            const double sigma = double(a.sigma[2 * i]), shrink = double(a.sigma[2 * i + 1]);
            double along = 0;
            if (!(std::fabs(sigma) < a.eps)) along = -backend.dot(area, out, first) / sigma;
            backend.rank_one_update(out, T(shrink / away_from_zero(sigma, a.eps)), T(along),
                                    a.u + i * a.rows, a.v + i * a.cols, a.rows, a.cols, out);
        });
}

// ---- the polar factor ----------------------------------------------------------------------------

constexpr int64_t info_size = 5;  // PolarInfo: low, high, residual, bound, stages

template <class T>
struct PolarArguments {
    const T* weight;
    T *out, *saved;  // of `saved_count` matrices for each one: PolarSaved
    double* info;
    int64_t rows, cols;
    double tolerance, scale;
    int32_t saved_count;
};

template <class T>
LIPFUSE_DEVICE void orthogonalize_kernel(const Layout& layout,
                                         const Table<PolarArguments<T>>& table,
                                         const Polynomials* polynomials) {
    for_each_matrix<T>(
        layout, table, polynomials, [](Backend<T>& backend, const PolarArguments<T>& a, int64_t i) {
            const int64_t area = a.rows * a.cols;
            const PolarSaved<T> keep(a.saved, a.saved_count, a.rows, a.cols, i);
            const PolarInfo p = polar(backend, a.weight + i * area, a.rows, a.cols, a.tolerance,
                                      a.scale, a.out + i * area, keep.inverse_root, keep.factor);
            if (!backend.leads()) return;
            double* to = a.info + i * info_size;
            to[0] = p.low;
            to[1] = p.high;
            to[2] = p.residual;
            to[3] = p.bound;
            to[4] = p.stages;
        });
}

template <class T>
struct PolarBackwardArguments {
    const T *grad, *weight, *orthogonal, *saved;
    const double* info;
    T* out;
    int64_t rows, cols;
    double tolerance, scale;
    int32_t saved_count;
    bool tangent;
};

template <class T>
LIPFUSE_DEVICE void orthogonalize_backward_kernel(const Layout& layout,
                                                  const Table<PolarBackwardArguments<T>>& table,
                                                  const Polynomials* polynomials) {
    for_each_matrix<T>(
        layout, table, polynomials,
        [](Backend<T>& backend, const PolarBackwardArguments<T>& a, int64_t i) {
            const int64_t area = a.rows * a.cols;
            const PolarSaved<const T> kept(a.saved, a.saved_count, a.rows, a.cols, i);
            const double* r = a.info + i * info_size;
            backend.rough(true);  // the linear solve is stopped long before that matters
            polar_backward(backend, a.grad + i * area, a.weight + i * area, a.orthogonal + i * area,
                           kept.inverse_root, a.rows, a.cols, a.scale, r[0], r[1], a.tolerance,
                           a.tangent, a.out + i * area, kept.factor);
        });
}

// ---- an upper bound of the spectral norm ---------------------------------------------------------

template <class T>
struct BoundArguments {
    const T* weight;
    T* out;
    int64_t rows, cols;
    int squarings;
};

template <class T>
LIPFUSE_DEVICE void spectral_bound_kernel(const Layout& layout,
                                          const Table<BoundArguments<T>>& table) {
    for_each_matrix<T>(
        layout, table, nullptr, [](Backend<T>& backend, const BoundArguments<T>& a, int64_t i) {
            const double bound = lipfuse::spectral_bound(backend, a.weight + i * a.rows * a.cols,
                                                         a.rows, a.cols, a.squarings);
            if (backend.leads()) a.out[i] = T(bound);
        });
}

}  // namespace lipfuse::cuda
