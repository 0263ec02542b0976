#include "pairs.h"

namespace lipfuse::cpu {
namespace {

// In memory order (rows, inner) numbers, and (rows, 2, inner) parts of them.
Pairs parts_of(const Tensor& t, const Doubled& layout, int64_t dim) {
    const int64_t inner = std::max<int64_t>(1, layout.inner * layout.sizes[wrapped(dim, t)]);
    return {t.numel() / inner, inner};
}

std::tuple<Tensor, Tensor> max_min(const Tensor& input, int64_t dim, double scale, bool save) {
    const Doubled layout(input, dim);
    const Tensor in = with_strides(input, layout.strides);
    const Tensor out = make_strided(in, layout.twice_sizes, layout.twice_strides, dtype_of(in));
    const Tensor signs =
        save ? make_strided(in, layout.sizes, layout.strides, aoti_torch_dtype_uint8())
             : make_strided(in, {0}, {1}, aoti_torch_dtype_uint8());
    if (in.numel() == 0) return {out, signs};
    const Pairs pairs = parts_of(in, layout, dim);
    by_element(in, [&](auto zero) {
        using E = decltype(zero);
        const auto& kernels = layer_kernels<E>();
        over_pairs(pairs, [&](int64_t row, int64_t rows, int64_t offset, int64_t length) {
            const int64_t at = row * pairs.inner + offset;
            kernels.max_min(data<E>(in) + at, rows, pairs.inner, length, scale,
                            data<E>(out) + at + row * pairs.inner,
                            save ? data<uint8_t>(signs) + at : nullptr);
        });
    });
    return {out, signs};
}

Tensor max_min_backward(const Tensor& grad, const Tensor& signs, int64_t dim, double scale) {
    const Doubled layout(signs, dim);
    STD_TORCH_CHECK(sizes_of(grad) == layout.twice_sizes,
                    "lipfuse: signs must have one element for each pair of grad");
    STD_TORCH_CHECK(signs.scalar_type() == ScalarType::Byte, "lipfuse: signs must be uint8");
    const Tensor in = with_strides(grad, layout.twice_strides);
    const Tensor flags = with_strides(signs, layout.strides);
    const Tensor out = make_strided(in, layout.sizes, layout.strides, dtype_of(in));
    if (in.numel() == 0) return out;
    const Pairs pairs = parts_of(flags, layout, dim);
    by_element(in, [&](auto zero) {
        using E = decltype(zero);
        const auto& kernels = layer_kernels<E>();
        over_pairs(pairs, [&](int64_t row, int64_t rows, int64_t offset, int64_t length) {
            const int64_t at = row * pairs.inner + offset;
            kernels.max_min_backward(data<E>(in) + at + row * pairs.inner,
                                     data<uint8_t>(flags) + at, rows, pairs.inner, length, scale,
                                     data<E>(out) + at);
        });
    });
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lipfuse, CPU, m) {
    m.impl("max_min", TORCH_BOX(&max_min));
    m.impl("max_min_backward", TORCH_BOX(&max_min_backward));
}

}  // namespace lipfuse::cpu
