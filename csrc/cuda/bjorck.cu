#include "launch.cuh"

namespace lipfuse::cuda {
namespace {

template <class T>
LIPFUSE_KERNEL bjorck_global(const __grid_constant__ Layout layout,
                             const __grid_constant__ Table<BjorckArguments<T>> table) {
    bjorck_kernel(layout, table);
}
template <class T>
LIPFUSE_KERNEL spectral_bjorck_global(const __grid_constant__ Layout layout,
                                      const __grid_constant__ Table<ChainArguments<T>> table) {
    spectral_bjorck_kernel(layout, table);
}
template <class T>
LIPFUSE_KERNEL bjorck_backward_global(
    const __grid_constant__ Layout layout,
    const __grid_constant__ Table<BjorckBackwardArguments<T>> table) {
    bjorck_backward_kernel(layout, table);
}

template <class T>
Demand alone(const Job<BjorckArguments<T>>& j) {
    return bjorck_demand(j.matrices, j.arguments.rows, j.arguments.cols, false);
}
template <class T>
Demand chain(const Job<ChainArguments<T>>& j) {
    return bjorck_demand(j.matrices, j.arguments.bjorck.rows, j.arguments.bjorck.cols, true);
}
template <class T>
Demand back(const Job<BjorckBackwardArguments<T>>& j) {
    return bjorck_backward_demand(j.matrices, j.arguments.rows, j.arguments.cols);
}

}  // namespace

template <class T>
Error bjorck(const Stream& s, const Jobs<BjorckArguments<T>>& jobs) {
    return launch<T, product_tiles<T>>(bjorck_global<T>, s, jobs, alone<T>);
}
template <class T>
Error spectral_bjorck(const Stream& s, const Jobs<ChainArguments<T>>& jobs) {
    return launch<T, all_tiles<T>>(spectral_bjorck_global<T>, s, jobs, chain<T>);
}
template <class T>
Error bjorck_backward(const Stream& s, const Jobs<BjorckBackwardArguments<T>>& jobs) {
    return launch<T, product_tiles<T>>(bjorck_backward_global<T>, s, jobs, back<T>);
}

#define LIPFUSE_INSTANTIATE(T)                                                     \
    template Error bjorck(const Stream&, const Jobs<BjorckArguments<T>>&);         \
    template Error spectral_bjorck(const Stream&, const Jobs<ChainArguments<T>>&); \
    template Error bjorck_backward(const Stream&, const Jobs<BjorckBackwardArguments<T>>&);
LIPFUSE_INSTANTIATE(float)
LIPFUSE_INSTANTIATE(double)

}  // namespace lipfuse::cuda
