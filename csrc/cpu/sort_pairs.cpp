#include "layout.h"

namespace lipfuse::cpu {
namespace {

// In memory order a dense tensor is (rows, 2, inner) along the pairs.
struct Pairs {
    int64_t rows, inner;
};

size_t wrapped(int64_t dim, const Tensor& t) {
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

std::tuple<Tensor, Tensor> sort_pairs(const Tensor& input, int64_t dim, double scale, bool save) {
    const size_t d = wrapped(dim, input);
    const Sizes sizes = sizes_of(input);
    STD_TORCH_CHECK(sizes[d] % 2 == 0, "lipfuse: dimension ", dim,
                    " must have an even size to be sorted in pairs, got ", sizes[d]);
    const int64_t numel = input.numel();
    Sizes strides = strides_of(input);
    if (numel == 0 || !is_dense(sizes, strides)) strides = contiguous_strides(sizes);
    const Tensor x = with_strides(input, strides);
    Tensor out = make_strided(x, sizes, strides, dtype_of(x));
    Sizes half = sizes;
    half[d] /= 2;
    Tensor swapped =
        save ? make_strided(x, half, rescaled(strides, d, [](int64_t s) { return s / 2; }),
                            aoti_torch_dtype_bool())
             : make_strided(x, {0}, {1}, aoti_torch_dtype_bool());
    if (numel == 0) return {out, swapped};
    const Pairs pairs{numel / (2 * strides[d]), strides[d]};
    by_element(x, [&](auto zero) {
        using E = decltype(zero);
        const auto& kernels = layer_kernels<E>();
        const E* from = data<E>(x);
        E* to = data<E>(out);
        uint8_t* flags = save ? data<uint8_t>(swapped) : nullptr;
        over_pairs(pairs, [&](int64_t row, int64_t rows, int64_t offset, int64_t length) {
            const int64_t at = 2 * row * pairs.inner + offset;
            kernels.sort_pairs(from + at, rows, pairs.inner, length, scale, to + at,
                               flags ? flags + row * pairs.inner + offset : nullptr);
        });
    });
    return {out, swapped};
}

// The Jacobian is a symmetric permutation matrix: this is also its own derivative's adjoint.
Tensor sort_pairs_backward(const Tensor& grad, const Tensor& swapped, int64_t dim, double scale) {
    const size_t d = wrapped(dim, grad);
    const Sizes sizes = sizes_of(grad);
    Sizes half = sizes;
    half[d] /= 2;
    STD_TORCH_CHECK(sizes[d] % 2 == 0 && sizes_of(swapped) == half,
                    "lipfuse: swapped must have one element for each pair of grad");
    STD_TORCH_CHECK(swapped.scalar_type() == ScalarType::Bool, "lipfuse: swapped must be bool");
    const int64_t numel = grad.numel();
    // The layout is that of the flags, hence of the input, whatever the gradient's is. A single pair
    // along dim leaves its stride open: any place among the other dimensions' will do.
    Sizes small = strides_of(swapped);
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
    const Tensor g = with_strides(grad, strides), mask = with_strides(swapped, small);
    Tensor out = make_strided(g, sizes, strides, dtype_of(g));
    if (numel == 0) return out;
    const Pairs pairs{numel / (2 * strides[d]), strides[d]};
    by_element(g, [&](auto zero) {
        using E = decltype(zero);
        const auto& kernels = layer_kernels<E>();
        const E* from = data<E>(g);
        E* to = data<E>(out);
        const uint8_t* flags = data<uint8_t>(mask);
        over_pairs(pairs, [&](int64_t row, int64_t rows, int64_t offset, int64_t length) {
            const int64_t at = 2 * row * pairs.inner + offset;
            kernels.swap_pairs(from + at, flags + row * pairs.inner + offset, rows, pairs.inner,
                               length, scale, to + at);
        });
    });
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lipfuse, CPU, m) {
    m.impl("sort_pairs", TORCH_BOX(&sort_pairs));
    m.impl("sort_pairs_backward", TORCH_BOX(&sort_pairs_backward));
}

}  // namespace lipfuse::cpu
