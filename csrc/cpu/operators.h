// What the CPU operators share: tensors to pointers, a batch to matrices, torch's thread pool.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <pthread.h>

#include <atomic>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "backend.h"
#include "team.h"

namespace lipfuse::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;

// A forked process has none of the threads that its parent's pool waits for: it works alone.
inline std::atomic<bool> forked{false};
inline const int fork_is_noticed =
    pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });

inline int threads_there_are() {
    if (forked.load(std::memory_order_relaxed)) return 1;
    return static_cast<int>(torch::stable::get_num_threads());
}

inline void run_on_torch_threads(void*, int tasks, void (*body)(void*, int), void* context) {
    torch::stable::parallel_for(0, tasks, 1, [=](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) body(context, static_cast<int>(i));
    });
}

inline Parallel torch_threads() {
    const int threads = threads_there_are();
    return threads > 1 ? Parallel{threads, run_on_torch_threads, nullptr} : Parallel{};
}

// Calls f(parallel) once, with one of torch's threads at its side for every `least` of the `work`, in
// multiplications. Where cores are far apart a pass costs a microsecond more, which for a 64 x 64
// matrix is more than the other cores' help.
template <class F>
void in_team(double work, F f, double least = 4e5) {
    const int threads =
        static_cast<int>(std::min(double(threads_there_are()), std::max(1.0, work / least)));
    if (threads <= 1) return f(Parallel{});
    Team team(threads);
    torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t) {
        if (begin != 0) return team.help();
        struct Finish {
            Team& team;
            ~Finish() { team.finish(); }
        } finish{team};
        f(team.parallel());
    });
}

// What a few passes over a weight cost an element, in multiplications of a product.
constexpr double pass_work = 4;

// A stride times a size. Sizes of empty tensors may have any product.
inline int64_t times(int64_t step, int64_t size) {
    int64_t product;
    STD_TORCH_CHECK(!__builtin_mul_overflow(step, std::max<int64_t>(1, size), &product),
                    "lipfuse: the product of a tensor's sizes is too large");
    return product;
}

// Sizes of a (..., rows, cols) tensor.
struct Matrices {
    int64_t batch, rows, cols;

    Matrices(int64_t batch, int64_t rows, int64_t cols) : batch(batch), rows(rows), cols(cols) {}
    explicit Matrices(const Tensor& t) : batch(1) {
        STD_TORCH_CHECK(t.dim() >= 2, "lipfuse: expected a tensor of at least 2 dimensions, got ",
                        t.dim());
        int64_t most = 1;  // no product below is larger, or more than a few times as large
        for (int64_t i = 0; i < t.dim(); ++i) most = times(most, t.size(i));
        STD_TORCH_CHECK(most < int64_t(1) << 58, "lipfuse: the tensor's sizes are too large");
        for (int64_t i = 0; i < t.dim() - 2; ++i) batch *= t.size(i);
        rows = t.size(t.dim() - 2);
        cols = t.size(t.dim() - 1);
    }
    int64_t numel() const { return batch * area(); }
    int64_t area() const { return rows * cols; }
    int64_t small() const { return std::min(rows, cols); }
    int64_t big() const { return std::max(rows, cols); }
    double product_work() const { return double(area()) * double(small()); }
};

inline Sizes sizes_of(const Tensor& t) {
    return Sizes(t.sizes().begin(), t.sizes().end());
}
// The leading dimensions of t, then `last`.
inline Sizes batch_sizes(const Tensor& t, std::initializer_list<int64_t> last, int64_t drop = 2) {
    Sizes s(t.sizes().begin(), t.sizes().end() - drop);
    s.insert(s.end(), last);
    return s;
}

// Type and index of the device.
inline std::pair<int32_t, int32_t> device_of(const Tensor& t) {
    int32_t type, index;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &index));
    return {type, index};
}

// An uninitialised, contiguous tensor where `like` is. The shim's own entry point costs a third of a
// call through the dispatcher, which is what small weights would notice.
inline Tensor make(const Tensor& like, const Sizes& sizes, int32_t dtype) {
    const auto [device_type, device_index] = device_of(like);
    int64_t strides[16];
    const int64_t dims = static_cast<int64_t>(sizes.size());
    STD_TORCH_CHECK(dims <= 16, "lipfuse: at most 16 dimensions, got ", dims);
    int64_t step = 1;
    for (int64_t i = dims - 1; i >= 0; --i) {
        strides[i] = step;
        step = times(step, sizes[static_cast<size_t>(i)]);
    }
    AtenTensorHandle handle = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dims, sizes.data(), strides, dtype,
                                                           device_type, device_index, &handle));
    return Tensor(handle);
}
inline Tensor make(const Tensor& like, const Sizes& sizes) {
    int32_t dtype;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
    return make(like, sizes, dtype);
}
inline Tensor make_double(const Tensor& like, const Sizes& sizes) {
    return make(like, sizes, aoti_torch_dtype_float64());
}
inline Tensor make_int64(const Tensor& like, const Sizes& sizes) {
    return make(like, sizes, aoti_torch_dtype_int64());
}
inline Tensor packed(const Tensor& t) {
    return t.is_contiguous() ? t : torch::stable::contiguous(t);
}
// A copy that may be written to.
inline Tensor copied(const Tensor& t) {
    return torch::stable::clone(torch::stable::contiguous(t));
}

template <class T>
T* data(const Tensor& t) {
    return static_cast<T*>(t.data_ptr());
}
template <class T>
T* data_or_null(const Tensor& t) {
    return t.numel() ? static_cast<T*>(t.data_ptr()) : nullptr;
}

// Calls f(T{}) with the element type.
template <class F>
void by_dtype(const Tensor& t, F f) {
    switch (t.scalar_type()) {
        case ScalarType::Float:
            return f(float{});
        case ScalarType::Double:
            return f(double{});
        default:
            STD_TORCH_CHECK(false, "lipfuse: operators work in float32 or float64");
    }
}

// Calls f(backend, index) for every matrix: side by side where there are several and they are
// small, else one after the other with all threads inside each. `work`: multiplications a matrix.
template <class T, class F>
void for_each_matrix(const Matrices& m, double work, F f) {
    in_team(work * double(m.batch), [&](Parallel team) {
        if (m.batch > 1 && (m.batch >= team.threads || work < 1e6)) {
            const int tasks = static_cast<int>(std::min<int64_t>(team.threads, m.batch));
            team.for_each(tasks, [&](int t) {
                Backend<T> backend;
                for (int64_t i = m.batch * t / tasks; i < m.batch * (t + 1) / tasks; ++i)
                    f(backend, i);
            });
            return;
        }
        Backend<T> backend(team);
        for (int64_t i = 0; i < m.batch; ++i) f(backend, i);
    });
}

}  // namespace lipfuse::cpu
