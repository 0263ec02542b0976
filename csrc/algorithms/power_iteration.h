// Power iteration for the largest singular value, one reading of W an iteration.
#pragma once

#include <cmath>
#include <cstdint>

#include "device.h"

namespace lipfuse {

// n_iterations times u <- Wv / ‖Wv‖, v <- Wᵀu / ‖Wᵀu‖ from the v given; returns sigma = uᵀWv.
// While a row of W is in cache it serves both Wv and Wᵀ(Wv); sigma is then ‖WᵀWv‖ / ‖Wv‖, with no
// reading of its own. A product that vanishes or is not finite leaves u and v as they were, so
// that a weight that was zero or NaN once does not spoil them for good.
// *leaves_range: WᵀWv of a weight beyond 1e±10 or so left the range of T.
template <class Backend, class Matrix>
LIPFUSE_DEVICE double power_iteration_in_range(Backend& backend, const Matrix& w,
                                               typename Backend::Scalar* u,
                                               typename Backend::Scalar* v, int n_iterations,
                                               double eps, bool* leaves_range) {
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
    *leaves_range = false;
    for (int i = 0; i < n_iterations; ++i) {
        backend.sweep(w, v, t, s);
        const double t_norm = std::sqrt(backend.dot(w.rows, t, t));
        const double s_norm = std::sqrt(backend.dot(w.cols, s, s));
        if (t_norm > eps && !(s_norm > 1e-18 && s_norm < 1e18)) {
            *leaves_range = true;
            break;
        }
        sigma = t_norm > eps ? s_norm / t_norm : t_norm;
        if (!(t_norm > eps) || !(s_norm > 0) || !std::isfinite(sigma)) break;
        backend.axpby(w.rows, T(1 / t_norm), t, T(0), none, u);
        backend.axpby(w.cols, T(1 / s_norm), s, T(0), none, v);
    }
    backend.release(mark);
    return sigma;
}

// The same for a weight of any size: where the products leave the range of T, on a scaled copy.
template <class Backend, class Matrix>
double power_iteration(Backend& backend, const Matrix& w, typename Backend::Scalar* u,
                       typename Backend::Scalar* v, int n_iterations, double eps) {
    using T = typename Backend::Scalar;
    const T* none = nullptr;
    bool leaves_range;
    double sigma = power_iteration_in_range(backend, w, u, v, n_iterations, eps, &leaves_range);
    if (leaves_range) {
        auto mark = backend.mark();
        const int64_t area = w.rows * w.cols;
        T* copy = backend.allocate(area);
        backend.gather(w, copy);
        const double size = backend.largest(copy, area);
        // Not finite, or of ordinary size: then it is the products that vanish.
        if (size > 0 && std::isfinite(size) && !(size > 0.5 && size < 4)) {
            const double unit = std::ldexp(1.0, -std::ilogb(size));
            backend.axpby(area, T(unit), copy, T(0), none, copy);
            sigma = power_iteration(backend, Backend::view(copy, w.rows, w.cols), u, v,
                                    n_iterations, eps * unit) /
                    unit;
        } else {
            sigma = size;
        }
        backend.release(mark);
    }
    return sigma;
}

}  // namespace lipfuse
