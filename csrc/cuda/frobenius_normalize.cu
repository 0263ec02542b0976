#include "launch.cuh"

namespace lipfuse::cuda {
namespace {

template <class T>
LIPFUSE_KERNEL frobenius_normalize_global(
    const __grid_constant__ Layout layout,
    const __grid_constant__ Table<FrobeniusArguments<T>> table) {
    frobenius_normalize_kernel(layout, table);
}
template <class T>
LIPFUSE_KERNEL frobenius_normalize_backward_global(
    const __grid_constant__ Layout layout,
    const __grid_constant__ Table<FrobeniusArguments<T>> table) {
    frobenius_normalize_backward_kernel(layout, table);
}

template <class T>
Demand demand(const Job<FrobeniusArguments<T>>& j) {
    return pass_demand(j.matrices, j.arguments.n);
}

}  // namespace

template <class T>
Error frobenius_normalize(const Stream& s, const Jobs<FrobeniusArguments<T>>& jobs) {
    return launch<T, no_tiles>(frobenius_normalize_global<T>, s, jobs, demand<T>);
}
template <class T>
Error frobenius_normalize_backward(const Stream& s, const Jobs<FrobeniusArguments<T>>& jobs) {
    return launch<T, no_tiles>(frobenius_normalize_backward_global<T>, s, jobs, demand<T>);
}

#define LIPFUSE_INSTANTIATE(T)                                                             \
    template Error frobenius_normalize(const Stream&, const Jobs<FrobeniusArguments<T>>&); \
    template Error frobenius_normalize_backward(const Stream&, const Jobs<FrobeniusArguments<T>>&);
LIPFUSE_INSTANTIATE(float)
LIPFUSE_INSTANTIATE(double)

}  // namespace lipfuse::cuda
