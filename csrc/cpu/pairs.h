// Pairs of neighbours along a dimension of a tensor of any layout: what the operators on them need to
// have in memory.
#pragma once

#include "layout.h"

namespace lipfuse::cpu {

// In memory order a dense tensor is (rows, 2, inner) along the pairs.
struct Pairs {
    int64_t rows, inner;
};

inline size_t wrapped(int64_t dim, const Tensor& t) {
    const int64_t n = t.dim();
    STD_TORCH_CHECK(dim >= -n && dim < n, "lipfuse: dim must be in [", -n, ", ", n - 1, "], got ",
                    dim);
    return static_cast<size_t>(dim < 0 ? dim + n : dim);
}

// Strides of a tensor with as many elements along dim as multiplied or divided by 2: the dimensions
// outside of dim are those with larger strides.
template <class F>
Sizes rescaled(Sizes strides, size_t dim, F f) {
    const int64_t inner = strides[dim];
    for (size_t i = 0; i < strides.size(); ++i)
        if (i != dim && strides[i] > inner) strides[i] = f(strides[i]);
    return strides;
}

// Arguments and results of sorting; the layout of the input is kept if it is dense.
struct SortTensors {
    Tensor in, out, swapped;
    Pairs pairs;

    SortTensors(const Tensor& input, int64_t dim, bool save)
        : in(input), out(input), swapped(input) {
        const size_t d = wrapped(dim, input);
        const Sizes sizes = sizes_of(input);
        STD_TORCH_CHECK(sizes[d] % 2 == 0, "lipfuse: dimension ", dim,
                        " must have an even size to be sorted in pairs, got ", sizes[d]);
        const int64_t numel = input.numel();
        Sizes strides = strides_of(input);
        if (numel == 0 || !is_dense(sizes, strides)) strides = contiguous_strides(sizes);
        in = with_strides(input, strides);
        out = make_strided(in, sizes, strides, dtype_of(in));
        Sizes half = sizes;
        half[d] /= 2;
        swapped =
            save ? make_strided(in, half, rescaled(strides, d, [](int64_t s) { return s / 2; }),
                                aoti_torch_dtype_bool())
                 : make_strided(in, {0}, {1}, aoti_torch_dtype_bool());
        pairs = {numel / std::max<int64_t>(1, 2 * strides[d]), strides[d]};
    }
};

// Those of the backward. The layout is that of the flags, hence of the input, whatever the
// gradient's is.
struct SwapTensors {
    Tensor in, swapped, out;
    Pairs pairs;

    SwapTensors(const Tensor& grad, const Tensor& flags, int64_t dim)
        : in(grad), swapped(flags), out(grad) {
        const size_t d = wrapped(dim, grad);
        const Sizes sizes = sizes_of(grad);
        Sizes half = sizes;
        half[d] /= 2;
        STD_TORCH_CHECK(sizes[d] % 2 == 0 && sizes_of(flags) == half,
                        "lipfuse: swapped must have one element for each pair of grad");
        STD_TORCH_CHECK(flags.scalar_type() == ScalarType::Bool, "lipfuse: swapped must be bool");
        const int64_t numel = grad.numel();
        // A single pair along dim leaves its stride open: any place among the other dimensions'
        // will do.
        Sizes small = strides_of(flags);
        bool dense = numel > 0 && is_dense(half, small);
        if (dense && half[d] == 1) {
            bool fits = small[d] == 1;
            for (size_t i = 0; i < half.size(); ++i)
                fits = fits || (half[i] > 1 && small[d] == small[i] * half[i]);
            dense = fits;
        }
        Sizes strides;
        if (dense) {
            strides = small;
            for (size_t i = 0; i < half.size(); ++i)
                if (i != d && small[i] >= small[d]) strides[i] = 2 * small[i];
        } else {
            strides = contiguous_strides(sizes);
            small = contiguous_strides(half);
        }
        in = with_strides(grad, strides);
        swapped = with_strides(flags, small);
        out = make_strided(in, sizes, strides, dtype_of(in));
        pairs = {numel / std::max<int64_t>(1, 2 * strides[d]), strides[d]};
    }
};

}  // namespace lipfuse::cpu
