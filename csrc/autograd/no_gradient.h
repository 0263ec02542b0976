// Calls of an operator that want no gradient, as compiled code makes them: past autograd at once.
//
// What autograd does for an operator is said in Python, whose interpreter a call would have to wait for
// to hear that there is nothing to do.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "node.h"

namespace lipfuse {

// Of one operator and one of autograd's keys: with a gradient, whatever was registered before.
class WithoutGradient : public c10::OperatorKernel {
public:
    explicit WithoutGradient(c10::SafeKernelFunction with_gradient)
        : with_gradient_(std::move(with_gradient)) {}

    void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                    torch::jit::Stack* stack) const {
        const bool wanted = at::GradMode::is_enabled();
        bool with_gradient = false;
        const auto look_at = [&](const Tensor& tensor) {
            refuse_forward_mode(tensor, op.schema().name().c_str());
            with_gradient = with_gradient || (wanted && tensor.requires_grad());
        };
        for (const c10::IValue& value : torch::jit::last(*stack, op.schema().arguments().size())) {
            if (value.isTensor()) look_at(value.toTensor());
            if (value.isTensorList())
                for (const Tensor& tensor : value.toTensorList()) look_at(tensor);
        }
        if (with_gradient) return with_gradient_.callBoxed(op, keys, stack);
        op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
    }

private:
    c10::SafeKernelFunction with_gradient_;
};

// From now on and for as long as the process runs, whatever else is registered for autograd later.
inline void pass_on_without_gradient(const std::string& name) {
    auto& dispatcher = c10::Dispatcher::singleton();
    const auto op = dispatcher.findSchemaOrThrow(name.c_str(), "");
    for (const auto key : {c10::DispatchKey::AutogradCPU, c10::DispatchKey::AutogradCUDA}) {
        auto kernel = std::make_unique<WithoutGradient>(op.getComputedKernelForDispatchKey(key));
        auto registered = dispatcher.registerImpl(
            op.operator_name(), key, c10::KernelFunction::makeFromBoxedFunctor(std::move(kernel)),
            std::nullopt, nullptr, "lipfuse: calls without a gradient");
        new c10::RegistrationHandleRAII(std::move(registered));  // never undone
    }
}

}  // namespace lipfuse
