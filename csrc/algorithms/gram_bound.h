// An upper bound of the largest eigenvalue of a symmetric positive matrix by repeated squaring
// (Gram iteration; Delattre et al., ICML 2023): ‖S^(2^t)‖_F^(1/2^t) decreases to it from above.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "device.h"

namespace lipfuse {

// Stops after `squarings`, or as soon as the bound is at most `enough`. The result includes what
// rounding may have taken away. S is left unchanged.
template <class Backend>
LIPFUSE_DEVICE double gram_bound(Backend& backend, const typename Backend::Scalar* s, int64_t n,
                                 int squarings, double enough) {
    using T = typename Backend::Scalar;
    const double rounding = std::numeric_limits<T>::epsilon() * (2 + std::sqrt(double(n)));
    auto mark = backend.mark();
    T* x = backend.allocate(n * n);
    T* y = backend.allocate(n * n);
    // The bound is exp(log_scale + log(norm) / power): every squaring works on a matrix of norm 1.
    double norm = std::sqrt(backend.dot(n * n, s, s));
    double log_scale = 0, power = 1, bound = norm;
    const T* current = s;
    for (int i = 0; i < squarings && bound > enough && norm > 0 && std::isfinite(norm); ++i) {
        backend.axpby(n * n, T(1 / norm), current, T(0), static_cast<const T*>(nullptr), x);
        log_scale += std::log(norm) / power;
        backend.multiply(backend.view(x, n, n), backend.view(x, n, n), y, true);
        power *= 2;
        norm = std::sqrt(backend.dot(n * n, y, y));
        const double next = std::exp(log_scale + std::log(norm) / power);
        current = y;
        if (next < bound) bound = next;
    }
    backend.release(mark);
    return bound * (1 + rounding);
}

}  // namespace lipfuse
