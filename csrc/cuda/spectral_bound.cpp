#include "operators.h"

namespace lipfuse::cuda {
namespace {

Tensor spectral_bound_op(const Tensor& weight, int64_t squarings) {
    const Matrices m(weight);
    const int most = check_count(squarings, "squarings");
    const Scope scope(weight);
    const Tensor w = packed(weight);
    Tensor out = make(w, batch_sizes(w, {}));
    by_dtype(w, [&](auto zero) {
        using T = decltype(zero);
        const BoundArguments<T> a{data<T>(w), data<T>(out), m.rows, m.cols, most};
        check(spectral_bound<T>(scope.stream(), {{m.batch, a}}), "spectral_bound");
    });
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lipfuse, CUDA, m) {
    m.impl("spectral_bound", TORCH_BOX(&spectral_bound_op));
}

}  // namespace lipfuse::cuda
