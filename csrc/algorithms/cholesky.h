// Cholesky's factorisation as a proof: it succeeds on c I - S only if no eigenvalue of S lies above
// c, up to its rounding.
#pragma once

#include <cmath>
#include <cstdint>

#include "device.h"

namespace lipfuse {

// Whether every eigenvalue of the symmetric S is below c, with a margin for rounding.
template <class Backend>
LIPFUSE_DEVICE bool lies_below(Backend& backend, const typename Backend::Scalar* s, int64_t n,
                               double c) {
    using T = typename Backend::Scalar;
    auto mark = backend.mark();
    T* l = backend.allocate(n * n);
    bool positive = true;
    for (int64_t i = 0; i < n && positive; ++i) {
        T* row = l + i * n;
        for (int64_t j = 0; j < i; ++j)
            row[j] = T((-double(s[i * n + j]) - backend.short_dot(j, row, l + j * n)) /
                       double(l[j * n + j]));
        const double pivot = c - double(s[i * n + i]) - backend.short_dot(i, row, row);
        positive = pivot > 0;
        row[i] = T(std::sqrt(pivot));
    }
    backend.release(mark);
    return positive;
}

}  // namespace lipfuse
