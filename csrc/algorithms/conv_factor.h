// The corrective factor of a convolution, by counting.
//
// conv = W P, where P pads the input and extracts patches. Every row of P copies one pixel, so PᵀP
// is diagonal and counts how often each pixel is used: ‖conv‖ <= ‖W‖ sqrt(largest count), and the
// factor is 1 / sqrt(largest count). Counts multiply over axes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <vector>

namespace lipfuse {

enum class Padding { zeros, circular, reflect, replicate, symmetric };

namespace conv_factor_detail {

// Which pixel of an axis of length n stands at position p of the padded axis; -1 for none.
inline int64_t pixel_at(int64_t p, int64_t n, Padding mode) {
    if (p >= 0 && p < n) return p;
    switch (mode) {
        case Padding::zeros:
            return -1;
        case Padding::replicate:
            return p < 0 ? 0 : n - 1;
        case Padding::circular:
            return ((p % n) + n) % n;
        case Padding::reflect: {  // without the edge; a line of one pixel reflects onto itself
            if (n == 1) return 0;
            const int64_t period = 2 * (n - 1), r = ((p % period) + period) % period;
            return r < n ? r : period - r;
        }
        default: {  // symmetric: with the edge
            const int64_t period = 2 * n, r = ((p % period) + period) % period;
            return r < n ? r : period - 1 - r;
        }
    }
}

inline int64_t count_on(int64_t n, int64_t k, int64_t stride, int64_t before, int64_t after,
                        int64_t dilation, Padding mode) {
    const int64_t span = dilation * (k - 1) + 1, padded = n + before + after;
    if (padded < span) return 0;
    std::vector<int64_t> uses(static_cast<size_t>(n), 0);
    for (int64_t start = 0; start + span <= padded; start += stride)
        for (int64_t j = 0; j < k; ++j) {
            const int64_t pixel = pixel_at(start + j * dilation - before, n, mode);
            if (pixel >= 0) ++uses[static_cast<size_t>(pixel)];
        }
    return *std::max_element(uses.begin(), uses.end());
}

}  // namespace conv_factor_detail

// The largest number of times one pixel of an axis is used. length = 0: whatever the length, i.e.
// the maximum over all lengths that the padding mode admits. Throws where counting would take
// minutes.
inline int64_t largest_use(int64_t kernel, int64_t stride, int64_t before, int64_t after,
                           int64_t dilation, Padding mode, int64_t length) {
    using conv_factor_detail::count_on;
    const double size = double(dilation) * double(kernel) + double(before) + double(after) +
                        double(stride) * double(dilation);
    const double lengths = length > 0 || mode == Padding::zeros ? 1 : 2 * size;
    if (!(size < 1e9 && lengths * 3 * size * (1 + double(kernel) / double(stride)) < 1e10))
        throw std::invalid_argument(
            "kernel, stride, padding and dilation are too large to count the uses of a pixel");
    // Beyond this length both ends are independent of each other, and further pixels only repeat
    // the pattern of the stride: all longer inputs have the count of one of those tried here.
    const int64_t span = dilation * (kernel - 1) + 1;
    const int64_t reach = 2 * (span + before + after) + 2 * stride * dilation + 2;
    int64_t shortest = 1;
    if (mode == Padding::reflect) shortest = std::max(before, after) + 1;
    if (mode == Padding::circular || mode == Padding::symmetric)
        shortest = std::max<int64_t>(1, std::max(before, after));
    const int64_t longest = reach + shortest;
    if (length > longest) length = longest + (length - longest) % stride;
    if (length > 0) return count_on(length, kernel, stride, before, after, dilation, mode);
    // More pixels between zeros are in more windows.
    if (mode == Padding::zeros) shortest = longest;
    int64_t most = 0;
    for (int64_t n = shortest; n <= longest; ++n)
        most = std::max(most, count_on(n, kernel, stride, before, after, dilation, mode));
    return most;
}

}  // namespace lipfuse
