// The ends of the spectrum of a symmetric matrix, estimated by a few Lanczos steps.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "device.h"

namespace lipfuse {

struct Interval {
    double low, high;
    double seen = high;  // the largest value that was really met with
};

namespace spectrum_detail {

// Eigenvalues of the tridiagonal matrix (a, b) that are smaller than x (Sturm's count).
LIPFUSE_DEVICE inline int count_below(const double* a, const double* b, int k, double x) {
    int count = 0;
    double q = 1;
    for (int i = 0; i < k; ++i) {
        q = a[i] - x - (i ? b[i - 1] * b[i - 1] / q : 0);
        if (q < 0) ++count;
        if (q == 0) q = 1e-300;
    }
    return count;
}

}  // namespace spectrum_detail

// A tridiagonal matrix whose eigenvalues approximate those of S (Ritz values).
struct Tridiagonal {
    static constexpr int most = 24;
    double diagonal[most] = {}, beside[most] = {};
    int size = 0;

    // Where all eigenvalues are (Gershgorin).
    LIPFUSE_DEVICE Interval range() const {
        double low = diagonal[0], high = diagonal[0];
        for (int i = 0; i < size; ++i) {
            const double r =
                (i ? std::fabs(beside[i - 1]) : 0) + (i + 1 < size ? std::fabs(beside[i]) : 0);
            low = std::fmin(low, diagonal[i] - r);
            high = std::fmax(high, diagonal[i] + r);
        }
        return {low, high};
    }

    // `accuracy` is relative to half of what the range spans: of a matrix close to a multiple of I, the
    // eigenvalues themselves would not tell them apart.
    LIPFUSE_DEVICE double eigenvalue(int index, double accuracy) const {
        double low = range().low, high = range().high;
        const double enough = accuracy * (high - low) / 2;
        for (int i = 0; i < 48 && high - low > enough; ++i) {
            const double mid = (low + high) / 2;
            (spectrum_detail::count_below(diagonal, beside, size, mid) > index ? high : low) = mid;
        }
        return (low + high) / 2;
    }
};

// Element i of the fixed start vector, of unit length: signs of a pseudo-random sequence, whose next
// state this is, times magnitudes that are all different. No matrix that somebody writes down (equal
// columns, small integers) has it in its null space.
LIPFUSE_DEVICE inline double start_element(uint32_t state, int64_t i, int64_t n) {
    const double size = std::sqrt(2.0 * double(i + 1) / (double(n) * double(n + 1)));
    return (state >> 31) ? size : -size;
}

// Whether Lanczos's process is over: what is left for the next vector is rounding.
template <class T>
LIPFUSE_DEVICE bool lanczos_has_ended(double along, double beta) {
    return !(beta > 8 * double(std::numeric_limits<T>::epsilon()) * std::fabs(along));
}

// How algorithms ask for an eigenvalue; a backend with idle threads has its own way.
template <class Backend>
LIPFUSE_DEVICE double ritz_value(Backend&, const Tridiagonal& t, int index, double accuracy) {
    return t.eigenvalue(index, accuracy);
}

// Lanczos's process for a view of S, from a fixed start vector: deterministic.
template <class Backend, class View>
LIPFUSE_DEVICE Tridiagonal lanczos(Backend& backend, const View& s, int steps) {
    using T = typename Backend::Scalar;
    const int64_t n = s.rows;
    Tridiagonal t;
    steps = static_cast<int>(std::min<int64_t>({n, steps, Tridiagonal::most}));
    auto mark = backend.mark();
    T* v = backend.allocate(n);
    T* previous = backend.allocate(n);
    T* w = backend.allocate(n);
    backend.fill_start_vector(v, n);
    backend.fill(previous, n, T(0));
    double beta = 0;
    while (t.size < steps) {
        const int k = t.size++;
        backend.symmetric_matvec(s, v, w);
        backend.lanczos_step(n, v, previous, beta, w, &t.diagonal[k], &beta);
        t.beside[k] = beta;
        if (lanczos_has_ended<T>(t.diagonal[k], beta)) break;
        backend.axpby(n, T(1 / beta), w, T(0), static_cast<const T*>(nullptr), previous);
        exchange(v, previous);  // previous now holds the old v, v the new one
    }
    backend.release(mark);
    return t;
}

// An estimate from below of the largest eigenvalue.
template <class Backend, class View>
LIPFUSE_DEVICE double largest_ritz_value(Backend& backend, const View& s, int steps) {
    const Tridiagonal t = lanczos(backend, s, steps);
    return ritz_value(backend, t, t.size - 1, 1e-7);
}

// Whether that estimate is below x: one of Sturm's counts.
template <class Backend, class View>
LIPFUSE_DEVICE bool ritz_values_below(Backend& backend, const View& s, int steps, double x) {
    const Tridiagonal t = lanczos(backend, s, steps);
    return spectrum_detail::count_below(t.diagonal, t.beside, t.size, x) == t.size;
}

// Both ends of the spectrum of R + I, widened by what so few steps may miss. An estimate, not a
// bound: callers check what they built on it.
template <class Backend, class View>
LIPFUSE_DEVICE Interval spectrum(Backend& backend, const View& r, int steps) {
    const Tridiagonal t = lanczos(backend, r, steps);
    const bool complete = t.size == r.rows;
    const double accuracy = complete ? 1e-7 : 1e-3;
    const double first = 1 + ritz_value(backend, t, 0, accuracy),
                 last = 1 + ritz_value(backend, t, t.size - 1, accuracy);
    if (complete) return {first, last, last};
    // What remains outside shrinks with the square of the number of steps, and is less where the process
    // ended early. At a lower end near zero the margin says nothing; a fraction of the estimate does.
    const double margin = std::fmin(0.35, 3.5 / t.size) / t.size * (last - first);
    return {std::fmax(first - margin, 0.3 * first), last + margin, last};
}

}  // namespace lipfuse
