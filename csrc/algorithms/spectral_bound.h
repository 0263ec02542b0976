// A proven upper bound of the largest singular value.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "cholesky.h"
#include "device.h"
#include "gram_bound.h"
#include "sided.h"
#include "spectrum.h"

namespace lipfuse {

// An upper bound of the largest eigenvalue of S: slightly more than a Krylov estimate where
// Cholesky's factorisation proves that, else by Gram iteration.
template <class Backend>
LIPFUSE_DEVICE double proven_bound(Backend& backend, const typename Backend::Scalar* s, int64_t n,
                                   int squarings) {
    using T = typename Backend::Scalar;
    if (n == 0) return 0;
    const double rounding = 2 * double(std::numeric_limits<T>::epsilon()) * std::sqrt(double(n));
    const double estimate = largest_ritz_value(backend, backend.view(s, n, n), 24);
    if (!(estimate > 0) || !std::isfinite(estimate)) return estimate;
    for (double slack = 2e-6; slack < 2e-3; slack *= 4)
        if (lies_below(backend, s, n, estimate * (1 + slack)))
            return estimate * (1 + slack + rounding);
    return gram_bound(backend, s, n, squarings, 0.0);
}

// Of the largest singular value of W; rounding is included.
template <class Backend>
LIPFUSE_DEVICE double spectral_bound(Backend& backend, const typename Backend::Scalar* w,
                                     int64_t rows, int64_t cols, int squarings) {
    using T = typename Backend::Scalar;
    Sided<Backend> side{backend, rows, cols};
    const int64_t n = side.small, area = rows * cols;
    auto mark = backend.mark();
    // Powers of two, so that no square leaves the range of T.
    const double largest = backend.largest(w, area);
    const double unit = largest > 0 && std::isfinite(largest) ? power_to_one<T>(largest) : 1;
    T* scaled = backend.allocate(area);
    T* s = backend.allocate(n * n);
    backend.axpby(area, T(unit), w, T(0), static_cast<const T*>(nullptr), scaled);
    side.gram(scaled, s);
    const double bound = proven_bound(backend, s, n, squarings);
    backend.release(mark);
    return std::sqrt(bound) / unit * (1 + 4 * double(std::numeric_limits<T>::epsilon()));
}

}  // namespace lipfuse
