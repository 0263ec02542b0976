// Operators can be called with anything: all that a kernel will read through a pointer is checked, by
// the same functions for every device.
#pragma once

#include "../algorithms/polar_saved.h"
#include "operators.h"

namespace lipfuse::cpu {

using Tensors = std::vector<Tensor>;

inline void check_device(const Tensor& like, const Tensor& t, const char* name) {
    STD_TORCH_CHECK(device_of(like) == device_of(t), "lipfuse: ", name,
                    " must be on the device of the first argument");
}
inline void check_numel(const Tensor& t, int64_t expected, const char* name) {
    STD_TORCH_CHECK(t.numel() == expected, "lipfuse: ", name, " must have ", expected,
                    " elements, got ", t.numel());
}
inline void check_same_type(const Tensor& like, const Tensor& t, const char* name) {
    check_device(like, t, name);
    STD_TORCH_CHECK(like.scalar_type() == t.scalar_type(), "lipfuse: ", name,
                    " must have the dtype of the weight");
}

// A tensor that belongs to the matrices of `like`.
inline void check_like(const Tensor& like, const Tensor& t, int64_t expected, const char* name) {
    check_same_type(like, t, name);
    check_numel(t, expected, name);
}
// How often to do something.
inline int check_count(int64_t n, const char* name) {
    STD_TORCH_CHECK(n >= 0 && n <= std::numeric_limits<int>::max(), "lipfuse: ", name,
                    " must be in [0, 2^31), got ", n);
    return static_cast<int>(n);
}
inline void check_tolerance(double tol) {
    STD_TORCH_CHECK(tol >= 0, "lipfuse: tol must not be negative, got ", tol);
}

// ---- power iteration -----------------------------------------------------------------------------

inline void check_vectors(const Tensor& like, const Matrices& m, const Tensor& u,
                          const std::optional<Tensor>& v) {
    check_like(like, u, m.batch * m.rows, "u");
    if (v) check_like(like, *v, m.batch * m.cols, "v");
}
// Of the backward of dividing by sigma, which has `count` values.
inline void check_sigma(const Tensor& grad, const Tensor& sigma,
                        const std::optional<Tensor>& grad_sigma, int64_t count) {
    check_like(grad, sigma, count, "sigma");
    if (grad_sigma) check_like(grad, *grad_sigma, count, "grad_sigma");
}

// ---- Björck --------------------------------------------------------------------------------------

// How many iterates of every matrix a history has room for.
inline int check_history(const Tensor& grad, const Tensor& history, const Tensor& steps,
                         const Matrices& m) {
    check_same_type(grad, history, "history");
    check_device(grad, steps, "steps");
    STD_TORCH_CHECK(steps.scalar_type() == ScalarType::Long, "lipfuse: steps must be int64");
    check_numel(steps, m.batch, "steps");
    return check_count(history.numel() / std::max<int64_t>(1, m.numel()), "history's iterates");
}
// Of the chain that begins with a power iteration; `most` iterates were kept.
inline void check_chain(const Tensor& grad, const Tensor& sigma, const Tensor& u, const Tensor& v,
                        int most, const Matrices& m) {
    STD_TORCH_CHECK(most > 0 || m.numel() == 0, "lipfuse: history must have the first iterate");
    check_like(grad, sigma, 2 * m.batch, "sigma");
    check_vectors(grad, m, u, v);
}

// ---- the polar factor ----------------------------------------------------------------------------

inline void check_info(const Tensor& like, const Tensor& info, int64_t expected) {
    check_device(like, info, "info");
    STD_TORCH_CHECK(info.scalar_type() == ScalarType::Double, "lipfuse: info must be float64");
    check_numel(info, expected, "info");
}
// The matrices m are those of the gradient. Of what is saved (PolarSaved) the tangent needs nothing, and
// a square one need not have any.
inline void check_polar(const Tensor& grad, const Tensor& weight, const Tensor& orthogonal,
                        const Tensor& saved, const Matrices& m, bool tangent) {
    check_like(grad, weight, m.numel(), "weight");
    check_like(grad, orthogonal, m.numel(), "orthogonal");
    check_same_type(grad, saved, "saved");
    const int64_t one = m.batch * m.small() * m.small();
    const bool square = m.rows == m.cols;
    if (saved.numel() == 0 && (square || tangent)) return;
    if (!square && saved.numel() == 2 * one) return;
    check_numel(saved, one, "saved");
}
// Room for that, for each matrix of a weight with these leading dimensions; none without a gradient.
inline Tensor make_saved(const Tensor& like, Sizes leading, const Matrices& m, double tolerance,
                         bool save) {
    const int64_t count = save ? polar_saved_count(m.rows, m.cols, tolerance) : 0;
    if (count * m.small() == 0) return make(like, {0});
    leading.insert(leading.end(), {count * m.small(), m.small()});
    return make(like, leading);
}
inline int64_t saved_count(const Tensor& saved, int64_t matrices, int64_t rows, int64_t cols) {
    const int64_t small = std::min(rows, cols);
    return saved.numel() == 0 ? 0 : saved.numel() / (matrices * small * small);
}

// ---- many weights in one call --------------------------------------------------------------------

// Weights (out, ...), each as its number of matrices.
inline std::vector<Matrices> check_weights(const Tensors& weights,
                                           const std::vector<int64_t>& groups,
                                           const std::vector<double>& scales) {
    STD_TORCH_CHECK(!weights.empty(), "lipfuse: weights must not be empty");
    STD_TORCH_CHECK(groups.size() == weights.size() && scales.size() == weights.size(),
                    "lipfuse: weights, groups and scales must have the same length");
    std::vector<Matrices> matrices;
    for (size_t i = 0; i < weights.size(); ++i) {
        const Tensor& w = weights[i];
        check_same_type(weights[0], w, "every weight");
        const int64_t out = w.dim() >= 2 ? w.size(0) : 0;
        STD_TORCH_CHECK(w.dim() >= 2 && groups[i] > 0 && groups[i] <= std::max<int64_t>(1, out) &&
                            out % groups[i] == 0,
                        "lipfuse: weight ", i,
                        " must have at least 2 dimensions and a first dimension that its groups"
                        " divide");
        matrices.emplace_back(groups[i], out / groups[i], out ? w.numel() / out : 0);
    }
    return matrices;
}
// Lists of as many tensors.
inline void check_lengths(const Tensors& weights, std::initializer_list<const Tensors*> lists) {
    for (const Tensors* list : lists)
        STD_TORCH_CHECK(list->size() == weights.size(),
                        "lipfuse: lists of tensors must have the length of weights");
}

// ---- rows ----------------------------------------------------------------------------------------

// Those of a tensor (..., n).
struct Rows {
    int64_t count, n;

    explicit Rows(const Tensor& t) {
        STD_TORCH_CHECK(t.dim() >= 1, "lipfuse: expected a tensor of at least 1 dimension");
        n = t.size(t.dim() - 1);
        count = n ? t.numel() / n : 0;
    }
};
inline Rows check_rows(const Tensor& grad, const Tensor& normalized, const Tensor& norm) {
    check_like(grad, normalized, grad.numel(), "normalized");
    const Rows rows(grad);
    if (rows.n) check_like(grad, norm, rows.count, "norm");
    return rows;
}

}  // namespace lipfuse::cpu
