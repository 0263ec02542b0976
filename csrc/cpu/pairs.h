// Pairs along a dimension of a tensor of any layout, neighbours or the two halves of it: what the
// operators on them need to have in memory.
#pragma once

#include "layout.h"

namespace lipfuse::cpu {

// In memory order a dense tensor is (rows, 2, inner) along the pairs.
struct Pairs {
    int64_t rows, inner;
};

// Calls f(first row, rows, offset into a row, length) from all threads.
template <class F>
void over_pairs(const Pairs& pairs, F f) {
    const Parallel threads = torch_threads();
    const int64_t elements = 2 * pairs.rows * pairs.inner;
    const bool within = pairs.rows < 4 * threads.threads && pairs.inner > 1;
    const int64_t units = within ? pairs.inner : pairs.rows;
    const int tasks = tasks_for(threads, elements, units);
    threads.for_each(tasks, [&](int t) {
        const int64_t begin = units * t / tasks, end = units * (t + 1) / tasks;
        if (within)
            f(0, pairs.rows, begin, end - begin);
        else
            f(begin, end - begin, 0, pairs.inner);
    });
}

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
                                aoti_torch_dtype_uint8())
                 : make_strided(in, {0}, {1}, aoti_torch_dtype_uint8());
        pairs = {numel / std::max<int64_t>(1, 2 * strides[d]), strides[d]};
    }
};

// A tensor and one of twice its size along dim, both dense and in the same order of dimensions: that
// of the strides given, unless they leave it open.
struct Doubled {
    Sizes sizes, strides, twice_sizes, twice_strides;
    int64_t inner;  // along dim

    Doubled(const Tensor& t, int64_t dim)
        : sizes(sizes_of(t)), strides(strides_of(t)), twice_sizes(sizes) {
        const size_t d = wrapped(dim, t);
        twice_sizes[d] = sizes[d] == 0 ? 0 : times(2, sizes[d]);
        bool dense = t.numel() > 0 && is_dense(sizes, strides);
        // A single element along dim leaves its stride open: any place among the other dimensions'
        // will do.
        if (dense && sizes[d] == 1) {
            bool fits = strides[d] == 1;
            for (size_t i = 0; i < sizes.size(); ++i)
                fits = fits || (sizes[i] > 1 && strides[d] == strides[i] * sizes[i]);
            dense = fits;
        }
        if (dense) {
            twice_strides = strides;
            for (size_t i = 0; i < sizes.size(); ++i)
                if (i != d && strides[i] >= strides[d]) twice_strides[i] = 2 * strides[i];
        } else {
            strides = contiguous_strides(sizes);
            twice_strides = contiguous_strides(twice_sizes);
        }
        inner = strides[d];
    }
};

// Those of the backward. The layout is that of the flags, hence of the input, whatever the
// gradient's is.
struct SwapTensors {
    Tensor in, swapped, out;
    Pairs pairs;

    SwapTensors(const Tensor& grad, const Tensor& flags, int64_t dim)
        : in(grad), swapped(flags), out(grad) {
        const Doubled layout(flags, dim);
        STD_TORCH_CHECK(sizes_of(grad) == layout.twice_sizes,
                        "lipfuse: swapped must have one element for each pair of grad");
        STD_TORCH_CHECK(flags.scalar_type() == ScalarType::Byte, "lipfuse: swapped must be uint8");
        in = with_strides(grad, layout.twice_strides);
        swapped = with_strides(flags, layout.strides);
        out = make_strided(in, layout.twice_sizes, layout.twice_strides, dtype_of(in));
        pairs = {flags.numel() / std::max<int64_t>(1, layout.inner), layout.inner};
    }
};

}  // namespace lipfuse::cpu
