// What also runs inside CUDA kernels is marked; on the CPU the mark means nothing.
#pragma once

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

}  // namespace lipfuse
