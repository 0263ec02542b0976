#include "operators.h"

namespace lipfuse::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> power_iteration_op(const Tensor& weight, const Tensor& u,
                                                      const std::optional<Tensor>& v,
                                                      int64_t n_iterations, double eps) {
    const Matrices m(weight);
    const Scope scope(weight);
    PowerTensors p(weight, u, v, m, {});
    by_dtype(p.weight, [&](auto zero) {
        using T = decltype(zero);
        check(power_iteration(scope.stream(), m.batch, p.arguments<T>(m, n_iterations, eps, 1)),
              "power_iteration");
    });
    return {p.sigma, p.new_u, p.new_v};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> spectral_normalize_op(const Tensor& weight,
                                                                 const Tensor& u,
                                                                 const std::optional<Tensor>& v,
                                                                 int64_t n_iterations, double eps,
                                                                 double scale) {
    const Matrices m(weight);
    const Scope scope(weight);
    PowerTensors p(weight, u, v, m, {});
    Tensor out = make(p.weight, sizes_of(p.weight));
    by_dtype(p.weight, [&](auto zero) {
        using T = decltype(zero);
        check(spectral_normalize(scope.stream(), m.batch, p.arguments<T>(m, n_iterations, eps, 1),
                                 scale, data<T>(out)),
              "spectral_normalize");
    });
    return {out, p.sigma, p.new_u, p.new_v};
}

Tensor power_iteration_backward_op(const Tensor& grad_sigma, const Tensor& u, const Tensor& v) {
    const Scope scope(u);
    const Tensor g = packed(grad_sigma), left = packed(u), right = packed(v);
    check_device(left, g, "grad_sigma");
    check_device(left, right, "v");
    check_same_dtype(left, g, "grad_sigma");
    check_same_dtype(left, right, "v");
    const int64_t rows = left.size(left.dim() - 1), cols = right.size(right.dim() - 1);
    Tensor out = make(left, batch_sizes(left, {rows, cols}, 1));
    const Matrices m(out);
    by_dtype(left, [&](auto zero) {
        using T = decltype(zero);
        OuterArguments<T> a{};
        a.grad_sigma = data<T>(g);
        a.u = data<T>(left);
        a.v = data<T>(right);
        a.out = data<T>(out);
        a.rows = rows;
        a.cols = cols;
        check(power_iteration_backward(scope.stream(), m.batch, a), "power_iteration_backward");
    });
    return out;
}

Tensor spectral_normalize_backward_op(const Tensor& grad, const std::optional<Tensor>& grad_sigma,
                                      const Tensor& normalized, const Tensor& sigma,
                                      const Tensor& u, const Tensor& v, double eps, double scale) {
    const Scope scope(grad);
    const Tensor g = packed(grad), w = packed(normalized), s = packed(sigma), left = packed(u),
                 right = packed(v), gs = grad_sigma ? packed(*grad_sigma) : s;
    for (const Tensor* t : {&w, &s, &left, &right, &gs}) {
        check_device(g, *t, "every argument");
        check_same_dtype(g, *t, "every argument");
    }
    const Matrices m(g);
    Tensor out = make(g, sizes_of(g));
    by_dtype(g, [&](auto zero) {
        using T = decltype(zero);
        const OuterArguments<T> a{data<T>(g),    grad_sigma ? data<T>(gs) : nullptr,
                                  data<T>(w),    data<T>(s),
                                  data<T>(left), data<T>(right),
                                  data<T>(out),  m.rows,
                                  m.cols,        eps,
                                  scale};
        check(spectral_normalize_backward(scope.stream(), m.batch, a),
              "spectral_normalize_backward");
    });
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lipfuse, CUDA, m) {
    m.impl("power_iteration", TORCH_BOX(&power_iteration_op));
    m.impl("power_iteration_backward", TORCH_BOX(&power_iteration_backward_op));
    m.impl("spectral_normalize", TORCH_BOX(&spectral_normalize_op));
    m.impl("spectral_normalize_backward", TORCH_BOX(&spectral_normalize_backward_op));
}

}  // namespace lipfuse::cuda
