#include "operators.h"

namespace lipfuse::cuda {
namespace {

// What the iteration writes beside its result.
struct Record {
    Tensor out, history, steps;

    Record(const Tensor& w, const Matrices& m, int max_iterations, bool save)
        : out(make(w, sizes_of(w))),
          history(make(w, save ? batch_sizes(w, {max_iterations, m.rows, m.cols}) : Sizes{0})),
          steps(make_int64(w, batch_sizes(w, {}))) {}

    template <class T>
    BjorckArguments<T> arguments(const Tensor& w, const Matrices& m, double beta,
                                 int max_iterations, double eps, double scale) const {
        return {data<T>(w), data<T>(out), data_or_null<T>(history), data<int64_t>(steps),
                m.rows,     m.cols,       max_iterations,           beta,
                eps,        scale};
    }
};

std::tuple<Tensor, Tensor, Tensor> bjorck_op(const Tensor& weight, double beta,
                                             int64_t max_iterations, double eps, bool save) {
    const Matrices m(weight);
    const Scope scope(weight);
    const int most = check_count(max_iterations, "max_iterations");
    const Tensor w = packed(weight);
    const Record r(w, m, most, save);
    by_dtype(w, [&](auto zero) {
        using T = decltype(zero);
        check(bjorck<T>(scope.stream(), {{m.batch, r.arguments<T>(w, m, beta, most, eps, 1.0)}}),
              "bjorck");
    });
    return {r.out, r.history, r.steps};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> spectral_bjorck_op(
    const Tensor& weight, const Tensor& u, const std::optional<Tensor>& v, int64_t n_iterations,
    double eps, double beta, int64_t max_iterations, double eps_bjorck, double scale, bool save) {
    const Matrices m(weight);
    const Scope scope(weight);
    const int times = check_count(n_iterations, "n_iterations");
    const int most = check_count(max_iterations, "max_iterations");
    PowerTensors p(weight, u, v, m, {2});
    const Record r(p.weight, m, most, save);
    by_dtype(p.weight, [&](auto zero) {
        using T = decltype(zero);
        const ChainArguments<T> a{p.arguments<T>(m, times, eps, 2),
                                  r.arguments<T>(p.weight, m, beta, most, eps_bjorck, scale)};
        check(spectral_bjorck<T>(scope.stream(), {{m.batch, a}}), "spectral_bjorck");
    });
    return {r.out, p.sigma, p.new_u, p.new_v, r.history, r.steps};
}

// sigma, u and v are null for the iteration alone.
Tensor backward(const Tensor& grad, const Tensor* sigma, const Tensor* u, const Tensor* v,
                const Tensor& history, const Tensor& steps, double eps, double beta, double scale) {
    const Scope scope(grad);
    const Tensor g = packed(grad), kept = packed(history), count = packed(steps),
                 s = sigma ? packed(*sigma) : g, left = u ? packed(*u) : g,
                 right = v ? packed(*v) : g;
    const Matrices m(g);
    const int most = check_history(g, kept, count, m);
    if (sigma) check_chain(g, s, left, right, most, m);
    Tensor out = make(g, sizes_of(g));
    by_dtype(g, [&](auto zero) {
        using T = decltype(zero);
        BjorckBackwardArguments<T> a{};
        a.grad = data<T>(g);
        a.history = data_or_null<T>(kept);
        a.steps = data<int64_t>(count);
        a.out = data<T>(out);
        a.rows = m.rows;
        a.cols = m.cols;
        a.most_steps = most;
        a.beta = beta;
        a.scale = scale;
        a.eps = eps;
        if (sigma) {
            a.sigma = data<T>(s);
            a.u = data<T>(left);
            a.v = data<T>(right);
        }
        check(bjorck_backward<T>(scope.stream(), {{m.batch, a}}), "bjorck_backward");
    });
    return out;
}

Tensor bjorck_backward_op(const Tensor& grad, const Tensor& history, const Tensor& steps,
                          double beta) {
    return backward(grad, nullptr, nullptr, nullptr, history, steps, 0, beta, 1);
}

Tensor spectral_bjorck_backward_op(const Tensor& grad, const Tensor& sigma, const Tensor& u,
                                   const Tensor& v, const Tensor& history, const Tensor& steps,
                                   double eps, double beta, double scale) {
    return backward(grad, &sigma, &u, &v, history, steps, eps, beta, scale);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lipfuse, CUDA, m) {
    m.impl("bjorck", TORCH_BOX(&bjorck_op));
    m.impl("bjorck_backward", TORCH_BOX(&bjorck_backward_op));
    m.impl("spectral_bjorck", TORCH_BOX(&spectral_bjorck_op));
    m.impl("spectral_bjorck_backward", TORCH_BOX(&spectral_bjorck_backward_op));
}

}  // namespace lipfuse::cuda
