// The nodes of autograd's graph for a weight that is normalised in every step of a training.
//
// What the Python layer says of these operators' gradients is said here once more, for eager code on
// ordinary tensors alone: there an interpreter's share of a small weight's time is more than the
// kernels'. Unlike the operators this needs torch's own C++ interface, so that it serves the very
// version of torch it was compiled for; any other uses the Python layer.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <tuple>

namespace lipfuse {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <class Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// A weight (out, ...) as `groups` matrices below each other; for 0 it is a batch of matrices.
Tensor as_matrices(const Tensor& weight, int64_t groups) {
    if (groups > 1) return weight.reshape({groups, weight.size(0) / groups, -1});
    return groups == 0 || weight.dim() == 2 ? weight : weight.flatten(1);
}
Tensor shaped_like(const Tensor& matrices, const Tensor& weight) {
    return matrices.sizes() == weight.sizes() ? matrices : matrices.reshape(weight.sizes());
}

// Operators are called past autograd, but for a gradient that is to be differentiated again.
using BelowAutograd = std::optional<at::AutoDispatchBelowAutograd>;
void go_below(BelowAutograd& guard) {
    if (!at::GradMode::is_enabled()) guard.emplace();
}

// scale * Q, the polar factor.
struct OrthogonalWeight : torch::autograd::Function<OrthogonalWeight> {
    static Tensor forward(AutogradContext* ctx, const Tensor& weight, int64_t groups, double tol,
                          double solve_tol, double scale, bool tangent) {
        static const auto orthogonalize =
            find<std::tuple<Tensor, Tensor, Tensor>(const Tensor&, double, double, bool)>(
                "lipfuse::orthogonalize");
        const at::AutoDispatchBelowADInplaceOrView guard;
        const auto [q, inverse_root, info] =
            orthogonalize.call(as_matrices(weight, groups), tol, scale, true);
        const Tensor out = shaped_like(q, weight);
        ctx->set_materialize_grads(false);
        ctx->save_for_backward({weight, out, inverse_root, info});
        ctx->saved_data["groups"] = groups;
        ctx->saved_data["tol"] = solve_tol;
        ctx->saved_data["scale"] = scale;
        ctx->saved_data["tangent"] = tangent;
        return out;
    }
    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
        static const auto orthogonalize_backward =
            find<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                        double, double, bool)>("lipfuse::orthogonalize_backward");
        variable_list result(6);
        const Tensor& grad = grads[0];
        if (!grad.defined()) return result;
        const variable_list saved = ctx->get_saved_variables();
        const Tensor& weight = saved[0];
        const int64_t groups = ctx->saved_data["groups"].toInt();
        BelowAutograd guard;
        go_below(guard);
        const Tensor out = orthogonalize_backward.call(
            as_matrices(grad, groups), as_matrices(weight, groups), as_matrices(saved[1], groups),
            saved[2], saved[3], ctx->saved_data["tol"].toDouble(),
            ctx->saved_data["scale"].toDouble(), ctx->saved_data["tangent"].toBool());
        result[0] = shaped_like(out, weight);
        return result;
    }
};

// The gradient of a spectral weight as operations of torch, which can be differentiated again:
// a Python function of the gradient, weight, result, u, v and eps.
PyObject* differentiable_spectral_gradient = nullptr;

// weight / sigma, of the weight as one matrix; u and v are advanced in place.
struct SpectralWeight : torch::autograd::Function<SpectralWeight> {
    static Tensor forward(AutogradContext* ctx, const Tensor& weight, const Tensor& kept_u,
                          const Tensor& kept_v, int64_t iterations, double eps) {
        static const auto spectral_normalize = find<std::tuple<Tensor, Tensor, Tensor, Tensor>(
            const Tensor&, const Tensor&, const std::optional<Tensor>&, int64_t, double, double)>(
            "lipfuse::spectral_normalize");
        Tensor out, sigma, u, v;
        {
            const at::AutoDispatchBelowADInplaceOrView guard;
            std::tie(out, sigma, u, v) = spectral_normalize.call(as_matrices(weight, 1), kept_u,
                                                                 kept_v, iterations, eps, 1.0);
            out = shaped_like(out, weight);
        }
        kept_u.copy_(u);
        kept_v.copy_(v);
        ctx->set_materialize_grads(false);
        ctx->save_for_backward({weight, out, sigma, u, v});
        ctx->saved_data["eps"] = eps;
        return out;
    }
    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
        static const auto spectral_normalize_backward =
            find<Tensor(const Tensor&, const std::optional<Tensor>&, const Tensor&, const Tensor&,
                        const Tensor&, const Tensor&, double, double)>(
                "lipfuse::spectral_normalize_backward");
        variable_list result(5);
        const Tensor& grad = grads[0];
        if (!grad.defined()) return result;
        const variable_list saved = ctx->get_saved_variables();
        const Tensor &weight = saved[0], &out = saved[1], &sigma = saved[2], &u = saved[3],
                     &v = saved[4];
        const double eps = ctx->saved_data["eps"].toDouble();
        if (at::GradMode::is_enabled()) {
            const pybind11::gil_scoped_acquire gil;
            const auto function = pybind11::handle(differentiable_spectral_gradient);
            result[0] = function(grad, weight, out, u, v, eps).cast<Tensor>();
            return result;
        }
        const at::AutoDispatchBelowAutograd guard;
        result[0] = shaped_like(
            spectral_normalize_backward.call(as_matrices(grad, 1), std::nullopt,
                                             as_matrices(out, 1), sigma, u, v, eps, 1.0),
            weight);
        return result;
    }
};

}  // namespace lipfuse

PYBIND11_MODULE(_nodes, m) {
    using lipfuse::OrthogonalWeight;
    using lipfuse::SpectralWeight;
    m.attr("torch_version") = LIPFUSE_TORCH_VERSION;
    // Without the interpreter's lock, and with torch's errors as Python knows them.
    m.def(
        "orthogonal_weight",
        torch::wrap_pybind_function_no_gil([](const at::Tensor& weight, int64_t groups, double tol,
                                              double solve_tol, double scale, bool tangent) {
            return OrthogonalWeight::apply(weight, groups, tol, solve_tol, scale, tangent);
        }));
    m.def("spectral_weight", torch::wrap_pybind_function_no_gil(
                                 [](const at::Tensor& weight, const at::Tensor& u,
                                    const at::Tensor& v, int64_t iterations, double eps) {
                                     return SpectralWeight::apply(weight, u, v, iterations, eps);
                                 }));
    m.def("differentiate_spectral_weight_by", [](pybind11::function function) {
        lipfuse::differentiable_spectral_gradient = function.release().ptr();
    });
}
