#include "../algorithms/cholesky.h"
#include "../algorithms/gram_bound.h"
#include "../algorithms/polar.h"
#include "operators.h"

namespace lipfuse::cpu {
namespace {

// An upper bound of the largest eigenvalue of S: slightly more than a Krylov estimate where
// Cholesky's factorisation proves that, else by Gram iteration.
template <class T>
double proven_bound(Backend<T>& backend, const T* s, int64_t n, int squarings) {
    if (n == 0) return 0;
    const double rounding = 2 * double(std::numeric_limits<T>::epsilon()) * std::sqrt(double(n));
    const double estimate = largest_ritz_value(backend, s, n, 24);
    if (!(estimate > 0) || !std::isfinite(estimate)) return estimate;
    for (double slack = 2e-6; slack < 2e-3; slack *= 4)
        if (lies_below(backend, s, n, estimate * (1 + slack)))
            return estimate * (1 + slack + rounding);
    return gram_bound(backend, s, n, squarings, 0.0);
}

// An upper bound of the largest singular value of every matrix.
Tensor spectral_bound(const Tensor& weight, int64_t squarings) {
    const Matrices m(weight);
    const int most = check_count(squarings, "squarings");
    const Tensor w = packed(weight);
    Tensor out = make(w, batch_sizes(w, {}));
    by_dtype(w, [&](auto zero) {
        using T = decltype(zero);
        for_each_matrix<T>(m, m.product_work(), [&](Backend<T>& backend, int64_t i) {
            const T* wi = data<T>(w) + i * m.area();
            const auto mark = backend.mark();
            // Powers of two, so that no square leaves the range of T.
            const double largest = backend.largest(wi, m.area());
            const double unit =
                largest > 0 && std::isfinite(largest) ? std::ldexp(1.0, -std::ilogb(largest)) : 1;
            T* scaled = backend.allocate(m.area());
            T* s = backend.allocate(m.small() * m.small());
            backend.axpby(m.area(), T(unit), wi, T(0), nullptr, scaled);
            Sided<Backend<T>>{backend, m.rows, m.cols}.gram(scaled, s);
            const double bound = proven_bound(backend, s, m.small(), most);
            data<T>(out)[i] =
                T(std::sqrt(bound) / unit * (1 + 4 * double(std::numeric_limits<T>::epsilon())));
            backend.release(mark);
        });
    });
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lipfuse, CPU, m) {
    m.impl("spectral_bound", TORCH_BOX(&spectral_bound));
}

}  // namespace lipfuse::cpu
