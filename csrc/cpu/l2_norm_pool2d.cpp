#include "pooling.h"

namespace lipfuse::cpu {
namespace {

Tensor l2_norm_pool2d(const Tensor& input, int64_t kernel_height, int64_t kernel_width,
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
            kernels.l2_pool(p, begin, end, data<E>(x), scratch, data<E>(out));
        });
    });
    return out;
}

// g * scale * x / norm. Below `smallest`, where squares lose their digits, the norm counts as zero,
// and so does its gradient.
Tensor l2_norm_pool2d_backward(const Tensor& grad, const Tensor& input, int64_t kernel_height,
                               int64_t kernel_width, bool ceil_mode, double scale) {
    const Images images(input);
    Pool p = pool_over(images, images.height, images.width, kernel_height, kernel_width, ceil_mode,
                       scale);
    p.smallest = input.scalar_type() == ScalarType::Double ? 0x1p-501 : 0x1p-53;
    const Sizes sizes = pooled_sizes(images, p);
    STD_TORCH_CHECK(sizes_of(grad) == sizes && grad.scalar_type() == input.scalar_type(),
                    "lipfuse: the gradient must have the shape and dtype of the output");
    const Tensor x = with_strides(input, images.strides);
    const Tensor g = with_strides(grad, images.strides_for(sizes));
    Tensor out = make_strided(x, images.sizes, images.strides, dtype_of(x));
    if (g.numel() == 0) return torch::stable::zero_(out);
    by_element(x, [&](auto zero) {
        using E = decltype(zero);
        const auto& kernels = layer_kernels<E>();
        over_rows<E>(p, images.count, [&](int64_t begin, int64_t end, auto* scratch) {
            kernels.l2_pool_backward(p, begin, end, data<E>(g), data<E>(x), scratch, data<E>(out));
        });
    });
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lipfuse, CPU, m) {
    m.impl("l2_norm_pool2d", TORCH_BOX(&l2_norm_pool2d));
    m.impl("l2_norm_pool2d_backward", TORCH_BOX(&l2_norm_pool2d_backward));
}

}  // namespace lipfuse::cpu
