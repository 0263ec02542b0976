// Björck's iteration W <- (1 + beta) W - beta W WᵀW (Björck & Bowie, 1971) and its exact adjoint.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "device.h"
#include "gram_bound.h"
#include "sided.h"

namespace lipfuse {

// Iterates on W0 = w, stops once ‖W_{k+1} - W_k‖_F < eps, returns the number of steps k and
// q = scale * W_k. `history` (max_iterations x area, may be null) keeps W_0 ... W_{k-1}.
//
// With `guard`, singular values that would make the iteration diverge (above sqrt(3) for
// beta = 1/2) are brought below 1 first; *shrink is what W was multiplied by, else 1.
template <class Backend>
LIPFUSE_DEVICE int bjorck(Backend& backend, const typename Backend::Scalar* w, int64_t rows,
                          int64_t cols, double beta, int max_iterations, double eps, double scale,
                          bool guard, typename Backend::Scalar* q,
                          typename Backend::Scalar* history, double* shrink) {
    using T = typename Backend::Scalar;
    const T* none = nullptr;
    Sided<Backend> side{backend, rows, cols};
    const int64_t n = side.small, area = rows * cols;
    auto mark = backend.mark();
    T* s = backend.allocate(n * n);
    T* buffers[2] = {nullptr, nullptr};
    const T* current = w;
    *shrink = 1;
    int k = 0;
    for (; k < max_iterations; ++k) {
        T* kept = history ? history + int64_t(k) * area : nullptr;
        side.gram(current, s);
        if (k == 0 && guard) {
            const double limit = 1 + 1 / beta;  // of the eigenvalues of S
            const double bound = gram_bound(backend, s, n, 4, 0.98 * limit);
            if (bound > 0.98 * limit && std::isfinite(bound)) {
                *shrink = 1 / std::sqrt(bound);
                T* scaled = kept ? kept : (buffers[1] = backend.allocate(area));
                backend.axpby(area, T(*shrink), w, T(0), none, scaled);
                backend.axpby(n * n, T(1 / bound), s, T(0), none, s);
                current = scaled;
            }
        }
        if (kept && current != kept) {
            if (current == w) {
                backend.axpby(area, T(1), w, T(0), none, kept);
                current = kept;
            }
        }
        // The next iterate goes to its place in the history if it has one.
        T* next = history && k + 1 < max_iterations ? history + int64_t(k + 1) * area : nullptr;
        if (!next) {
            T*& spare = buffers[current == buffers[0] ? 1 : 0];
            if (!spare) spare = backend.allocate(area);
            next = spare;
        }
        side.apply(current, s, false, next, T(-beta), T(1 + beta), current);
        const double change = std::sqrt(backend.distance(area, next, current));
        current = next;
        if (change < eps) {
            ++k;
            break;
        }
    }
    backend.axpby(area, T(scale), current, T(0), none, q);
    backend.release(mark);
    return k;
}

// G <- (1 + beta) G - beta (G WᵀW + W (GᵀW + WᵀG)) through W_{steps-1}, ..., W_0.
template <class Backend>
LIPFUSE_DEVICE void bjorck_backward(Backend& backend, const typename Backend::Scalar* g,
                                    const typename Backend::Scalar* history, int64_t rows,
                                    int64_t cols, int steps, double beta, double scale,
                                    typename Backend::Scalar* out) {
    using T = typename Backend::Scalar;
    Sided<Backend> side{backend, rows, cols};
    const int64_t n = side.small, area = rows * cols;
    auto mark = backend.mark();
    T* s = backend.allocate(n * n);
    T* m = backend.allocate(n * n);
    T* both = backend.allocate(n * n);
    T* spare = backend.allocate(area);
    T* current = steps % 2 ? spare : out;  // so that the last step writes `out`
    backend.axpby(area, T(scale), g, T(0), static_cast<const T*>(nullptr), current);
    for (int k = steps - 1; k >= 0; --k) {
        const T* w = history + int64_t(k) * area;
        T* next = current == out ? spare : out;
        side.gram(w, s);
        side.cross(w, current, m, false);
        backend.symmetrize(m, T(1), n, both);
        side.apply(current, s, false, next, T(-beta), T(1 + beta), current);
        side.apply(w, both, false, next, T(-beta), T(1), next);
        current = next;
    }
    backend.release(mark);
}

}  // namespace lipfuse
