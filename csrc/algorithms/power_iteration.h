// Power iteration for the largest singular value, one reading of W an iteration.
#pragma once

#include <cmath>
#include <cstdint>

namespace lipfuse {

// n_iterations times u <- Wv / ‖Wv‖, v <- Wᵀu / ‖Wᵀu‖ from the v given; returns sigma = uᵀWv.
// While a row of W is in cache it serves both Wv and Wᵀ(Wv); sigma is then ‖WᵀWv‖ / ‖Wv‖, with no
// reading of its own. A product that vanishes or is not finite leaves u and v as they were, so
// that a weight that was zero or NaN once does not spoil them for good.
template <class Backend, class Matrix>
double power_iteration(Backend& backend, const Matrix& w, typename Backend::Scalar* u,
                       typename Backend::Scalar* v, int n_iterations, double eps) {
    using T = typename Backend::Scalar;
    const T* none = nullptr;
    auto mark = backend.mark();
    T* t = backend.allocate(w.rows);
    T* s = backend.allocate(w.cols);
    double sigma = 0;
    if (n_iterations == 0) {
        backend.sweep(w, v, t, nullptr);
        sigma = backend.dot(w.rows, u, t);
    }
    for (int i = 0; i < n_iterations; ++i) {
        backend.sweep(w, v, t, s);
        const double t_norm = std::sqrt(backend.dot(w.rows, t, t));
        const double s_norm = std::sqrt(backend.dot(w.cols, s, s));
        sigma = t_norm > eps ? s_norm / t_norm : t_norm;
        if (!(t_norm > eps) || !(s_norm > 0) || !std::isfinite(sigma)) break;
        backend.axpby(w.rows, T(1 / t_norm), t, T(0), none, u);
        backend.axpby(w.cols, T(1 / s_norm), s, T(0), none, v);
    }
    backend.release(mark);
    return sigma;
}

}  // namespace lipfuse
