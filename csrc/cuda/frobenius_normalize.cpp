#include "operators.h"

namespace lipfuse::cuda {
namespace {

std::tuple<Tensor, Tensor> frobenius_normalize_op(const Tensor& weight, double eps, double scale) {
    const Rows rows(weight);
    const Scope scope(weight);
    const Tensor w = packed(weight);
    Tensor out = make(w, sizes_of(w));
    Tensor norm = make(w, batch_sizes(w, {}, 1));
    by_dtype(w, [&](auto zero) {
        using T = decltype(zero);
        const FrobeniusArguments<T> a{data<T>(w),    nullptr, nullptr, data<T>(out),
                                      data<T>(norm), rows.n,  eps,     scale};
        check(frobenius_normalize<T>(scope.stream(), {{norm.numel(), a}}), "frobenius_normalize");
    });
    return {out, norm};
}

Tensor frobenius_normalize_backward_op(const Tensor& grad, const Tensor& normalized,
                                       const Tensor& norm, double eps, double scale) {
    const Scope scope(grad);
    const Tensor g = packed(grad), w = packed(normalized), size = packed(norm);
    const Rows rows = check_rows(g, w, size);
    Tensor out = make(g, sizes_of(g));
    by_dtype(g, [&](auto zero) {
        using T = decltype(zero);
        const FrobeniusArguments<T> a{data<T>(g), data<T>(w), data<T>(size), data<T>(out),
                                      nullptr,    rows.n,     eps,           scale};
        check(frobenius_normalize_backward<T>(scope.stream(), {{rows.count, a}}),
              "frobenius_normalize_backward");
    });
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lipfuse, CUDA, m) {
    m.impl("frobenius_normalize", TORCH_BOX(&frobenius_normalize_op));
    m.impl("frobenius_normalize_backward", TORCH_BOX(&frobenius_normalize_backward_op));
}

}  // namespace lipfuse::cuda
