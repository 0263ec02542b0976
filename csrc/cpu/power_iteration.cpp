#include "../algorithms/power_iteration.h"

#include "checks.h"

namespace lipfuse::cpu {
namespace {

struct Vectors {
    Tensor u, v;
    bool fresh_v;
};

// u and v to be iterated on: copies of what was given; v is made from u where it is missing.
Vectors start(const Tensor& weight, const Tensor& u, const std::optional<Tensor>& v,
              const Matrices& m) {
    check_vectors(weight, m, u, v);
    if (v) return {copied(u), copied(*v), false};
    return {copied(u), make(weight, batch_sizes(weight, {m.cols})), true};
}

// sigma = uᵀWv is negative where W changed its sign since u and v were made.
double divisor(double sigma, double eps) {
    return std::fabs(sigma) < eps ? eps : sigma;
}

template <class T>
double iterate(Backend<T>& backend, const T* w, const Matrices& m, T* u, T* v, bool fresh_v,
               int n_iterations, double eps) {
    const auto view = Backend<T>::view(w, m.rows, m.cols);
    if (fresh_v) backend.normalized_product_of_transpose(view, u, v, eps);
    return power_iteration(backend, view, u, v, n_iterations, eps);
}

std::tuple<Tensor, Tensor, Tensor> power_iteration_op(const Tensor& weight, const Tensor& u,
                                                      const std::optional<Tensor>& v,
                                                      int64_t n_iterations, double eps) {
    const Matrices m(weight);
    const int times = check_count(n_iterations, "n_iterations");
    const Tensor w = packed(weight);
    auto [new_u, new_v, fresh_v] = start(w, u, v, m);
    Tensor sigma = make(w, batch_sizes(w, {}));
    by_dtype(w, [&](auto zero) {
        using T = decltype(zero);
        for_each_matrix<T>(m, pass_work * double(m.area()), [&](Backend<T>& backend, int64_t i) {
            data<T>(sigma)[i] =
                T(iterate(backend, data<T>(w) + i * m.area(), m, data<T>(new_u) + i * m.rows,
                          data<T>(new_v) + i * m.cols, fresh_v, times, eps));
        });
    });
    return {sigma, new_u, new_v};
}

// d sigma / dW = u vᵀ
Tensor power_iteration_backward(const Tensor& grad_sigma, const Tensor& u, const Tensor& v) {
    const Tensor g = packed(grad_sigma), left = packed(u), right = packed(v);
    const int64_t rows = left.size(left.dim() - 1), cols = right.size(right.dim() - 1);
    Tensor out = make(left, batch_sizes(left, {rows, cols}, 1));
    const Matrices m(out);
    check_like(left, g, m.batch, "grad_sigma");
    check_like(left, right, m.batch * cols, "v");
    by_dtype(left, [&](auto zero) {
        using T = decltype(zero);
        for_each_matrix<T>(m, pass_work * double(m.area()), [&](Backend<T>& backend, int64_t i) {
            backend.rank_one_update(nullptr, T(0), data<T>(g)[i], data<T>(left) + i * rows,
                                    data<T>(right) + i * cols, rows, cols,
                                    data<T>(out) + i * m.area());
        });
    });
    return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> spectral_normalize(const Tensor& weight, const Tensor& u,
                                                              const std::optional<Tensor>& v,
                                                              int64_t n_iterations, double eps,
                                                              double scale) {
    const Matrices m(weight);
    const int times = check_count(n_iterations, "n_iterations");
    const Tensor w = packed(weight);
    auto [new_u, new_v, fresh_v] = start(w, u, v, m);
    Tensor sigma = make(w, batch_sizes(w, {}));
    Tensor out = make(w, sizes_of(w));
    by_dtype(w, [&](auto zero) {
        using T = decltype(zero);
        for_each_matrix<T>(m, pass_work * double(m.area()), [&](Backend<T>& backend, int64_t i) {
            const T* wi = data<T>(w) + i * m.area();
            const double s = iterate(backend, wi, m, data<T>(new_u) + i * m.rows,
                                     data<T>(new_v) + i * m.cols, fresh_v, times, eps);
            data<T>(sigma)[i] = T(s);
            backend.axpby(m.area(), T(scale / divisor(s, eps)), wi, T(0), nullptr,
                          data<T>(out) + i * m.area());
        });
    });
    return {out, sigma, new_u, new_v};
}

// With sigma = uᵀWv and u, v held constant: (c G - <G, Ŵ> u vᵀ) / sigma + g_sigma u vᵀ
Tensor spectral_normalize_backward(const Tensor& grad, const std::optional<Tensor>& grad_sigma,
                                   const Tensor& normalized, const Tensor& sigma, const Tensor& u,
                                   const Tensor& v, double eps, double scale) {
    const Tensor g = packed(grad), w = packed(normalized), s = packed(sigma), left = packed(u),
                 right = packed(v);
    const Matrices m(g);
    const Tensor gs = grad_sigma ? packed(*grad_sigma) : s;
    check_like(g, w, m.numel(), "normalized");
    check_sigma(g, s, gs, m.batch);
    check_vectors(g, m, left, right);
    Tensor out = make(g, sizes_of(g));
    by_dtype(g, [&](auto zero) {
        using T = decltype(zero);
        for_each_matrix<T>(m, pass_work * double(m.area()), [&](Backend<T>& backend, int64_t i) {
            const T* gi = data<T>(g) + i * m.area();
            const double si = double(data<T>(s)[i]);
            const double outer = grad_sigma ? double(data<T>(gs)[i]) : 0.0;
            // Below eps the divisor is a constant.
            const double along = std::fabs(si) < eps
                                     ? 0.0
                                     : -backend.dot(m.area(), gi, data<T>(w) + i * m.area()) / si;
            backend.rank_one_update(gi, T(scale / divisor(si, eps)), T(along + outer),
                                    data<T>(left) + i * m.rows, data<T>(right) + i * m.cols, m.rows,
                                    m.cols, data<T>(out) + i * m.area());
        });
    });
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lipfuse, CPU, m) {
    m.impl("power_iteration", TORCH_BOX(&power_iteration_op));
    m.impl("power_iteration_backward", TORCH_BOX(&power_iteration_backward));
    m.impl("spectral_normalize", TORCH_BOX(&spectral_normalize));
    m.impl("spectral_normalize_backward", TORCH_BOX(&spectral_normalize_backward));
}

}  // namespace lipfuse::cpu
