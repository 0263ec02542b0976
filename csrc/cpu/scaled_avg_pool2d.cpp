#include "pooling.h"

namespace lipfuse::cpu {
namespace {

Tensor scaled_avg_pool2d(const Tensor& input, int64_t kernel_height, int64_t kernel_width,
                         bool ceil_mode, double scale) {
    const Images images(input);
    const Pool p = pool_over(images, images.height, images.width, kernel_height, kernel_width,
                             ceil_mode, scale);
    const Tensor x = with_strides(input, images.strides);
    const Sizes sizes = pooled_sizes(images, p);
    Tensor out = make_strided(x, sizes, images.strides_for(sizes), dtype_of(x));
    if (out.numel() == 0) return out;
    by_element(x, [&](auto zero) {
        using E = decltype(zero);
        const auto& kernels = layer_kernels<E>();
        over_rows<E>(p, images.count, [&](int64_t begin, int64_t end, auto* scratch) {
            kernels.average_pool(p, begin, end, data<E>(x), scratch, data<E>(out));
        });
    });
    return out;
}

// The adjoint of a linear map; the sizes are the input's.
Tensor scaled_avg_pool2d_backward(const Tensor& grad, int64_t height, int64_t width,
                                  int64_t kernel_height, int64_t kernel_width, bool ceil_mode,
                                  double scale) {
    const Images images(grad);
    const Pool p = pool_over(images, height, width, kernel_height, kernel_width, ceil_mode, scale);
    STD_TORCH_CHECK(pooled_sizes(images, p) == images.sizes,
                    "lipfuse: the gradient must have the shape of the output");
    const Tensor g = with_strides(grad, images.strides);
    Sizes sizes = images.sizes;
    sizes[sizes.size() - 2] = height;
    sizes[sizes.size() - 1] = width;
    Tensor out = make_strided(g, sizes, images.strides_for(sizes), dtype_of(g));
    if (g.numel() == 0) return torch::stable::zero_(out);
    by_element(g, [&](auto zero) {
        using E = decltype(zero);
        const auto& kernels = layer_kernels<E>();
        over_rows<E>(p, images.count, [&](int64_t begin, int64_t end, auto* scratch) {
            kernels.average_pool_backward(p, begin, end, data<E>(g), scratch, data<E>(out));
        });
    });
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lipfuse, CPU, m) {
    m.impl("scaled_avg_pool2d", TORCH_BOX(&scaled_avg_pool2d));
    m.impl("scaled_avg_pool2d_backward", TORCH_BOX(&scaled_avg_pool2d_backward));
}

}  // namespace lipfuse::cpu
