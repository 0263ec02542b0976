#include "operators.h"
#include "weights.h"

namespace lipfuse::cuda {
namespace {

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
    const Scope scope(weight);
    const Tensor w = packed(weight);
    const bool keep_root = save && m.rows != m.cols;
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
    check_device(g, range, "info");
    for (const Tensor* t : {&w, &q, &root}) {
        check_device(g, *t, "every argument");
        check_same_dtype(g, *t, "every argument");
    }
    const Matrices m(g);
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
    check_weights(weights, groups, scales);
    const Scope scope(weights[0]);
    Tensors out, roots;
    int64_t total = 0;
    for (int64_t g : groups) total += g;
    Tensor info = make_double(weights[0], {total, info_size});
    by_dtype(weights[0], [&](auto zero) {
        using T = decltype(zero);
        Jobs<PolarArguments<T>> jobs;
        int64_t from = 0;
        for (size_t i = 0; i < weights.size(); ++i) {
            Tensor& w = weights[i];
            w = packed(w);
            const Group g(w, groups[i]);
            const bool keep = save && g.rows != g.cols;
            out.push_back(make(w, sizes_of(w)));
            roots.push_back(make(w, keep ? Sizes{g.matrices, g.small(), g.small()} : Sizes{0}));
            jobs.push_back({g.matrices, forward_arguments<T>(w, out[i], roots[i], info, from,
                                                             g.rows, g.cols, tol, scales[i])});
            from += g.matrices;
        }
        check(orthogonalize<T>(scope.stream(), jobs), "foreach_orthogonalize");
    });
    return {out, roots, info};
}

Tensors foreach_orthogonalize_backward_op(Tensors grads, Tensors weights, Tensors orthogonal,
                                          Tensors inverse_roots, const Tensor& info,
                                          std::vector<int64_t> groups, std::vector<double> scales,
                                          double tol, bool tangent) {
    check_weights(weights, groups, scales);
    const Scope scope(weights[0]);
    for (Tensors* list : {&grads, &weights, &orthogonal, &inverse_roots}) {
        STD_TORCH_CHECK(list->size() == weights.size(),
                        "lipfuse: all lists must have the same length");
        for (Tensor& t : *list) {
            check_device(weights[0], t, "every argument");
            check_same_dtype(weights[0], t, "every argument");
            t = packed(t);
        }
    }
    const Tensor range = packed(info);
    check_device(weights[0], range, "info");
    Tensors out;
    by_dtype(weights[0], [&](auto zero) {
        using T = decltype(zero);
        Jobs<PolarBackwardArguments<T>> jobs;
        int64_t from = 0;
        for (size_t i = 0; i < weights.size(); ++i) {
            const Group g(weights[i], groups[i]);
            out.push_back(make(grads[i], sizes_of(grads[i])));
            jobs.push_back(
                {g.matrices,
                 {data<T>(grads[i]), data<T>(weights[i]), data<T>(orthogonal[i]),
                  data_or_null<T>(inverse_roots[i]), data<double>(range) + from * info_size,
                  data<T>(out[i]), g.rows, g.cols, tol, scales[i], tangent}});
            from += g.matrices;
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
