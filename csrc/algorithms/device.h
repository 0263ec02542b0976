// What also runs inside CUDA kernels is marked; on the CPU the mark means nothing.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#ifdef __CUDACC__
#define LIPFUSE_DEVICE __device__
#define LIPFUSE_NOINLINE __noinline__
#else
#define LIPFUSE_DEVICE
#define LIPFUSE_NOINLINE __attribute__((noinline))
#endif

namespace lipfuse {

// std::swap, which C++17 does not let a kernel call.
template <class P>
LIPFUSE_DEVICE inline void exchange(P& a, P& b) {
    P c = a;
    a = b;
    b = c;
}

// The power of two that brings x > 0 to [1, 2), as far as T has one: not where x is subnormal.
template <class T>
LIPFUSE_DEVICE inline double power_to_one(double x) {
    return std::ldexp(1.0, std::min(-std::ilogb(x), std::numeric_limits<T>::max_exponent - 1));
}

}  // namespace lipfuse
