// The launchers, as the operators see them: no CUDA header, no torch header.
#pragma once

#include "kernels.h"

namespace lipfuse::cuda {

// Where a launch goes, and where it gets scratch memory from.
struct Stream {
    int device;
    void* stream;  // a cudaStream_t
    void* context;
    char* (*allocate)(void* context, int64_t bytes);
};

// All return null, or what went wrong.
using Error = const char*;

template <class T>
Error power_iteration(const Stream&, int64_t batch, const PowerArguments<T>&);
template <class T>
Error power_iteration_backward(const Stream&, int64_t batch, const OuterArguments<T>&);
template <class T>
Error spectral_normalize(const Stream&, int64_t batch, const PowerArguments<T>&, double scale,
                         T* out);
template <class T>
Error spectral_normalize_backward(const Stream&, int64_t batch, const OuterArguments<T>&);
template <class T>
Error frobenius_normalize(const Stream&, int64_t rows, const FrobeniusArguments<T>&);
template <class T>
Error frobenius_normalize_backward(const Stream&, int64_t rows, const FrobeniusArguments<T>&);
template <class T>
Error bjorck(const Stream&, int64_t batch, const BjorckArguments<T>&);
template <class T>
Error spectral_bjorck(const Stream&, int64_t batch, const PowerArguments<T>&,
                      const BjorckArguments<T>&);
template <class T>
Error bjorck_backward(const Stream&, int64_t batch, const BjorckBackwardArguments<T>&);
template <class T>
Error orthogonalize(const Stream&, int64_t batch, const PolarArguments<T>&);
template <class T>
Error orthogonalize_backward(const Stream&, int64_t batch, const PolarBackwardArguments<T>&);

}  // namespace lipfuse::cuda
