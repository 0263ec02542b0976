#include "layers.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "layers_launch.h"

namespace lipfuse::cuda {
namespace {

#define LIPFUSE_LAYER __global__ void __launch_bounds__(layer_threads, 2)

template <class E, int V>
LIPFUSE_LAYER sort_pairs_global(SortArguments<E> a) {
    sort_pairs_kernel<E, V>(a);
}
template <Pooling kind, class E, int V, bool two>
LIPFUSE_LAYER pool_global(PoolArguments<E> a) {
    pool_kernel<kind, E, V, two>(a);
}
template <Pooling kind, class E, int V, bool two>
LIPFUSE_LAYER pool_backward_global(PoolArguments<E> a) {
    pool_backward_kernel<kind, E, V, two>(a);
}

// A thread for each of so many units, as far as blocks are worth having; they go on from there.
template <class Arguments>
Error launch(void (*kernel)(Arguments), const Stream& s, int64_t units, const Arguments& a) {
    if (units == 0) return nullptr;
    const int64_t blocks =
        std::min<int64_t>((units + layer_threads - 1) / layer_threads, int64_t(1) << 16);
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(layer_threads);
    config.stream = static_cast<cudaStream_t>(s.stream);
    const cudaError_t e = cudaLaunchKernelEx(&config, kernel, a);
    return e == cudaSuccess ? nullptr : cudaGetErrorString(e);
}

// Calls f(first, count) for parts of n of which each has at most so many units.
template <class F>
Error in_parts(int64_t n, int64_t units_each, F f) {
    const int64_t most = (most_units - 1) / std::max<int64_t>(1, units_each);
    if (n && !most) return "one image must have less than 2^31 windows";
    for (int64_t first = 0; first < n; first += most)
        if (Error e = f(first, std::min(most, n - first))) return e;
    return nullptr;
}

}  // namespace

template <class E>
Error sort_pairs(const Stream& s, const SortArguments<E>& all) {
    constexpr int V = whole_pack<E>;
    constexpr int64_t longest = most_units / 2;  // of a row, with whole packs
    for (int64_t offset = 0; offset < all.inner; offset += longest) {
        SortArguments<E> row = all;
        row.in += offset;
        row.out += offset;
        if (row.flags) row.flags += offset;
        if (row.exchange) row.exchange += offset;
        row.length = std::min(longest, all.inner - offset);
        const Error e = in_parts(all.rows, row.length, [&](int64_t first, int64_t count) {
            SortArguments<E> a = row;
            a.rows = count;
            a.in += 2 * first * a.inner;
            a.out += 2 * first * a.inner;
            if (a.flags) a.flags += first * a.inner;
            if (a.exchange) a.exchange += first * a.inner;
            const int64_t pairs = count * a.length;
            if (takes_packs(a)) return launch(sort_pairs_global<E, V>, s, (pairs + V - 1) / V, a);
            return launch(sort_pairs_global<E, 1>, s, pairs, a);
        });
        if (e) return e;
    }
    return nullptr;
}

template <Pooling kind, class E>
Error pool(const Stream& s, const PoolArguments<E>& all, bool backward) {
    constexpr int V = whole_pack<E>;
    const int64_t in = all.height * all.width * all.channels,
                  out = all.out_height * all.out_width * all.channels;
    const int64_t windows =
        backward ? all.rows_of_windows() * all.columns_of_windows() * all.channels : out;
    return in_parts(all.images, windows, [&](int64_t first, int64_t count) {
        PoolArguments<E> a = all;
        a.images = count;
        if (a.in) a.in += first * in;
        if (a.grad) a.grad += first * out;
        a.out += first * (backward ? in : out);
        const int64_t units = count * windows;
        switch (vectors_of(a)) {
            case 1:
                return launch(backward ? pool_backward_global<kind, E, V, false>
                                       : pool_global<kind, E, V, false>,
                              s, units / V, a);
            case 2:
                return launch(backward ? pool_backward_global<kind, E, 1, true>
                                       : pool_global<kind, E, 1, true>,
                              s, units, a);
            default:
                return launch(backward ? pool_backward_global<kind, E, 1, false>
                                       : pool_global<kind, E, 1, false>,
                              s, units, a);
        }
    });
}

#define LIPFUSE_INSTANTIATE(E)                                                           \
    template Error sort_pairs(const Stream&, const SortArguments<E>&);                   \
    template Error pool<Pooling::average>(const Stream&, const PoolArguments<E>&, bool); \
    template Error pool<Pooling::norm>(const Stream&, const PoolArguments<E>&, bool);
LIPFUSE_INSTANTIATE(float)
LIPFUSE_INSTANTIATE(double)
LIPFUSE_INSTANTIATE(Bf16)
LIPFUSE_INSTANTIATE(Fp16)

}  // namespace lipfuse::cuda
