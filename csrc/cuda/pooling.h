// What the pools share: tensors to a launch.
#pragma once

#include "../cpu/pooling.h"
#include "layers_launch.h"
#include "operators.h"

namespace lipfuse::cuda {

// in -> out, or the gradient of that: grad (and in, where the kernel needs it) -> out.
template <Pooling kind>
void pool_tensors(const Scope& scope, const cpu::Pool& p, int64_t images, const Tensor* in,
                  const Tensor* grad, const Tensor& out, const char* name) {
    cpu::by_element(out, [&](auto zero) {
        using E = decltype(zero);
        PoolArguments<E> a{};
        a.in = in ? data<E>(*in) : nullptr;
        a.grad = grad ? data<E>(*grad) : nullptr;
        a.out = data<E>(out);
        a.images = images;
        a.height = p.height;
        a.width = p.width;
        a.channels = p.channels;
        a.kernel_height = p.kernel_height;
        a.kernel_width = p.kernel_width;
        a.out_height = p.out_height;
        a.out_width = p.out_width;
        a.scale = p.scale;
        a.smallest = p.smallest;
        a.set_factors();
        check(pool<kind>(scope.stream(), a, grad != nullptr), name);
    });
}

}  // namespace lipfuse::cuda
