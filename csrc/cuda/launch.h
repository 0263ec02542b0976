// The launchers, as the operators see them: no CUDA header, no torch header.
#pragma once

#include <vector>

#include "kernels.h"

namespace lipfuse::cuda {

// Where a launch goes, and where it gets scratch memory from.
struct Stream {
    int device;
    void* stream;  // a cudaStream_t
    void* context;
    char* (*allocate)(void* context, int64_t bytes);
    bool rough_products;  // the user allows them
};

// Equal matrices, and what is to be done to them.
template <class Arguments>
struct Job {
    int64_t matrices;
    Arguments arguments;
};
template <class Arguments>
using Jobs = std::vector<Job<Arguments>>;

// All return null, or what went wrong. One launch does up to most_items jobs.
using Error = const char*;

template <class T>
Error power_iteration(const Stream&, const Jobs<PowerArguments<T>>&);
template <class T>
Error power_iteration_backward(const Stream&, const Jobs<OuterArguments<T>>&);
template <class T>
Error spectral_normalize(const Stream&, const Jobs<PowerArguments<T>>&);
template <class T>
Error spectral_normalize_backward(const Stream&, const Jobs<OuterArguments<T>>&);
template <class T>
Error frobenius_normalize(const Stream&, const Jobs<FrobeniusArguments<T>>&);
template <class T>
Error frobenius_normalize_backward(const Stream&, const Jobs<FrobeniusArguments<T>>&);
template <class T>
Error bjorck(const Stream&, const Jobs<BjorckArguments<T>>&);
template <class T>
Error spectral_bjorck(const Stream&, const Jobs<ChainArguments<T>>&);
template <class T>
Error bjorck_backward(const Stream&, const Jobs<BjorckBackwardArguments<T>>&);
template <class T>
Error orthogonalize(const Stream&, const Jobs<PolarArguments<T>>&);
template <class T>
Error orthogonalize_backward(const Stream&, const Jobs<PolarBackwardArguments<T>>&);
template <class T>
Error spectral_bound(const Stream&, const Jobs<BoundArguments<T>>&);

}  // namespace lipfuse::cuda
