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
PolarArguments<T> forward_arguments(const Tensor& w, const Tensor& out, const Tensor& root,
                                    const Tensor& info, int64_t from, int64_t rows, int64_t cols,
                                    double tol, double scale) {
    return {data<T>(w),
            data<T>(out),
            data_or_null<T>(root),
            data<double>(info) + from * info_size,
            rows,
            cols,
            tol,
            scale};
}

std::tuple<Tensor, Tensor, Tensor> orthogonalize_op(const Tensor& weight, double tol, double scale,
                                                    bool save) {
    const Matrices m(weight);
    check_tolerance(tol);
    const Scope scope(weight);
    const Tensor w = packed(weight);
    const bool keep_root = save && m.rows != m.cols && m.small() > 0;
    Tensor out = make(w, sizes_of(w));
    Tensor root = make(w, keep_root ? batch_sizes(w, {m.small(), m.small()}) : Sizes{0});
    Tensor info = make_double(w, batch_sizes(w, {info_size}));
    by_dtype(w, [&](auto zero) {
        using T = decltype(zero);
        check(orthogonalize<T>(scope.stream(),
                               {{m.batch, forward_arguments<T>(w, out, root, info, 0, m.rows,
                                                               m.cols, tol, scale)}}),
              "orthogonalize");
    });
    return {out, root, info};
}

Tensor orthogonalize_backward_op(const Tensor& grad, const Tensor& weight, const Tensor& orthogonal,
                                 const Tensor& inverse_root, const Tensor& info, double tol,
                                 double scale, bool tangent) {
    const Scope scope(grad);
    const Tensor g = packed(grad), w = packed(weight), q = packed(orthogonal),
                 root = packed(inverse_root), range = packed(info);
    const Matrices m(g);
    check_tolerance(tol);
    check_info(g, range, m.batch * info_size);
    check_polar(g, w, q, root, m, tangent, false);
    Tensor out = make(g, sizes_of(g));
    by_dtype(g, [&](auto zero) {
        using T = decltype(zero);
        const PolarBackwardArguments<T> a{data<T>(g),
                                          data<T>(w),
                                          data<T>(q),
                                          data_or_null<T>(root),
                                          data<double>(range),
                                          data<T>(out),
                                          m.rows,
                                          m.cols,
                                          tol,
                                          scale,
                                          tangent};
        check(orthogonalize_backward<T>(scope.stream(), {{m.batch, a}}), "orthogonalize_backward");
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
    Tensors out, roots;
    Tensor info = make_double(weights[0], {total_of(matrices), info_size});
    by_dtype(weights[0], [&](auto zero) {
        using T = decltype(zero);
        Jobs<PolarArguments<T>> jobs;
        int64_t from = 0;
        for (size_t i = 0; i < weights.size(); ++i) {
            Tensor& w = weights[i];
            w = packed(w);
            const Matrices& m = matrices[i];
            const bool keep = save && m.rows != m.cols && m.small() > 0;
            out.push_back(make(w, sizes_of(w)));
            roots.push_back(make(w, keep ? Sizes{m.batch, m.small(), m.small()} : Sizes{0}));
            jobs.push_back({m.batch, forward_arguments<T>(w, out[i], roots[i], info, from, m.rows,
                                                          m.cols, tol, scales[i])});
            from += m.batch;
        }
        check(orthogonalize<T>(scope.stream(), jobs), "foreach_orthogonalize");
    });
    return {out, roots, info};
}

Tensors foreach_orthogonalize_backward_op(Tensors grads, Tensors weights, Tensors orthogonal,
                                          Tensors inverse_roots, const Tensor& info,
                                          std::vector<int64_t> groups, std::vector<double> scales,
                                          double tol, bool tangent) {
    check_lengths(weights, {&grads, &orthogonal, &inverse_roots});
    check_tolerance(tol);
    const std::vector<Matrices> matrices = check_weights(weights, groups, scales);
    check_info(weights[0], info, total_of(matrices) * info_size);
    for (size_t i = 0; i < weights.size(); ++i)
        check_polar(weights[i], grads[i], orthogonal[i], inverse_roots[i], matrices[i], tangent,
                    false);
    const Scope scope(weights[0]);
    pack({&grads, &weights, &orthogonal, &inverse_roots});
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
                {m.batch,
                 {data<T>(grads[i]), data<T>(weights[i]), data<T>(orthogonal[i]),
                  data_or_null<T>(inverse_roots[i]), data<double>(range) + from * info_size,
                  data<T>(out[i]), m.rows, m.cols, tol, scales[i], tangent}});
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
