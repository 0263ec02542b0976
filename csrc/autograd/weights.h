// Nodes of weights that are normalised in every step of a training.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "node.h"

namespace lipfuse {

// The last `dims` dimensions as one.
inline Tensor merged(const Tensor& tensor, int64_t dims) {
    if (dims == 1) return tensor;
    if (tensor.numel() == 0) return tensor.flatten(-dims);
    at::DimVector sizes(tensor.sizes().begin(), tensor.sizes().end() - dims);
    sizes.push_back(-1);
    return tensor.reshape(sizes);
}
// A weight (out, ...) as `groups` matrices below each other; for 0 it is a batch of matrices.
inline Tensor as_matrices(const Tensor& weight, int64_t groups) {
    if (groups > 1) return weight.reshape({groups, weight.size(0) / groups, -1});
    if (groups == 0) return weight;
    return weight.dim() > 1 ? merged(weight, weight.dim() - 1) : weight.flatten(1);
}
inline Tensor shaped_like(const Tensor& result, const Tensor& weight) {
    return result.sizes() == weight.sizes() ? result : result.reshape(weight.sizes());
}

// A result as it is saved: the same numbers, the same count of changes, but not the way back to its node.
// Where a hook of saved tensors raises, torch drops a node and keeps what it saved, which would keep it.
inline Tensor to_save(const Tensor& result) {
    return result.detach();
}

// scale * Q, the polar factor.
struct OrthogonalWeight : torch::autograd::Function<OrthogonalWeight> {
    static inline Again again;

    static Tensor forward(AutogradContext* ctx, const Tensor& weight, int64_t groups, double tol,
                          double solve_tol, double scale, bool tangent) {
        static const auto op =
            find<std::tuple<Tensor, Tensor, Tensor>(const Tensor&, double, double, bool)>(
                "lipfuse::orthogonalize");
        Tensor out, kept, info;  // the tangent needs nothing more
        {
            const Below below;
            std::tie(out, kept, info) = op.call(as_matrices(weight, groups), tol, scale, !tangent);
            out = shaped_like(out, weight);
        }
        ctx->set_materialize_grads(false);
        ctx->save_for_backward({weight, to_save(out), kept, info});
        ctx->saved_data["groups"] = groups;
        ctx->saved_data["tol"] = solve_tol;
        ctx->saved_data["scale"] = scale;
        ctx->saved_data["tangent"] = tangent;
        return out;
    }
    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
        refuse_forward_mode(grads);
        if (!grads[0].defined()) return of_first(6, {});
        const variable_list saved = ctx->get_saved_variables();
        const int64_t groups = ctx->saved_data["groups"].toInt();
        const double tol = ctx->saved_data["tol"].toDouble();
        const double scale = ctx->saved_data["scale"].toDouble();
        const bool tangent = ctx->saved_data["tangent"].toBool();
        if (Again::wanted())
            return of_first(6, again(grads[0], saved[0], saved[1], saved[2], saved[3], groups, tol,
                                     scale, tangent));
        static const auto op =
            find<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                        double, double, bool)>("lipfuse::orthogonalize_backward");
        const Below below;
        const Tensor out =
            op.call(as_matrices(grads[0], groups), as_matrices(saved[0], groups),
                    as_matrices(saved[1], groups), saved[2], saved[3], tol, scale, tangent);
        return of_first(6, shaped_like(out, saved[0]));
    }
};

// weight / sigma, of the weight as one matrix; u and v are advanced in place.
struct SpectralWeight : torch::autograd::Function<SpectralWeight> {
    static inline Again again;

    static Tensor forward(AutogradContext* ctx, const Tensor& weight, const Tensor& kept_u,
                          const Tensor& kept_v, int64_t iterations, double eps) {
        static const auto op = find<std::tuple<Tensor, Tensor, Tensor, Tensor>(
            const Tensor&, const Tensor&, const std::optional<Tensor>&, int64_t, double, double)>(
            "lipfuse::spectral_normalize");
        Tensor out, sigma, u, v;
        {
            const Below below;
            std::tie(out, sigma, u, v) =
                op.call(as_matrices(weight, 1), kept_u, kept_v, iterations, eps, 1.0);
            out = shaped_like(out, weight);
        }
        kept_u.copy_(u);
        kept_v.copy_(v);
        ctx->set_materialize_grads(false);
        ctx->save_for_backward({weight, to_save(out), sigma, u, v});
        ctx->saved_data["eps"] = eps;
        return out;
    }
    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
        refuse_forward_mode(grads);
        if (!grads[0].defined()) return of_first(5, {});
        const variable_list saved = ctx->get_saved_variables();
        const double eps = ctx->saved_data["eps"].toDouble();
        if (Again::wanted())
            return of_first(5,
                            again(grads[0], saved[0], saved[1], saved[2], saved[3], saved[4], eps));
        static const auto op =
            find<Tensor(const Tensor&, const std::optional<Tensor>&, const Tensor&, const Tensor&,
                        const Tensor&, const Tensor&, double, double)>(
                "lipfuse::spectral_normalize_backward");
        const Below below;
        const Tensor out = op.call(as_matrices(grads[0], 1), std::nullopt, as_matrices(saved[1], 1),
                                   saved[2], saved[3], saved[4], eps, 1.0);
        return of_first(5, shaped_like(out, saved[0]));
    }
};

// scale * weight / norm; the last `dims` dimensions make up one vector.
struct FrobeniusWeight : torch::autograd::Function<FrobeniusWeight> {
    static inline Again again;

    static Tensor forward(AutogradContext* ctx, const Tensor& weight, double eps, double scale,
                          int64_t dims) {
        static const auto op = find<std::tuple<Tensor, Tensor>(const Tensor&, double, double)>(
            "lipfuse::frobenius_normalize");
        Tensor out, norm;
        {
            const Below below;
            std::tie(out, norm) = op.call(merged(weight, dims), eps, scale);
            out = shaped_like(out, weight);
        }
        ctx->set_materialize_grads(false);
        ctx->save_for_backward({weight, to_save(out), norm});
        ctx->saved_data["eps"] = eps;
        ctx->saved_data["scale"] = scale;
        ctx->saved_data["dims"] = dims;
        return out;
    }
    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
        refuse_forward_mode(grads);
        if (!grads[0].defined()) return of_first(4, {});
        const variable_list saved = ctx->get_saved_variables();
        const double eps = ctx->saved_data["eps"].toDouble();
        const double scale = ctx->saved_data["scale"].toDouble();
        const int64_t dims = ctx->saved_data["dims"].toInt();
        if (Again::wanted())
            return of_first(4, again(grads[0], saved[0], saved[1], saved[2], eps, scale, dims));
        static const auto op =
            find<Tensor(const Tensor&, const Tensor&, const Tensor&, double, double)>(
                "lipfuse::frobenius_normalize_backward");
        const Below below;
        const Tensor out =
            op.call(merged(grads[0], dims), merged(saved[1], dims), saved[2], eps, scale);
        return of_first(4, shaped_like(out, saved[0]));
    }
};

// scale * Q of many weights at once: the backward runs once, when all their gradients are there.
struct OrthogonalWeights : torch::autograd::Function<OrthogonalWeights> {
    static inline Again again;
    using Integers = std::vector<int64_t>;
    using Numbers = std::vector<double>;

    static variable_list forward(AutogradContext* ctx, at::TensorList weights,
                                 const Integers& groups, const Numbers& scales, double tol,
                                 double solve_tol, bool tangent) {
        static const auto op = find<std::tuple<variable_list, variable_list, Tensor>(
            at::TensorList, at::IntArrayRef, at::ArrayRef<double>, double, bool)>(
            "lipfuse::foreach_orthogonalize");
        variable_list out, kept, saved(1);
        {
            const Below below;
            std::tie(out, kept, saved[0]) = op.call(weights, groups, scales, tol, !tangent);
        }
        ctx->set_materialize_grads(false);
        saved.insert(saved.end(), weights.begin(), weights.end());
        for (const Tensor& each : out) saved.push_back(to_save(each));
        saved.insert(saved.end(), kept.begin(), kept.end());
        ctx->save_for_backward(std::move(saved));
        ctx->saved_data["groups"] = groups;
        ctx->saved_data["scales"] = scales;
        ctx->saved_data["tol"] = solve_tol;
        ctx->saved_data["tangent"] = tangent;
        return out;
    }
    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
        refuse_forward_mode(grads);
        const variable_list saved = ctx->get_saved_variables();
        const Integers groups = ctx->saved_data["groups"].toIntVector();
        const Numbers scales = ctx->saved_data["scales"].toDoubleVector();
        const double tol = ctx->saved_data["tol"].toDouble();
        const bool tangent = ctx->saved_data["tangent"].toBool();
        variable_list result;
        bool all = true;
        for (const Tensor& grad : grads) all = all && grad.defined();
        if (Again::wanted() || !all) {
            result = again.list(grads, saved, groups, scales, tol, tangent);
        } else {
            static const auto op =
                find<variable_list(at::TensorList, at::TensorList, at::TensorList, at::TensorList,
                                   const Tensor&, at::IntArrayRef, at::ArrayRef<double>, double,
                                   bool)>("lipfuse::foreach_orthogonalize_backward");
            const Below below;
            const size_t n = grads.size();
            const at::TensorList tensors = at::TensorList(saved).slice(1);
            result = op.call(grads, tensors.slice(0, n), tensors.slice(n, n),
                             tensors.slice(2 * n, n), saved[0], groups, scales, tol, tangent);
        }
        result.resize(grads.size() + 5);  // the other arguments have none
        return result;
    }
};

}  // namespace lipfuse
