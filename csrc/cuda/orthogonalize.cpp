#include "operators.h"

namespace lipfuse::cuda {
namespace {

int64_t total_of(const std::vector<Matrices>& matrices) {
    int64_t total = 0;
    for (const Matrices& m : matrices) total += m.batch;
    return total;
}

// One weight's arguments; `from`: which of its matrices is the first, by its row in `info`.
template <class T>
PolarArguments<T> forward_arguments(const Tensor& w, const Tensor& out, const Tensor& saved,
                                    const Tensor& info, int64_t from, const Matrices& m, double tol,
                                    double scale) {
    return {data<T>(w),
            data<T>(out),
            data_or_null<T>(saved),
            data<double>(info) + from * info_size,
            m.rows,
            m.cols,
            tol,
            scale,
            static_cast<int32_t>(saved_count(saved, m.batch, m.rows, m.cols))};
}
template <class T>
PolarBackwardArguments<T> backward_arguments(const Tensor& grad, const Tensor& weight,
                                             const Tensor& orthogonal, const Tensor& saved,
                                             const Tensor& info, int64_t from, const Matrices& m,
                                             double tol, double scale, bool tangent,
                                             const Tensor& out) {
    return {data<T>(grad),
            data<T>(weight),
            data<T>(orthogonal),
            data_or_null<T>(saved),
            data<double>(info) + from * info_size,
            data<T>(out),
            m.rows,
            m.cols,
            tol,
            scale,
            static_cast<int32_t>(saved_count(saved, m.batch, m.rows, m.cols)),
            tangent};
}

std::tuple<Tensor, Tensor, Tensor> orthogonalize_op(const Tensor& weight, double tol, double scale,
                                                    bool save) {
    const Matrices m(weight);
    check_tolerance(tol);
    const Scope scope(weight);
    const Tensor w = packed(weight);
    Tensor out = make(w, sizes_of(w));
    Tensor saved = make_saved(w, batch_sizes(w, {}), m, tol, save);
    Tensor info = make_double(w, batch_sizes(w, {info_size}));
    by_dtype(w, [&](auto zero) {
        using T = decltype(zero);
        check(orthogonalize<T>(scope.stream(), {{m.batch, forward_arguments<T>(w, out, saved, info,
                                                                               0, m, tol, scale)}}),
              "orthogonalize");
    });
    return {out, saved, info};
}

Tensor orthogonalize_backward_op(const Tensor& grad, const Tensor& weight, const Tensor& orthogonal,
                                 const Tensor& saved, const Tensor& info, double tol, double scale,
                                 bool tangent) {
    const Scope scope(grad);
    const Tensor g = packed(grad), w = packed(weight), q = packed(orthogonal), kept = packed(saved),
                 range = packed(info);
    const Matrices m(g);
    check_tolerance(tol);
    check_info(g, range, m.batch * info_size);
    check_polar(g, w, q, kept, m, tangent);
    Tensor out = make(g, sizes_of(g));
    by_dtype(g, [&](auto zero) {
        using T = decltype(zero);
        check(orthogonalize_backward<T>(
                  scope.stream(), {{m.batch, backward_arguments<T>(g, w, q, kept, range, 0, m, tol,
                                                                   scale, tangent, out)}}),
              "orthogonalize_backward");
    });
    return out;
}

std::tuple<Tensors, Tensors, Tensor> foreach_orthogonalize_op(Tensors weights,
                                                              std::vector<int64_t> groups,
                                                              std::vector<double> scales,
                                                              double tol, bool save) {
    check_tolerance(tol);
    const std::vector<Matrices> matrices = check_weights(weights, groups, scales);
    const Scope scope(weights[0]);
    Tensors out, saved;
    Tensor info = make_double(weights[0], {total_of(matrices), info_size});
    by_dtype(weights[0], [&](auto zero) {
        using T = decltype(zero);
        Jobs<PolarArguments<T>> jobs;
        int64_t from = 0;
        for (size_t i = 0; i < weights.size(); ++i) {
            Tensor& w = weights[i];
            w = packed(w);
            const Matrices& m = matrices[i];
            out.push_back(make(w, sizes_of(w)));
            saved.push_back(make_saved(w, {m.batch}, m, tol, save));
            jobs.push_back({m.batch, forward_arguments<T>(w, out[i], saved[i], info, from, m, tol,
                                                          scales[i])});
            from += m.batch;
        }
        check(orthogonalize<T>(scope.stream(), jobs), "foreach_orthogonalize");
    });
    return {out, saved, info};
}

Tensors foreach_orthogonalize_backward_op(Tensors grads, Tensors weights, Tensors orthogonal,
                                          Tensors saved, const Tensor& info,
                                          std::vector<int64_t> groups, std::vector<double> scales,
                                          double tol, bool tangent) {
    check_lengths(weights, {&grads, &orthogonal, &saved});
    check_tolerance(tol);
    const std::vector<Matrices> matrices = check_weights(weights, groups, scales);
    check_info(weights[0], info, total_of(matrices) * info_size);
    for (size_t i = 0; i < weights.size(); ++i)
        check_polar(weights[i], grads[i], orthogonal[i], saved[i], matrices[i], tangent);
    const Scope scope(weights[0]);
    pack({&grads, &weights, &orthogonal, &saved});
    const Tensor range = packed(info);
    Tensors out;
    by_dtype(weights[0], [&](auto zero) {
        using T = decltype(zero);
        Jobs<PolarBackwardArguments<T>> jobs;
        int64_t from = 0;
        for (size_t i = 0; i < weights.size(); ++i) {
            const Matrices& m = matrices[i];
            out.push_back(make(grads[i], sizes_of(grads[i])));
            jobs.push_back(
                {m.batch, backward_arguments<T>(grads[i], weights[i], orthogonal[i], saved[i],
                                                range, from, m, tol, scales[i], tangent, out[i])});
            from += m.batch;
        }
        check(orthogonalize_backward<T>(scope.stream(), jobs), "foreach_orthogonalize_backward");
    });
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lipfuse, CUDA, m) {
    m.impl("orthogonalize", TORCH_BOX(&orthogonalize_op));
    m.impl("orthogonalize_backward", TORCH_BOX(&orthogonalize_backward_op));
    m.impl("foreach_orthogonalize", TORCH_BOX(&foreach_orthogonalize_op));
    m.impl("foreach_orthogonalize_backward", TORCH_BOX(&foreach_orthogonalize_backward_op));
}

}  // namespace lipfuse::cuda
