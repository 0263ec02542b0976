#include "../algorithms/spectral_bound.h"

#include "checks.h"

namespace lipfuse::cpu {
namespace {

// An upper bound of the largest singular value of every matrix.
Tensor spectral_bound(const Tensor& weight, int64_t squarings) {
    const Matrices m(weight);
    const int most = check_count(squarings, "squarings");
    const Tensor w = packed(weight);
    Tensor out = make(w, batch_sizes(w, {}));
    by_dtype(w, [&](auto zero) {
        using T = decltype(zero);
        for_each_matrix<T>(m, m.product_work(), [&](Backend<T>& backend, int64_t i) {
            data<T>(out)[i] = T(
                lipfuse::spectral_bound(backend, data<T>(w) + i * m.area(), m.rows, m.cols, most));
        });
    });
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lipfuse, CPU, m) {
    m.impl("spectral_bound", TORCH_BOX(&spectral_bound));
}

}  // namespace lipfuse::cpu
