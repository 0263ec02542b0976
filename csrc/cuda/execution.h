// All that kernel bodies ask of the machine. nvcc gets the intrinsics; any other compiler gets
// host_execution.h, which runs the same bodies thread by thread.
#pragma once

#include <cstdint>

#include "../algorithms/device.h"

#ifdef __CUDACC__

#define LIPFUSE_NOINLINE __noinline__
#define LIPFUSE_UNROLL _Pragma("unroll")

namespace lipfuse::cuda {

__device__ inline int thread_index() {
    return static_cast<int>(threadIdx.x);
}
__device__ inline int block_index() {
    return static_cast<int>(blockIdx.x);
}
__device__ inline int grid_blocks() {
    return static_cast<int>(gridDim.x);
}
__device__ inline void sync_threads() {
    __syncthreads();
}

__device__ inline double shuffle_xor(double x, int mask) {
    return __shfl_xor_sync(0xffffffffu, x, mask);
}

__device__ inline unsigned char* shared_memory() {
    extern __shared__ __align__(16) unsigned char lipfuse_shared[];
    return lipfuse_shared;
}

// One thread a block: tells the other blocks that this one has arrived and waits for `target`
// arrivals. The fences order what the blocks wrote and read before and after.
__device__ inline void arrive_and_wait(unsigned* counter, unsigned target) {
    __threadfence();
    atomicAdd(counter, 1u);
    while (static_cast<int>(*static_cast<volatile unsigned*>(counter) - target) < 0) {
    }
    __threadfence();
}

// Memory that nobody may touch: only the host's model checks that.
__device__ inline void forbid(void*, int64_t) {}
__device__ inline void permit(void*, int64_t) {}

__device__ inline void fail() {
    __trap();
}

}  // namespace lipfuse::cuda

#else
#include "host_execution.h"
#endif
