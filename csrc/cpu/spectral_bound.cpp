#include "../algorithms/gram_bound.h"
#include "../algorithms/polar.h"
#include "operators.h"

namespace lipfuse::cpu {
namespace {

// An upper bound of the largest singular value of every matrix.
Tensor spectral_bound(const Tensor& weight, int64_t squarings) {
    const Matrices m(weight);
    const Tensor w = packed(weight);
    Tensor out = make(w, batch_sizes(w, {}));
    by_dtype(w, [&](auto zero) {
        using T = decltype(zero);
        for_each_matrix<T>(m, [&](Backend<T>& backend, int64_t i) {
            const T* wi = data<T>(w) + i * m.area();
            const auto mark = backend.mark();
            // Powers of two, so that no square leaves the range of T.
            const double largest = backend.largest(wi, m.area());
            const double unit = largest > 0 && std::isfinite(largest) ? std::ldexp(1.0, -std::ilogb(largest)) : 1;
            T* scaled = backend.allocate(m.area());
            T* s = backend.allocate(m.small() * m.small());
            backend.axpby(m.area(), T(unit), wi, T(0), nullptr, scaled);
            Sided<Backend<T>>{backend, m.rows, m.cols}.gram(scaled, s);
            const double bound = gram_bound(backend, s, m.small(), static_cast<int>(squarings), 0.0);
            data<T>(out)[i] = T(std::sqrt(bound) / unit * (1 + 4 * double(std::numeric_limits<T>::epsilon())));
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
