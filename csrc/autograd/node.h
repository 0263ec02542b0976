// What autograd's nodes are made of.
//
// What src/lipfuse/ops says of these operators' gradients is said here once more, for eager code on
// ordinary tensors alone: there the interpreter's share of a small layer's time is more than the
// kernels'. Unlike the operators this needs torch's own C++ interface, so that it serves the very
// version of torch it was compiled for; any other uses the Python nodes.
#pragma once

#include <string>

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/utils/pybind.h>

namespace lipfuse {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <class Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// Operators are called past autograd, and views of their results are not known as views.
using Below = at::AutoDispatchBelowADInplaceOrView;

// Below autograd the tangent of a dual number would be lost, which makes a derivative of zero.
inline void refuse_forward_mode(const Tensor& tensor, const char* name) {
    static constexpr const char* refusal =
        " has no forward-mode derivative: use reverse mode, or lipfuse.reference.";
    if (tensor.defined() && tensor._fw_grad(0).defined())
        C10_THROW_ERROR(NotImplementedError, std::string(name) + refusal);
}
inline void refuse_forward_mode(const variable_list& grads) {
    if (at::GradMode::is_enabled()) return;  // differentiated again, by what autograd knows
    for (const Tensor& grad : grads) refuse_forward_mode(grad, "lipfuse: the gradient");
}

// A gradient that is to be differentiated again: by a Python function, whose operations are known to
// autograd or refuse in words.
class Again {
public:
    void operator=(pybind11::function function) { function_ = function.release().ptr(); }
    // In a backward: whether what it computes is part of a graph.
    static bool wanted() { return at::GradMode::is_enabled(); }
    template <class... Arguments>
    Tensor operator()(const Arguments&... arguments) const {
        const pybind11::gil_scoped_acquire gil;
        return pybind11::handle(function_)(arguments...).template cast<Tensor>();
    }
    // Of several tensors, some of which may be missing.
    template <class... Arguments>
    variable_list list(const Arguments&... arguments) const {
        const pybind11::gil_scoped_acquire gil;
        variable_list result;
        for (const pybind11::handle item : pybind11::handle(function_)(arguments...))
            result.push_back(item.is_none() ? Tensor() : item.cast<Tensor>());
        return result;
    }

private:
    PyObject* function_ = nullptr;  // never released: at exit there is no interpreter left
};

// The gradients of a node with so many arguments, of which the first alone has one.
inline variable_list of_first(int64_t arguments, Tensor gradient) {
    variable_list all(arguments);
    all[0] = std::move(gradient);
    return all;
}

}  // namespace lipfuse
