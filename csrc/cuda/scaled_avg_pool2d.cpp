#include "pooling.h"

namespace lipfuse::cuda {
namespace {

Tensor scaled_avg_pool2d_op(const Tensor& input, int64_t kernel_height, int64_t kernel_width,
                            bool ceil_mode, double scale) {
    const Scope scope(input);
    return pooled<Pooling::average>(scope, input, kernel_height, kernel_width, ceil_mode, scale,
                                    "scaled_avg_pool2d");
}

// The adjoint of a linear map; the sizes are the input's.
Tensor scaled_avg_pool2d_backward_op(const Tensor& grad, int64_t height, int64_t width,
                                     int64_t kernel_height, int64_t kernel_width, bool ceil_mode,
                                     double scale) {
    const Scope scope(grad);
    const cpu::Images images(grad);
    const cpu::Pool p =
        cpu::pool_over(images, height, width, kernel_height, kernel_width, ceil_mode, scale);
    STD_TORCH_CHECK(cpu::pooled_sizes(images, p) == images.sizes,
                    "lipfuse: the gradient must have the shape of the output");
    const Tensor g = cpu::with_strides(grad, images.strides);
    Sizes sizes = images.sizes;
    sizes[sizes.size() - 2] = height;
    sizes[sizes.size() - 1] = width;
    Tensor out = cpu::make_strided(g, sizes, images.strides_for(sizes), cpu::dtype_of(g));
    if (g.numel() == 0) return torch::stable::zero_(out);
    pool_tensors<Pooling::average>(scope, p, images.count, nullptr, &g, out,
                                   "scaled_avg_pool2d_backward");
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lipfuse, CUDA, m) {
    m.impl("scaled_avg_pool2d", TORCH_BOX(&scaled_avg_pool2d_op));
    m.impl("scaled_avg_pool2d_backward", TORCH_BOX(&scaled_avg_pool2d_backward_op));
}

}  // namespace lipfuse::cuda
