// Lanczos's process for a team of blocks: the latency of barriers and divisions is what it costs.
#pragma once

#include <cmath>
#include <cstdint>

#include "../algorithms/spectrum.h"
#include "backend.h"

namespace lipfuse::cuda {

// One barrier a step: every block keeps the vectors in its own memory, and does all but the product
// with S itself.
template <class T>
LIPFUSE_DEVICE Tridiagonal lanczos(Backend<T>& backend, const View<T>& s, int steps) {
    const int64_t n = s.rows;
    if (3 * n > backend.tile_elements()) return lipfuse::lanczos<Backend<T>>(backend, s, steps);
    Tridiagonal t;
    if (steps > n) steps = static_cast<int>(n);
    if (steps > Tridiagonal::most) steps = Tridiagonal::most;
    const auto mark = backend.mark();
    // A block may still read one product while others write the next.
    T* product = backend.allocate(n);
    T* next_product = backend.allocate(n);
    T *v = backend.tile_memory(), *previous = v + n;
    for (int64_t i = backend.thread(); i < n; i += block_threads) {
        v[i] = backend.start_vector(i, n);
        previous[i] = T(0);
    }
    sync_threads();
    double beta = 0;
    while (t.size < steps) {
        const int k = t.size++;
        backend.symmetric_matvec(s, v, product);
        double along = 0, squares = 0;
        for (int64_t i = backend.thread(); i < n; i += block_threads)
            along += double(product[i] * v[i]);
        along = backend.block_sum(along);
        for (int64_t i = backend.thread(); i < n; i += block_threads) {
            const T x = product[i] - T(along) * v[i] - T(beta) * previous[i];
            previous[i] = x;
            squares += double(x) * double(x);
        }
        beta = std::sqrt(backend.block_sum(squares));
        t.diagonal[k] = along;
        t.beside[k] = beta;
        if (lanczos_has_ended<T>(along, beta)) break;
        const T scale = T(1 / beta);
        for (int64_t i = backend.thread(); i < n; i += block_threads) previous[i] *= scale;
        exchange(v, previous);
        exchange(product, next_product);
        sync_threads();
    }
    backend.barrier();  // before others get the memory
    backend.release(mark);
    return t;
}

// By Sturm's counts at 64 points at a time: what bisection does one after the other.
template <class T>
LIPFUSE_DEVICE LIPFUSE_NOINLINE double ritz_value(Backend<T>& backend, const Tridiagonal& t,
                                                  int index, double accuracy) {
    constexpr int points = 64;
    double low = t.range().low, high = t.range().high;
    const double enough = accuracy * (high - low) / 2;
    for (int round = 0; round < 8 && high - low > enough; ++round) {
        const double step = (high - low) / (points + 1);
        const int at = backend.thread() + 1;
        const bool below =
            at <= points &&
            spectrum_detail::count_below(t.diagonal, t.beside, t.size, low + at * step) <= index;
        const double passed = backend.block_sum(below ? 1 : 0);
        low += passed * step;
        if (passed < points) high = low + step;
    }
    return (low + high) / 2;
}

}  // namespace lipfuse::cuda
