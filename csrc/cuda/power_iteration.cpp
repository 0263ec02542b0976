#include "operators.h"
#include "weights.h"

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
        check(power_iteration<T>(scope.stream(),
                                 {{m.batch, p.arguments<T>(m, n_iterations, eps, 1)}}),
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
        auto a = p.arguments<T>(m, n_iterations, eps, 1);
        a.out = data<T>(out);
        a.scale = scale;
        check(spectral_normalize<T>(scope.stream(), {{m.batch, a}}), "spectral_normalize");
    });
    return {out, p.sigma, p.new_u, p.new_v};
}

Tensor power_iteration_backward_op(const Tensor& grad_sigma, const Tensor& u, const Tensor& v) {
    const Scope scope(u);
    const Tensor g = packed(grad_sigma), left = packed(u), right = packed(v);
    for (const Tensor* t : {&g, &right}) {
        check_device(left, *t, "every argument");
        check_same_dtype(left, *t, "every argument");
    }
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
        check(spectral_normalize_backward<T>(scope.stream(), {{m.batch, a}}),
              "spectral_normalize_backward");
    });
    return out;
}

// ---- many weights in one launch ------------------------------------------------------------------

void check_lists(const Tensors& weights, std::initializer_list<Tensors*> lists,
                 const std::vector<double>& scales) {
    check_weights(weights, std::vector<int64_t>(weights.size(), 1), scales);
    for (Tensors* list : lists) {
        STD_TORCH_CHECK(list->size() == weights.size(),
                        "lipfuse: all lists must have the same length");
        for (Tensor& t : *list) {
            check_device(weights[0], t, "every argument");
            check_same_dtype(weights[0], t, "every argument");
            t = packed(t);
        }
    }
}

std::tuple<Tensors, Tensor, Tensors, Tensors> foreach_spectral_normalize_op(
    Tensors weights, Tensors us, Tensors vs, int64_t n_iterations, double eps,
    std::vector<double> scales) {
    const bool given_v = !vs.empty();
    if (given_v)
        check_lists(weights, {&weights, &us, &vs}, scales);
    else
        check_lists(weights, {&weights, &us}, scales);
    const Scope scope(weights[0]);
    Tensors out, new_us, new_vs;
    Tensor sigmas = make(weights[0], {static_cast<int64_t>(weights.size())});
    by_dtype(weights[0], [&](auto zero) {
        using T = decltype(zero);
        Jobs<PowerArguments<T>> jobs;
        for (size_t i = 0; i < weights.size(); ++i) {
            const Tensor& w = weights[i];
            const Group g(w, 1);
            check_numel(us[i], g.rows, "u");
            if (given_v) check_numel(vs[i], g.cols, "v");
            out.push_back(make(w, sizes_of(w)));
            new_us.push_back(make(w, {g.rows}));
            new_vs.push_back(make(w, {g.cols}));
            PowerArguments<T> a{};
            a.weight = data<T>(w);
            a.u = data<T>(us[i]);
            a.v = given_v ? data<T>(vs[i]) : nullptr;
            a.new_u = data<T>(new_us[i]);
            a.new_v = data<T>(new_vs[i]);
            a.sigma = data<T>(sigmas) + i;
            a.rows = g.rows;
            a.cols = g.cols;
            a.n_iterations = static_cast<int>(n_iterations);
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
    check_lists(grads, {&grads, &normalized, &us, &vs}, scales);
    const Scope scope(grads[0]);
    const Tensor s = packed(sigmas), gs = grad_sigmas ? packed(*grad_sigmas) : s;
    for (const Tensor* t : {&s, &gs}) {
        check_device(grads[0], *t, "every argument");
        check_same_dtype(grads[0], *t, "every argument");
        check_numel(*t, static_cast<int64_t>(grads.size()), "sigmas");
    }
    Tensors out;
    by_dtype(grads[0], [&](auto zero) {
        using T = decltype(zero);
        Jobs<OuterArguments<T>> jobs;
        for (size_t i = 0; i < grads.size(); ++i) {
            const Group g(grads[i], 1);
            check_numel(us[i], g.rows, "u");
            check_numel(vs[i], g.cols, "v");
            out.push_back(make(grads[i], sizes_of(grads[i])));
            jobs.push_back({1,
                            {data<T>(grads[i]), grad_sigmas ? data<T>(gs) + i : nullptr,
                             data<T>(normalized[i]), data<T>(s) + i, data<T>(us[i]), data<T>(vs[i]),
                             data<T>(out[i]), g.rows, g.cols, eps, scales[i]}});
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
