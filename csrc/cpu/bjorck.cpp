#include "../algorithms/bjorck.h"

#include "../algorithms/power_iteration.h"
#include "checks.h"

namespace lipfuse::cpu {
namespace {

Tensor make_history(const Tensor& w, const Matrices& m, int max_iterations, bool save) {
    return save ? make(w, batch_sizes(w, {max_iterations, m.rows, m.cols})) : make(w, Sizes{0});
}

// No matrix made more steps than were kept.
void check_steps(const Tensor& steps, int most, const Matrices& m) {
    for (int64_t i = 0; m.area() > 0 && i < m.batch; ++i) {
        const int64_t count = data<int64_t>(steps)[i];
        STD_TORCH_CHECK(count >= 0 && count <= most, "lipfuse: steps must be in [0, ", most,
                        "], the iterates that history has, got ", count);
    }
}

std::tuple<Tensor, Tensor, Tensor> bjorck_op(const Tensor& weight, double beta,
                                             int64_t max_iterations, double eps, bool save) {
    const Matrices m(weight);
    const int most = check_count(max_iterations, "max_iterations");
    const Tensor w = packed(weight);
    Tensor out = make(w, sizes_of(w));
    Tensor history = make_history(w, m, most, save);
    Tensor steps = make_int64(w, batch_sizes(w, {}));
    by_dtype(w, [&](auto zero) {
        using T = decltype(zero);
        for_each_matrix<T>(m, m.product_work(), [&](Backend<T>& backend, int64_t i) {
            T* kept = data_or_null<T>(history);
            double shrink;
            data<int64_t>(steps)[i] = bjorck(
                backend, data<T>(w) + i * m.area(), m.rows, m.cols, beta, most, eps, 1.0, false,
                data<T>(out) + i * m.area(), kept ? kept + i * most * m.area() : nullptr, &shrink);
        });
    });
    return {out, history, steps};
}

Tensor bjorck_backward_op(const Tensor& grad, const Tensor& history, const Tensor& steps,
                          double beta) {
    const Tensor g = packed(grad), kept = packed(history), count = packed(steps);
    const Matrices m(g);
    const int most = check_history(g, kept, count, m);
    check_steps(count, most, m);
    Tensor out = make(g, sizes_of(g));
    by_dtype(g, [&](auto zero) {
        using T = decltype(zero);
        for_each_matrix<T>(m, m.product_work(), [&](Backend<T>& backend, int64_t i) {
            bjorck_backward(backend, data<T>(g) + i * m.area(), data<T>(kept) + i * most * m.area(),
                            m.rows, m.cols, static_cast<int>(data<int64_t>(count)[i]), beta, 1.0,
                            data<T>(out) + i * m.area());
        });
    });
    return out;
}

// The whole chain of a layer: sigma by power iteration, W / sigma, Björck, times `scale`.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> spectral_bjorck(
    const Tensor& weight, const Tensor& u, const std::optional<Tensor>& v, int64_t n_iterations,
    double eps, double beta, int64_t max_iterations, double eps_bjorck, double scale, bool save) {
    const Matrices m(weight);
    const int times = check_count(n_iterations, "n_iterations");
    const int most = check_count(max_iterations, "max_iterations");
    const Tensor w = packed(weight);
    check_vectors(w, m, u, v);
    Tensor new_u = copied(u);
    Tensor new_v = v ? copied(*v) : make(w, batch_sizes(w, {m.cols}));
    Tensor out = make(w, sizes_of(w));
    Tensor sigma = make(w, batch_sizes(w, {2}));
    Tensor history = make_history(w, m, most, save);
    Tensor steps = make_int64(w, batch_sizes(w, {}));
    by_dtype(w, [&](auto zero) {
        using T = decltype(zero);
        for_each_matrix<T>(m, m.product_work(), [&](Backend<T>& backend, int64_t i) {
            const T* wi = data<T>(w) + i * m.area();
            T* ui = data<T>(new_u) + i * m.rows;
            T* vi = data<T>(new_v) + i * m.cols;
            const auto view = Backend<T>::view(wi, m.rows, m.cols);
            if (!v) backend.normalized_product_of_transpose(view, ui, vi, eps);
            const double s = power_iteration(backend, view, ui, vi, times, eps);
            T* kept = data_or_null<T>(history);
            T* qi = data<T>(out) + i * m.area();
            const auto mark = backend.mark();
            T* scaled = backend.allocate(m.area());
            backend.axpby(m.area(), T(1 / (std::fabs(s) < eps ? eps : s)), wi, T(0), nullptr,
                          scaled);
            double shrink;
            data<int64_t>(steps)[i] =
                bjorck(backend, scaled, m.rows, m.cols, beta, most, eps_bjorck, scale, true, qi,
                       kept ? kept + i * most * m.area() : nullptr, &shrink);
            backend.release(mark);
            data<T>(sigma)[2 * i] = T(s);
            data<T>(sigma)[2 * i + 1] = T(shrink);
        });
    });
    return {out, sigma, new_u, new_v, history, steps};
}

Tensor spectral_bjorck_backward(const Tensor& grad, const Tensor& sigma, const Tensor& u,
                                const Tensor& v, const Tensor& history, const Tensor& steps,
                                double eps, double beta, double scale) {
    const Tensor g = packed(grad), s = packed(sigma), left = packed(u), right = packed(v),
                 kept = packed(history), count = packed(steps);
    const Matrices m(g);
    const int most = check_history(g, kept, count, m);
    check_steps(count, most, m);
    check_chain(g, s, left, right, most, m);
    Tensor out = make(g, sizes_of(g));
    by_dtype(g, [&](auto zero) {
        using T = decltype(zero);
        for_each_matrix<T>(m, m.product_work(), [&](Backend<T>& backend, int64_t i) {
            T* oi = data<T>(out) + i * m.area();
            const T* w0 = data<T>(kept) + i * most * m.area();
            bjorck_backward(backend, data<T>(g) + i * m.area(), w0, m.rows, m.cols,
                            static_cast<int>(data<int64_t>(count)[i]), beta, scale, oi);
            // W0 = shrink W / sigma, sigma = uᵀWv
            const double si = double(data<T>(s)[2 * i]), shrink = double(data<T>(s)[2 * i + 1]);
            const double along = std::fabs(si) < eps ? 0.0 : -backend.dot(m.area(), oi, w0) / si;
            backend.rank_one_update(oi, T(shrink / (std::fabs(si) < eps ? eps : si)), T(along),
                                    data<T>(left) + i * m.rows, data<T>(right) + i * m.cols, m.rows,
                                    m.cols, oi);
        });
    });
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lipfuse, CPU, m) {
    m.impl("bjorck", TORCH_BOX(&bjorck_op));
    m.impl("bjorck_backward", TORCH_BOX(&bjorck_backward_op));
    m.impl("spectral_bjorck", TORCH_BOX(&spectral_bjorck));
    m.impl("spectral_bjorck_backward", TORCH_BOX(&spectral_bjorck_backward));
}

}  // namespace lipfuse::cpu
