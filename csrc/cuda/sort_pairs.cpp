#include "../cpu/pairs.h"
#include "layers_launch.h"
#include "operators.h"

namespace lipfuse::cuda {
namespace {

std::tuple<Tensor, Tensor> sort_pairs_op(const Tensor& input, int64_t dim, double scale,
                                         bool save) {
    const Scope scope(input);
    const cpu::SortTensors t(input, dim, save);
    if (t.in.numel() == 0) return {t.out, t.swapped};
    cpu::by_element(t.in, [&](auto zero) {
        using E = decltype(zero);
        SortArguments<E> a{};
        a.in = data<E>(t.in);
        a.out = data<E>(t.out);
        a.flags = save ? data<uint8_t>(t.swapped) : nullptr;
        a.rows = t.pairs.rows;
        a.inner = t.pairs.inner;
        a.scale = scale;
        check(sort_pairs(scope.stream(), a), "sort_pairs");
    });
    return {t.out, t.swapped};
}

Tensor sort_pairs_backward_op(const Tensor& grad, const Tensor& swapped, int64_t dim,
                              double scale) {
    const Scope scope(grad);
    check_device(grad, swapped, "swapped");
    const cpu::SwapTensors t(grad, swapped, dim);
    if (t.in.numel() == 0) return t.out;
    cpu::by_element(t.in, [&](auto zero) {
        using E = decltype(zero);
        SortArguments<E> a{};
        a.in = data<E>(t.in);
        a.out = data<E>(t.out);
        a.exchange = data<uint8_t>(t.swapped);
        a.rows = t.pairs.rows;
        a.inner = t.pairs.inner;
        a.scale = scale;
        check(sort_pairs(scope.stream(), a), "sort_pairs_backward");
    });
    return t.out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lipfuse, CUDA, m) {
    m.impl("sort_pairs", TORCH_BOX(&sort_pairs_op));
    m.impl("sort_pairs_backward", TORCH_BOX(&sort_pairs_backward_op));
}

}  // namespace lipfuse::cuda
