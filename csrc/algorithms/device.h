// What also runs inside CUDA kernels is marked; on the CPU the mark means nothing.
#pragma once

#ifdef __CUDACC__
#define LIPFUSE_DEVICE __device__
#define LIPFUSE_APART __noinline__  // a function of its own, whose values take registers only in it
#else
#define LIPFUSE_DEVICE
#define LIPFUSE_APART
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
