// From jobs to launches: asks the device for its limits, never for its progress.
#pragma once

#include <cuda_runtime.h>

#include <mutex>

#include "launch.h"
#include "plan.h"

namespace lipfuse::cuda {

inline Error text(cudaError_t e) {
    return e == cudaSuccess ? nullptr : cudaGetErrorString(e);
}

// Those for which execution.h has LIPFUSE_SPLIT_PRODUCTS.
inline bool has_quick_tensor_cores(int major, int minor) {
    return (major == 8 && minor == 0) || major == 9 || major == 10;
}

// What a device has for a kernel, asked once.
struct Device {
    const void* kernel;
    int index;
    bool tensor_cores;
    int processors, each;  // blocks of the kernel on one processor, with no more than its tiles
    int64_t shared_bytes;  // for each of them
};

inline cudaError_t ask(const void* kernel, int index, int64_t (*needed)(bool), Device& d) {
    static std::mutex mutex;
    static std::vector<Device> known;
    const std::lock_guard<std::mutex> lock(mutex);
    for (const Device& k : known)
        if (k.kernel == kernel && k.index == index) {
            d = k;
            return cudaSuccess;
        }
    int major = 0, minor = 0, block = 0, processor = 0, reserved = 0;
    d = {kernel, index, false, 0, 0, 0};
    const std::pair<cudaDeviceAttr, int*> wanted[] = {
        {cudaDevAttrComputeCapabilityMajor, &major},
        {cudaDevAttrComputeCapabilityMinor, &minor},
        {cudaDevAttrMultiProcessorCount, &d.processors},
        {cudaDevAttrMaxSharedMemoryPerBlockOptin, &block},
        {cudaDevAttrMaxSharedMemoryPerMultiprocessor, &processor},
        {cudaDevAttrReservedSharedMemoryPerBlock, &reserved}};
    cudaError_t e = cudaSuccess;
    for (const auto& [attribute, value] : wanted)
        if (e == cudaSuccess) e = cudaDeviceGetAttribute(value, attribute, index);
    if (e == cudaSuccess)
        e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, block);
    d.tensor_cores = has_quick_tensor_cores(major, minor);
    if (e == cudaSuccess)
        e = cudaOccupancyMaxActiveBlocksPerMultiprocessor(
            &d.each, kernel, block_threads, static_cast<size_t>(needed(d.tensor_cores)));
    if (e != cudaSuccess) return e;
    if (d.each < 1) return cudaErrorLaunchOutOfResources;
    d.shared_bytes = std::min<int64_t>(block, processor / d.each - reserved);
    known.push_back(d);
    return cudaSuccess;
}

// Shared memory of the kernel's tiles, depending on whether there are tensor cores.
using TileBytes = int64_t (*)(bool tensor_cores);
inline int64_t no_tiles(bool) {
    return 0;
}
template <class T>
int64_t sweep_tiles(bool) {
    return sweep_tile_bytes<T>();
}
template <class T>
int64_t product_tiles(bool tensor_cores) {
    return product_tile_bytes<T>(tensor_cores);
}
template <class T>
int64_t all_tiles(bool tensor_cores) {
    return std::max(sweep_tile_bytes<T>(), product_tile_bytes<T>(tensor_cores));
}

// Launches `kernel(layout, table, further...)` for all jobs, the costly ones first.
template <class T, TileBytes tile_bytes, class Arguments, class... Parameters, class... Further>
Error launch(void (*kernel)(Layout, Table<Arguments>, Parameters...), const Stream& stream,
             const Jobs<Arguments>& jobs, Demand (*demand_of)(const Job<Arguments>&),
             const Further&... further) {
    Device device;
    cudaError_t e = ask(
        reinterpret_cast<const void*>(kernel), stream.device,
        [](bool tensor_cores) {
            return shared_bytes(sizeof(Shared<T>)) + tile_bytes(tensor_cores);
        },
        device);
    if (e != cudaSuccess) return text(e);
    const Limits limits{device.shared_bytes, int64_t(device.each) * device.processors,
                        device.tensor_cores, stream.rough_products};
    std::vector<Demand> costs;
    for (const auto& job : jobs) {
        if (job.matrices > INT32_MAX) return "there must be less than 2^31 matrices";
        costs.push_back(demand_of(job));
    }
    const std::vector<size_t> order = costly_first(costs);
    const auto queue = static_cast<cudaStream_t>(stream.stream);
    for (size_t first = 0; first < order.size(); first += most_items) {
        const size_t count = std::min<size_t>(most_items, order.size() - first);
        Table<Arguments> table{};
        std::vector<Demand> demands;
        for (size_t i = 0; i < count; ++i) {
            table.item[i] = jobs[order[first + i]].arguments;
            demands.push_back(costs[order[first + i]]);
        }
        Plan plan = make_plan<T>(demands, tile_bytes(device.tensor_cores), limits);
        if (plan.blocks == 0) continue;
        if (plan.workspace_bytes > 0) {
            char* workspace = stream.allocate(stream.context, plan.workspace_bytes);
            plan.attach(workspace);
            if (plan.cooperative) {
                e = cudaMemsetAsync(workspace, 0, static_cast<size_t>(plan.partial_at), queue);
                if (e != cudaSuccess) return text(e);
            }
        }
        cudaLaunchConfig_t config{};
        config.gridDim = dim3(static_cast<unsigned>(plan.blocks));
        config.blockDim = dim3(block_threads);
        config.dynamicSmemBytes = static_cast<size_t>(plan.shared_bytes);
        config.stream = queue;
        cudaLaunchAttribute cooperative{};
        cooperative.id = cudaLaunchAttributeCooperative;
        cooperative.val.cooperative = 1;
        config.attrs = &cooperative;
        config.numAttrs = plan.cooperative ? 1 : 0;
        e = cudaLaunchKernelEx(&config, kernel, plan.layout, table, Parameters(further)...);
        if (e != cudaSuccess) return text(e);
    }
    return nullptr;
}

#define LIPFUSE_KERNEL __global__ void __launch_bounds__(block_threads, 1)

// Parameters up to this size can be passed by value (CUDA 12.1 and later).
constexpr size_t most_parameter_bytes = 32764;

}  // namespace lipfuse::cuda
