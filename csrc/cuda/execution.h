// All that kernel bodies ask of the machine. nvcc gets the intrinsics; any other compiler gets
// host_execution.h, which runs the same bodies thread by thread.
#pragma once

#include <cstdint>
#include <cstring>

#include "../algorithms/device.h"

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define LIPFUSE_UNROLL _Pragma("unroll")
// Chips whose tensor cores form six bfloat16 products in less time than the others one of float32:
// compute capability 8.0, 9.x and 10.x.
#if defined(__CUDA_ARCH__) && \
    (__CUDA_ARCH__ == 800 || __CUDA_ARCH__ / 100 == 9 || __CUDA_ARCH__ / 100 == 10)
#define LIPFUSE_SPLIT_PRODUCTS 1
#else
#define LIPFUSE_SPLIT_PRODUCTS 0
#endif

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
__device__ inline float shuffle_xor(float x, int mask) {
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

// Two floats rounded to bfloat16, the first in the lower half.
__device__ inline uint32_t pack_bf16(float low, float high) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &both, sizeof bits);
    return bits;
}
__device__ inline uint16_t to_bf16(float x) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
__device__ inline float from_fp16(uint16_t bits) {
    return __half2float(__ushort_as_half(bits));
}
__device__ inline uint16_t to_fp16(float x) {
    return __half_as_ushort(__float2half_rn(x));
}
__device__ inline float as_float(uint32_t bits) {
    return __uint_as_float(bits);
}

// sum += A B for M 16 x 16 fragments A and one 16 x 8 fragment B, each a sum of bfloat16 pieces, by
// a whole warp (the PTX manual has the layout). The tensor cores round towards zero, which over a
// long sum would be a bias; so they add up 16 products at a time, the small ones first, and the
// rest is added in the ordinary way.
template <int M, int P>
__device__ inline void multiply_split([[maybe_unused]] float (&sum)[M][4],
                                      [[maybe_unused]] const uint32_t (&a)[M][P][4],
                                      [[maybe_unused]] const uint32_t (&b)[P][2]) {
#if LIPFUSE_SPLIT_PRODUCTS
    float part[M][4] = {};
    const auto term = [&](int i, int j) {
        LIPFUSE_UNROLL
        for (int m = 0; m < M; ++m)
            asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                : "+f"(part[m][0]), "+f"(part[m][1]), "+f"(part[m][2]), "+f"(part[m][3])
                : "r"(a[m][i][0]), "r"(a[m][i][1]), "r"(a[m][i][2]), "r"(a[m][i][3]), "r"(b[j][0]),
                  "r"(b[j][1]));
    };
    if constexpr (P == 3) {
        term(2, 0);
        term(0, 2);
        term(1, 1);
    }
    term(1, 0);
    term(0, 1);
    term(0, 0);
    LIPFUSE_UNROLL
    for (int m = 0; m < M; ++m) LIPFUSE_UNROLL
    for (int r = 0; r < 4; ++r) sum[m][r] += part[m][r];
#endif
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
