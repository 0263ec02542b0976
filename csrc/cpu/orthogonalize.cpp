#include "../algorithms/polar.h"
#include "operators.h"

namespace lipfuse::cpu {
namespace {

constexpr int64_t info_size = 5;  // PolarInfo: low, high, residual, bound, stages

std::tuple<Tensor, Tensor, Tensor> orthogonalize(const Tensor& weight, double tol, double scale,
                                                 bool save) {
    const Matrices m(weight);
    const Tensor w = packed(weight);
    const bool keep_root = save && m.rows != m.cols;
    Tensor out = make(w, sizes_of(w));
    Tensor root = keep_root ? make(w, batch_sizes(w, {m.small(), m.small()})) : make(w, Sizes{0});
    Tensor info = make(w, batch_sizes(w, {info_size}), ScalarType::Double);
    by_dtype(w, [&](auto zero) {
        using T = decltype(zero);
        for_each_matrix<T>(m, [&](Backend<T>& backend, int64_t i) {
            T* kept = data_or_null<T>(root);
            const PolarInfo p = polar(backend, data<T>(w) + i * m.area(), m.rows, m.cols, tol, scale,
                                      data<T>(out) + i * m.area(),
                                      kept ? kept + i * m.small() * m.small() : nullptr);
            double* to = data<double>(info) + i * info_size;
            to[0] = p.low;
            to[1] = p.high;
            to[2] = p.residual;
            to[3] = p.bound;
            to[4] = p.stages;
        });
    });
    return {out, root, info};
}

Tensor orthogonalize_backward(const Tensor& grad, const Tensor& weight, const Tensor& orthogonal,
                              const Tensor& inverse_root, const Tensor& info, double tol,
                              double scale, bool tangent) {
    const Tensor g = packed(grad), w = packed(weight), q = packed(orthogonal),
                 root = packed(inverse_root), range = packed(info);
    const Matrices m(g);
    Tensor out = make(g, sizes_of(g));
    by_dtype(g, [&](auto zero) {
        using T = decltype(zero);
        for_each_matrix<T>(m, [&](Backend<T>& backend, int64_t i) {
            const T* kept = data_or_null<T>(root);
            const double* r = data<double>(range) + i * info_size;
            polar_backward(backend, data<T>(g) + i * m.area(), data<T>(w) + i * m.area(),
                           data<T>(q) + i * m.area(),
                           kept ? kept + i * m.small() * m.small() : nullptr, m.rows, m.cols, scale,
                           r[0], r[1], tol, tangent, data<T>(out) + i * m.area());
        });
    });
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lipfuse, CPU, m) {
    m.impl("orthogonalize", TORCH_BOX(&orthogonalize));
    m.impl("orthogonalize_backward", TORCH_BOX(&orthogonalize_backward));
}

}  // namespace lipfuse::cpu
