// From a demand to a launch: asks the device for its limits, never for its progress.
#pragma once

#include <cuda_runtime.h>

#include "launch.h"
#include "plan.h"

namespace lipfuse::cuda {

template <class T, class... Parameters, class... Arguments>
Error launch(void (*kernel)(Layout, Parameters...), const Stream& stream, const Demand& demand,
             const Arguments&... arguments) {
    if (demand.batch == 0) return nullptr;
    const auto text = [](cudaError_t e) {
        return e == cudaSuccess ? nullptr : cudaGetErrorString(e);
    };
    Limits limits{};
    int shared = 0, processors = 0, each = 0;
    cudaError_t e =
        cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, stream.device);
    if (e == cudaSuccess)
        e = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, stream.device);
    if (e == cudaSuccess)
        e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (e == cudaSuccess)
        e = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, block_threads,
                                                          shared_bytes(sizeof(Shared<T>)));
    if (e != cudaSuccess) return text(e);
    limits.shared_bytes = shared;
    limits.resident_blocks = int64_t(std::max(1, each)) * processors;
    Plan plan = make_plan<T>(demand, limits);
    const auto queue = static_cast<cudaStream_t>(stream.stream);
    if (plan.workspace_bytes > 0) {
        char* workspace = stream.allocate(stream.context, plan.workspace_bytes);
        plan.attach(workspace);
        if (plan.cooperative) {
            e = cudaMemsetAsync(workspace, 0, static_cast<size_t>(plan.partial_at), queue);
            if (e != cudaSuccess) return text(e);
        }
    }
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(std::min<int64_t>(plan.blocks(), 0x7fffffff)));
    config.blockDim = dim3(block_threads);
    config.dynamicSmemBytes = static_cast<size_t>(plan.shared_bytes);
    config.stream = queue;
    cudaLaunchAttribute cooperative{};
    cooperative.id = cudaLaunchAttributeCooperative;
    cooperative.val.cooperative = 1;
    config.attrs = &cooperative;
    config.numAttrs = plan.cooperative ? 1 : 0;
    e = cudaLaunchKernelEx(&config, kernel, plan.layout, Parameters(arguments)...);
    return text(e);
}

#define LIPFUSE_KERNEL __global__ void __launch_bounds__(block_threads, 1)

}  // namespace lipfuse::cuda
