#include "operators.h"

namespace lipfuse::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> power_iteration_op(const Tensor& weight, const Tensor& u,
                                                      const std::optional<Tensor>& v,
                                                      int64_t n_iterations, double eps) {
    const Matrices m(weight);
    const Scope scope(weight);
    const int times = check_count(n_iterations, "n_iterations");
    PowerTensors p(weight, u, v, m, {});
    by_dtype(p.weight, [&](auto zero) {
        using T = decltype(zero);
        check(power_iteration<T>(scope.stream(), {{m.batch, p.arguments<T>(m, times, eps, 1)}}),
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
    const int times = check_count(n_iterations, "n_iterations");
    PowerTensors p(weight, u, v, m, {});
    Tensor out = make(p.weight, sizes_of(p.weight));
    by_dtype(p.weight, [&](auto zero) {
        using T = decltype(zero);
        auto a = p.arguments<T>(m, times, eps, 1);
        a.out = data<T>(out);
        a.scale = scale;
        check(spectral_normalize<T>(scope.stream(), {{m.batch, a}}), "spectral_normalize");
    });
    return {out, p.sigma, p.new_u, p.new_v};
}

Tensor power_iteration_backward_op(const Tensor& grad_sigma, const Tensor& u, const Tensor& v) {
    const Scope scope(u);
    const Tensor g = packed(grad_sigma), left = packed(u), right = packed(v);
    const int64_t rows = left.size(left.dim() - 1), cols = right.size(right.dim() - 1);
    Tensor out = make(left, batch_sizes(left, {rows, cols}, 1));
    const Matrices m(out);
    check_like(left, g, m.batch, "grad_sigma");
    check_like(left, right, m.batch * cols, "v");
    by_dtype(left, [&](auto zero) {
        using T = decltype(zero);
        OuterArguments<T> a{};
        a.grad_sigma = data<T>(g);
        a.u = data<T>(left);
        a.v = data<T>(right);
        a.out = data<T>(out);
        a.rows = rows;
        a.cols = cols;
        check(power_iteration_backward<T>(scope.stream(), {{m.batch, a}}),
              "power_iteration_backward");
    });
    return out;
}

Tensor spectral_normalize_backward_op(const Tensor& grad, const std::optional<Tensor>& grad_sigma,
                                      const Tensor& normalized, const Tensor& sigma,
                                      const Tensor& u, const Tensor& v, double eps, double scale) {
    const Scope scope(grad);
    const Tensor g = packed(grad), w = packed(normalized), s = packed(sigma), left = packed(u),
                 right = packed(v), gs = grad_sigma ? packed(*grad_sigma) : s;
    const Matrices m(g);
    check_like(g, w, m.numel(), "normalized");
    check_sigma(g, s, gs, m.batch);
    check_vectors(g, m, left, right);
    Tensor out = make(g, sizes_of(g));
    by_dtype(g, [&](auto zero) {
        using T = decltype(zero);
        const OuterArguments<T> a{data<T>(g),    grad_sigma ? data<T>(gs) : nullptr,
                                  data<T>(w),    data<T>(s),
                                  data<T>(left), data<T>(right),
                                  data<T>(out),  m.rows,
                                  m.cols,        eps,
                                  scale};
        check(spectral_normalize_backward<T>(scope.stream(), {{m.batch, a}}),
              "spectral_normalize_backward");
    });
    return out;
}

// ---- many weights in one launch ------------------------------------------------------------------

// Each weight as one matrix, with its u and, unless there are none, v.
std::vector<Matrices> check_whole(const Tensors& weights, const Tensors& us, const Tensors& vs,
                                  const std::vector<double>& scales) {
    const auto matrices = check_weights(weights, Sizes(weights.size(), 1), scales);
    check_lengths(weights, {&us});
    if (!vs.empty()) check_lengths(weights, {&vs});
    for (size_t i = 0; i < weights.size(); ++i)
        check_vectors(weights[i], matrices[i], us[i],
                      vs.empty() ? std::nullopt : std::optional<Tensor>(vs[i]));
    return matrices;
}

std::tuple<Tensors, Tensor, Tensors, Tensors> foreach_spectral_normalize_op(
    Tensors weights, Tensors us, Tensors vs, int64_t n_iterations, double eps,
    std::vector<double> scales) {
    const bool given_v = !vs.empty();
    const int times = check_count(n_iterations, "n_iterations");
    const std::vector<Matrices> matrices = check_whole(weights, us, vs, scales);
    const Scope scope(weights[0]);
    pack({&weights, &us, &vs});
    Tensors out, new_us, new_vs;
    Tensor sigmas = make(weights[0], {static_cast<int64_t>(weights.size())});
    by_dtype(weights[0], [&](auto zero) {
        using T = decltype(zero);
        Jobs<PowerArguments<T>> jobs;
        for (size_t i = 0; i < weights.size(); ++i) {
            const Tensor& w = weights[i];
            const Matrices& m = matrices[i];
            out.push_back(make(w, sizes_of(w)));
            new_us.push_back(make(w, {m.rows}));
            new_vs.push_back(make(w, {m.cols}));
            PowerArguments<T> a{};
            a.weight = data<T>(w);
            a.u = data<T>(us[i]);
            a.v = given_v ? data<T>(vs[i]) : nullptr;
            a.new_u = data<T>(new_us[i]);
            a.new_v = data<T>(new_vs[i]);
            a.sigma = data<T>(sigmas) + i;
            a.rows = m.rows;
            a.cols = m.cols;
            a.n_iterations = times;
            a.eps = eps;
            a.sigma_step = 1;
            a.out = data<T>(out[i]);
            a.scale = scales[i];
            jobs.push_back({1, a});
        }
        check(spectral_normalize<T>(scope.stream(), jobs), "foreach_spectral_normalize");
    });
    return {out, sigmas, new_us, new_vs};
}

Tensors foreach_spectral_normalize_backward_op(Tensors grads,
                                               const std::optional<Tensor>& grad_sigmas,
                                               Tensors normalized, const Tensor& sigmas, Tensors us,
                                               Tensors vs, double eps, std::vector<double> scales) {
    const std::vector<Matrices> matrices = check_whole(grads, us, vs, scales);
    check_lengths(grads, {&normalized, &vs});
    for (size_t i = 0; i < grads.size(); ++i)
        check_like(grads[i], normalized[i], grads[i].numel(), "normalized");
    check_sigma(grads[0], sigmas, grad_sigmas, static_cast<int64_t>(grads.size()));
    const Scope scope(grads[0]);
    pack({&grads, &normalized, &us, &vs});
    const Tensor s = packed(sigmas), gs = grad_sigmas ? packed(*grad_sigmas) : s;
    Tensors out;
    by_dtype(grads[0], [&](auto zero) {
        using T = decltype(zero);
        Jobs<OuterArguments<T>> jobs;
        for (size_t i = 0; i < grads.size(); ++i) {
            const Matrices& m = matrices[i];
            out.push_back(make(grads[i], sizes_of(grads[i])));
            jobs.push_back({1,
                            {data<T>(grads[i]), grad_sigmas ? data<T>(gs) + i : nullptr,
                             data<T>(normalized[i]), data<T>(s) + i, data<T>(us[i]), data<T>(vs[i]),
                             data<T>(out[i]), m.rows, m.cols, eps, scales[i]}});
        }
        check(spectral_normalize_backward<T>(scope.stream(), jobs),
              "foreach_spectral_normalize_backward");
    });
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lipfuse, CUDA, m) {
    m.impl("power_iteration", TORCH_BOX(&power_iteration_op));
    m.impl("power_iteration_backward", TORCH_BOX(&power_iteration_backward_op));
    m.impl("spectral_normalize", TORCH_BOX(&spectral_normalize_op));
    m.impl("spectral_normalize_backward", TORCH_BOX(&spectral_normalize_backward_op));
    m.impl("foreach_spectral_normalize", TORCH_BOX(&foreach_spectral_normalize_op));
    m.impl("foreach_spectral_normalize_backward",
           TORCH_BOX(&foreach_spectral_normalize_backward_op));
}

}  // namespace lipfuse::cuda
