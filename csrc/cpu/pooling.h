// What the pools share: windows side by side over images, in either layout.
#pragma once

#include "layout.h"

namespace lipfuse::cpu {

// (..., H, W) images, or (N, C, H, W) and (C, H, W) ones whose channels lie together in memory.
struct Images {
    Sizes sizes, strides;  // the strides that the kernels need
    bool together;
    int64_t count;     // how many images: each channel is one, unless they lie together
    int64_t channels;  // in an image: 1, or C
    int64_t height, width;

    explicit Images(const Tensor& t) : sizes(sizes_of(t)), strides(strides_of(t)) {
        const size_t n = sizes.size();
        STD_TORCH_CHECK(n >= 2, "lipfuse: expected an image of at least 2 dimensions, got ", n);
        height = sizes[n - 2];
        width = sizes[n - 1];
        const Sizes apart = contiguous_strides(sizes);
        together = (n == 3 || n == 4) && !matches(apart) && matches(channels_last(sizes));
        strides = together ? channels_last(sizes) : apart;
        channels = together ? sizes[n - 3] : 1;
        count = 1;
        for (size_t i = 0; i + 2 < n; ++i) count *= sizes[i];
        count /= std::max<int64_t>(1, channels);
    }

    // Strides of a tensor of other sizes in the same layout.
    Sizes strides_for(const Sizes& others) const {
        return together ? channels_last(others) : contiguous_strides(others);
    }

    static Sizes channels_last(const Sizes& sizes) {
        const size_t n = sizes.size();
        const int64_t c = times(1, sizes[n - 3]), row = times(c, sizes[n - 1]);
        return n == 4 ? Sizes{times(row, sizes[n - 2]), 1, row, c} : Sizes{1, row, c};
    }

private:
    bool matches(const Sizes& wanted) const {
        for (size_t i = 0; i < sizes.size(); ++i)
            if (sizes[i] != 1 && strides[i] != wanted[i]) return false;
        return true;
    }
};

inline int64_t windows_along(int64_t size, int64_t kernel, bool ceil_mode) {
    STD_TORCH_CHECK(kernel >= 1, "lipfuse: kernels must be at least 1, got ", kernel);
    STD_TORCH_CHECK(size >= 0, "lipfuse: sizes must not be negative, got ", size);
    return size / kernel + (ceil_mode && size % kernel != 0);
}

inline Pool pool_over(const Images& images, int64_t height, int64_t width, int64_t kernel_height,
                      int64_t kernel_width, bool ceil_mode, double scale) {
    Pool p;
    p.height = height;
    p.width = width;
    p.channels = images.channels;
    // A larger window than the image is the image; the products of sizes stay small.
    p.kernel_height = std::max<int64_t>(1, std::min(kernel_height, height));
    p.kernel_width = std::max<int64_t>(1, std::min(kernel_width, width));
    p.out_height = windows_along(height, kernel_height, ceil_mode);
    p.out_width = windows_along(width, kernel_width, ceil_mode);
    p.scale = scale;
    return p;
}

// Calls f(begin, end, scratch) for the rows of outputs from all threads.
template <class E, class F>
void over_rows(const Pool& p, int64_t images, F f) {
    using Wide = typename WideType<E>::type;
    const Parallel threads = torch_threads();
    const int64_t rows = images * p.out_height;
    const int64_t elements = images * p.height * p.width * p.channels;
    const int tasks = tasks_for(threads, elements, rows);
    threads.for_each(tasks, [&](int t) {
        const std::unique_ptr<Wide[]> scratch(new Wide[static_cast<size_t>(p.scratch())]);
        f(rows * t / tasks, rows * (t + 1) / tasks, scratch.get());
    });
}

inline Sizes pooled_sizes(const Images& images, const Pool& p) {
    Sizes sizes = images.sizes;
    sizes[sizes.size() - 2] = p.out_height;
    sizes[sizes.size() - 1] = p.out_width;
    return sizes;
}

}  // namespace lipfuse::cpu
