#include "launch.cuh"

namespace lipfuse::cuda {
namespace {

template <class T>
LIPFUSE_KERNEL power_iteration_global(const __grid_constant__ Layout layout,
                                      const __grid_constant__ Table<PowerArguments<T>> table) {
    power_iteration_kernel(layout, table);
}
template <class T>
LIPFUSE_KERNEL spectral_normalize_global(const __grid_constant__ Layout layout,
                                         const __grid_constant__ Table<PowerArguments<T>> table) {
    spectral_normalize_kernel(layout, table);
}
template <class T>
LIPFUSE_KERNEL power_iteration_backward_global(
    const __grid_constant__ Layout layout, const __grid_constant__ Table<OuterArguments<T>> table) {
    power_iteration_backward_kernel(layout, table);
}
template <class T>
LIPFUSE_KERNEL spectral_normalize_backward_global(
    const __grid_constant__ Layout layout, const __grid_constant__ Table<OuterArguments<T>> table) {
    spectral_normalize_backward_kernel(layout, table);
}

template <class T>
Demand power(const Job<PowerArguments<T>>& j) {
    return power_demand(j.matrices, j.arguments.rows, j.arguments.cols);
}
template <class T>
Demand outer(const Job<OuterArguments<T>>& j) {
    return pass_demand(j.matrices, j.arguments.rows * j.arguments.cols);
}

}  // namespace

template <class T>
Error power_iteration(const Stream& s, const Jobs<PowerArguments<T>>& jobs) {
    return launch<T, sweep_tiles<T>>(power_iteration_global<T>, s, jobs, power<T>);
}
template <class T>
Error spectral_normalize(const Stream& s, const Jobs<PowerArguments<T>>& jobs) {
    return launch<T, sweep_tiles<T>>(spectral_normalize_global<T>, s, jobs, power<T>);
}
template <class T>
Error power_iteration_backward(const Stream& s, const Jobs<OuterArguments<T>>& jobs) {
    return launch<T, no_tiles>(power_iteration_backward_global<T>, s, jobs, outer<T>);
}
template <class T>
Error spectral_normalize_backward(const Stream& s, const Jobs<OuterArguments<T>>& jobs) {
    return launch<T, no_tiles>(spectral_normalize_backward_global<T>, s, jobs, outer<T>);
}

#define LIPFUSE_INSTANTIATE(T)                                                              \
    template Error power_iteration(const Stream&, const Jobs<PowerArguments<T>>&);          \
    template Error spectral_normalize(const Stream&, const Jobs<PowerArguments<T>>&);       \
    template Error power_iteration_backward(const Stream&, const Jobs<OuterArguments<T>>&); \
    template Error spectral_normalize_backward(const Stream&, const Jobs<OuterArguments<T>>&);
LIPFUSE_INSTANTIATE(float)
LIPFUSE_INSTANTIATE(double)

}  // namespace lipfuse::cuda
