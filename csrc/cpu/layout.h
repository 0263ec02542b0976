// Tensors of any memory layout, for operators that work element by element or window by window and
// give back the layout that they were given.
#pragma once

#include <algorithm>
#include <array>
#include <memory>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "operators.h"

namespace lipfuse::cpu {

// Calls f(E{}) with the element type, half precision included.
template <class F>
void by_element(const Tensor& t, F f) {
    switch (t.scalar_type()) {
        case ScalarType::Float:
            return f(float{});
        case ScalarType::Double:
            return f(double{});
        case ScalarType::BFloat16:
            return f(Bf16{});
        case ScalarType::Half:
            return f(Fp16{});
        default:
            STD_TORCH_CHECK(false, "lipfuse: expected a floating-point tensor");
    }
}

// Asks for large pages where a large tensor's memory is new. Its first write otherwise takes a page
// fault every 4 KiB, which costs several times what the pass itself does; NumPy asks for them too.
inline void in_large_pages([[maybe_unused]] void* begin, [[maybe_unused]] size_t bytes) {
#ifdef MADV_HUGEPAGE
    constexpr uintptr_t page = uintptr_t(1) << 21;
    const auto at = reinterpret_cast<uintptr_t>(begin);
    const uintptr_t first = (at + page - 1) / page * page, last = (at + bytes) / page * page;
    if (bytes >= 2 * page && first < last)  // may be refused: then the pages are small ones
        madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// An uninitialised tensor where `like` is, whose strides fill a stretch of memory.
inline Tensor make_strided(const Tensor& like, const Sizes& sizes, const Sizes& strides,
                           int32_t dtype) {
    const auto [device_type, device_index] = device_of(like);
    AtenTensorHandle handle = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()),
                                                           sizes.data(), strides.data(), dtype,
                                                           device_type, device_index, &handle));
    Tensor out(handle);
    if (device_type == aoti_torch_device_type_cpu())
        in_large_pages(out.data_ptr(), static_cast<size_t>(out.numel()) * out.element_size());
    return out;
}
inline int32_t dtype_of(const Tensor& t) {
    int32_t dtype;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &dtype));
    return dtype;
}
inline Sizes strides_of(const Tensor& t) {
    return Sizes(t.strides().begin(), t.strides().end());
}
inline Sizes contiguous_strides(const Sizes& sizes) {
    Sizes strides(sizes.size());
    int64_t step = 1;
    for (size_t i = sizes.size(); i-- > 0;) {
        strides[i] = step;
        step = times(step, sizes[i]);
    }
    return strides;
}

// Whether the elements fill a stretch of memory, in whatever order of the dimensions.
inline bool is_dense(const Sizes& sizes, const Sizes& strides) {
    Sizes order;
    for (size_t i = 0; i < sizes.size(); ++i)
        if (sizes[i] != 1) order.push_back(static_cast<int64_t>(i));
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        return strides[static_cast<size_t>(a)] < strides[static_cast<size_t>(b)];
    });
    int64_t step = 1;
    for (int64_t i : order) {
        if (strides[static_cast<size_t>(i)] != step) return false;
        step *= sizes[static_cast<size_t>(i)];
    }
    return true;
}

// t, or a copy of it, with these strides; those of dimensions of size 1 do not matter.
inline Tensor with_strides(const Tensor& t, const Sizes& strides) {
    bool same = true;
    for (size_t i = 0; i < strides.size(); ++i)
        same = same && (t.sizes()[i] == 1 || t.strides()[i] == strides[i]);
    if (same) return t;
    Tensor copy = make_strided(t, sizes_of(t), strides, dtype_of(t));
    return torch::stable::copy_(copy, t);
}

// How many threads are worth waking for a pass over that many elements: as torch's own.
inline int tasks_for(const Parallel& threads, int64_t elements, int64_t units) {
    return static_cast<int>(
        std::max<int64_t>(1, std::min<int64_t>({threads.threads, units, elements / 32768})));
}

}  // namespace lipfuse::cpu
