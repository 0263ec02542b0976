#include "launch.cuh"

namespace lipfuse::cuda {
namespace {

template <class T>
LIPFUSE_KERNEL spectral_bound_global(const __grid_constant__ Layout layout,
                                     const __grid_constant__ Table<BoundArguments<T>> table) {
    spectral_bound_kernel(layout, table);
}

template <class T>
Demand demand(const Job<BoundArguments<T>>& j) {
    return spectral_bound_demand(j.matrices, j.arguments.rows, j.arguments.cols);
}

}  // namespace

template <class T>
Error spectral_bound(const Stream& s, const Jobs<BoundArguments<T>>& jobs) {
    return launch<T, product_tiles<T>>(spectral_bound_global<T>, s, jobs, demand<T>);
}

template Error spectral_bound(const Stream&, const Jobs<BoundArguments<float>>&);
template Error spectral_bound(const Stream&, const Jobs<BoundArguments<double>>&);

}  // namespace lipfuse::cuda
