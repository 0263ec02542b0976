#include "pooling.h"

namespace lipfuse::cuda {
namespace {

Tensor l2_norm_pool2d_op(const Tensor& input, int64_t kernel_height, int64_t kernel_width,
                         bool ceil_mode, double scale) {
    const Scope scope(input);
    return pooled<Pooling::norm>(scope, input, kernel_height, kernel_width, ceil_mode, scale,
                                 "l2_norm_pool2d");
}

Tensor l2_norm_pool2d_backward_op(const Tensor& grad, const Tensor& input, int64_t kernel_height,
                                  int64_t kernel_width, bool ceil_mode, double scale) {
    const Scope scope(input);
    check_device(input, grad, "grad");
    const cpu::Images images(input);
    cpu::Pool p = cpu::pool_over(images, images.height, images.width, kernel_height, kernel_width,
                                 ceil_mode, scale);
    // Below this squares lose their digits: the norm counts as zero, and so does its gradient.
    p.smallest = input.scalar_type() == cpu::ScalarType::Double ? 0x1p-501 : 0x1p-53;
    const Sizes sizes = cpu::pooled_sizes(images, p);
    STD_TORCH_CHECK(sizes_of(grad) == sizes && grad.scalar_type() == input.scalar_type(),
                    "lipfuse: the gradient must have the shape and dtype of the output");
    const Tensor x = cpu::with_strides(input, images.strides);
    const Tensor g = cpu::with_strides(grad, images.strides_for(sizes));
    Tensor out = cpu::make_strided(x, images.sizes, images.strides, cpu::dtype_of(x));
    if (g.numel() == 0) return torch::stable::zero_(out);
    pool_tensors<Pooling::norm>(scope, p, images.count, &x, &g, out, "l2_norm_pool2d_backward");
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lipfuse, CUDA, m) {
    m.impl("l2_norm_pool2d", TORCH_BOX(&l2_norm_pool2d_op));
    m.impl("l2_norm_pool2d_backward", TORCH_BOX(&l2_norm_pool2d_backward_op));
}

}  // namespace lipfuse::cuda
