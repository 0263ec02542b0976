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

// The forward of both.
template <Pooling kind>
Tensor pooled(const Scope& scope, const Tensor& input, int64_t kernel_height, int64_t kernel_width,
              bool ceil_mode, double scale, const char* name) {
    const cpu::Images images(input);
    const cpu::Pool p = cpu::pool_over(images, images.height, images.width, kernel_height,
                                       kernel_width, ceil_mode, scale);
    const Tensor x = cpu::with_strides(input, images.strides);
    const Sizes sizes = cpu::pooled_sizes(images, p);
    Tensor out = cpu::make_strided(x, sizes, images.strides_for(sizes), cpu::dtype_of(x));
    if (out.numel() != 0) pool_tensors<kind>(scope, p, images.count, &x, nullptr, out, name);
    return out;
}

}  // namespace lipfuse::cuda
