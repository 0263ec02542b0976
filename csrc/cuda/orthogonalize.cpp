#include "operators.h"

namespace lipfuse::cuda {
namespace {

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
        const PolarArguments<T> a{
            data<T>(w), data<T>(out), data_or_null<T>(root), data<double>(info), m.rows, m.cols,
            tol,        scale};
        check(orthogonalize(scope.stream(), m.batch, a), "orthogonalize");
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
        check(orthogonalize_backward(scope.stream(), m.batch, a), "orthogonalize_backward");
    });
    return out;
}

using Tensors = std::vector<Tensor>;

// Weights of a network, (out, ...) taken as groups[i] matrices: a launch for each weight, none
// waits for another one's result.
void check_lists(const Tensors& weights, const std::vector<int64_t>& groups,
                 const std::vector<double>& scales) {
    STD_TORCH_CHECK(!weights.empty(), "lipfuse: weights must not be empty");
    STD_TORCH_CHECK(groups.size() == weights.size() && scales.size() == weights.size(),
                    "lipfuse: weights, groups and scales must have the same length");
    for (size_t i = 0; i < weights.size(); ++i) {
        check_device(weights[0], weights[i], "every weight");
        check_same_dtype(weights[0], weights[i], "every weight");
        STD_TORCH_CHECK(
            weights[i].dim() >= 2 && groups[i] > 0 && weights[i].size(0) % groups[i] == 0,
            "lipfuse: weight ", i,
            " must have at least 2 dimensions and a first dimension that its groups divide");
    }
}

struct Group {
    int64_t matrices, rows, cols;

    Group(const Tensor& w, int64_t groups)
        : matrices(groups), rows(w.size(0) / groups), cols(w.size(0) ? w.numel() / w.size(0) : 0) {}
    int64_t small() const { return std::min(rows, cols); }
};

std::tuple<Tensors, Tensors, Tensor> foreach_orthogonalize_op(Tensors weights,
                                                              std::vector<int64_t> groups,
                                                              std::vector<double> scales,
                                                              double tol, bool save) {
    check_lists(weights, groups, scales);
    const Scope scope(weights[0]);
    Tensors out, roots;
    int64_t total = 0, row = 0;
    for (int64_t g : groups) total += g;
    Tensor info = make_double(weights[0], {total, info_size});
    for (size_t i = 0; i < weights.size(); ++i) {
        const Tensor w = packed(weights[i]);
        const Group g(w, groups[i]);
        const bool keep = save && g.rows != g.cols;
        out.push_back(make(w, sizes_of(w)));
        roots.push_back(make(w, keep ? Sizes{g.matrices, g.small(), g.small()} : Sizes{0}));
        by_dtype(w, [&](auto zero) {
            using T = decltype(zero);
            const PolarArguments<T> a{data<T>(w),
                                      data<T>(out[i]),
                                      data_or_null<T>(roots[i]),
                                      data<double>(info) + row * info_size,
                                      g.rows,
                                      g.cols,
                                      tol,
                                      scales[i]};
            check(orthogonalize(scope.stream(), g.matrices, a), "foreach_orthogonalize");
        });
        row += g.matrices;
    }
    return {out, roots, info};
}

Tensors foreach_orthogonalize_backward_op(Tensors grads, Tensors weights, Tensors orthogonal,
                                          Tensors inverse_roots, const Tensor& info,
                                          std::vector<int64_t> groups, std::vector<double> scales,
                                          double tol, bool tangent) {
    check_lists(weights, groups, scales);
    STD_TORCH_CHECK(grads.size() == weights.size() && orthogonal.size() == weights.size() &&
                        inverse_roots.size() == weights.size(),
                    "lipfuse: all lists must have the same length");
    const Scope scope(weights[0]);
    const Tensor range = packed(info);
    check_device(weights[0], range, "info");
    Tensors out;
    int64_t row = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
        const Tensor g = packed(grads[i]), w = packed(weights[i]), q = packed(orthogonal[i]),
                     root = packed(inverse_roots[i]);
        for (const Tensor* t : {&g, &q, &root}) {
            check_device(w, *t, "every argument");
            check_same_dtype(w, *t, "every argument");
        }
        const Group group(w, groups[i]);
        out.push_back(make(g, sizes_of(g)));
        by_dtype(g, [&](auto zero) {
            using T = decltype(zero);
            const PolarBackwardArguments<T> a{data<T>(g),
                                              data<T>(w),
                                              data<T>(q),
                                              data_or_null<T>(root),
                                              data<double>(range) + row * info_size,
                                              data<T>(out[i]),
                                              group.rows,
                                              group.cols,
                                              tol,
                                              scales[i],
                                              tangent};
            check(orthogonalize_backward(scope.stream(), group.matrices, a),
                  "foreach_orthogonalize_backward");
        });
        row += group.matrices;
    }
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
