#include "pairs.h"

namespace lipfuse::cpu {
namespace {

std::tuple<Tensor, Tensor> sort_pairs(const Tensor& input, int64_t dim, double scale, bool save) {
    const SortTensors t(input, dim, save);
    if (t.in.numel() == 0) return {t.out, t.swapped};
    by_element(t.in, [&](auto zero) {
        using E = decltype(zero);
        const auto& kernels = layer_kernels<E>();
        const E* from = data<E>(t.in);
        E* to = data<E>(t.out);
        uint8_t* flags = save ? data<uint8_t>(t.swapped) : nullptr;
        over_pairs(t.pairs, [&](int64_t row, int64_t rows, int64_t offset, int64_t length) {
            const int64_t at = 2 * row * t.pairs.inner + offset;
            kernels.sort_pairs(from + at, rows, t.pairs.inner, length, scale, to + at,
                               flags ? flags + row * t.pairs.inner + offset : nullptr);
        });
    });
    return {t.out, t.swapped};
}

// The Jacobian is a symmetric permutation matrix: this is also its own derivative's adjoint.
Tensor sort_pairs_backward(const Tensor& grad, const Tensor& swapped, int64_t dim, double scale) {
    const SwapTensors t(grad, swapped, dim);
    if (t.in.numel() == 0) return t.out;
    by_element(t.in, [&](auto zero) {
        using E = decltype(zero);
        const auto& kernels = layer_kernels<E>();
        const E* from = data<E>(t.in);
        E* to = data<E>(t.out);
        const uint8_t* flags = data<uint8_t>(t.swapped);
        over_pairs(t.pairs, [&](int64_t row, int64_t rows, int64_t offset, int64_t length) {
            const int64_t at = 2 * row * t.pairs.inner + offset;
            kernels.swap_pairs(from + at, flags + row * t.pairs.inner + offset, rows, t.pairs.inner,
                               length, scale, to + at);
        });
    });
    return t.out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lipfuse, CPU, m) {
    m.impl("sort_pairs", TORCH_BOX(&sort_pairs));
    m.impl("sort_pairs_backward", TORCH_BOX(&sort_pairs_backward));
}

}  // namespace lipfuse::cpu
