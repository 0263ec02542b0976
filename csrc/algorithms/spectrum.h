// The ends of the spectrum of a symmetric matrix, estimated by a few Lanczos steps.
#pragma once

#include <cmath>
#include <cstdint>

namespace lipfuse {

struct Interval {
    double low, high;
};

namespace spectrum_detail {

// Eigenvalues of the tridiagonal matrix (a, b) that are smaller than x (Sturm's count).
inline int count_below(const double* a, const double* b, int k, double x) {
    int count = 0;
    double q = 1;
    for (int i = 0; i < k; ++i) {
        q = a[i] - x - (i ? b[i - 1] * b[i - 1] / q : 0);
        if (q < 0) ++count;
        if (q == 0) q = 1e-300;
    }
    return count;
}

inline double bisect(const double* a, const double* b, int k, double low, double high, int index) {
    for (int i = 0; i < 20; ++i) {
        const double mid = (low + high) / 2;
        (count_below(a, b, k, mid) > index ? high : low) = mid;
    }
    return (low + high) / 2;
}

}  // namespace spectrum_detail

// Both ends from `steps` Lanczos steps, widened by what such an estimate may miss. Deterministic:
// the start vector is fixed. An estimate, not a bound: callers check what they built on it.
template <class Backend>
Interval spectrum(Backend& backend, const typename Backend::Scalar* s, int64_t n, int steps) {
    using T = typename Backend::Scalar;
    constexpr int most = 24;
    if (steps > most) steps = most;
    if (steps > n) steps = static_cast<int>(n);
    auto mark = backend.mark();
    T* v = backend.allocate(n);
    T* previous = backend.allocate(n);
    T* w = backend.allocate(n);
    backend.fill_start_vector(v, n);
    double a[most] = {}, b[most] = {};
    double beta = 0;
    int k = 0;
    for (; k < steps; ++k) {
        backend.matvec(s, n, n, v, w);
        a[k] = backend.dot(n, w, v);
        // w <- w - a v - beta previous
        backend.axpby(n, T(1), w, T(-a[k]), v, w);
        if (k) backend.axpby(n, T(1), w, T(-beta), previous, w);
        beta = std::sqrt(backend.dot(n, w, w));
        b[k] = beta;
        if (!(beta > 1e-6 * std::fabs(a[k])) || k + 1 == steps) {
            ++k;
            break;
        }
        backend.axpby(n, T(1 / beta), w, T(0), static_cast<const T*>(nullptr), previous);
        std::swap(v, previous);  // previous now holds the old v, v the new one
    }
    backend.release(mark);
    double low = a[0], high = a[0];
    for (int i = 0; i < k; ++i) {
        const double r = (i ? std::fabs(b[i - 1]) : 0) + (i + 1 < k ? std::fabs(b[i]) : 0);
        low = std::fmin(low, a[i] - r);
        high = std::fmax(high, a[i] + r);
    }
    const double first = spectrum_detail::bisect(a, b, k, low, high, 0);
    const double last = spectrum_detail::bisect(a, b, k, low, high, k - 1);
    if (k == n) return {first, last};
    // What remains outside shrinks with the number of steps. At a lower end near zero the margin
    // says nothing; a fraction of the estimate does.
    const double margin = 0.35 / k * (last - first);
    return {std::fmax(first - margin, 0.3 * first), last + margin};
}

}  // namespace lipfuse
