#include <memory>
#include <mutex>
#include <vector>

#include "launch.cuh"

namespace lipfuse::cuda {
namespace {

template <class T>
LIPFUSE_KERNEL orthogonalize_global(const __grid_constant__ Layout layout,
                                    const __grid_constant__ Table<PolarArguments<T>> table,
                                    const __grid_constant__ Polynomials polynomials) {
    static_assert(sizeof layout + sizeof table + sizeof polynomials <= most_parameter_bytes);
    orthogonalize_kernel(layout, table, &polynomials);
}
template <class T>
LIPFUSE_KERNEL orthogonalize_backward_global(
    const __grid_constant__ Layout layout,
    const __grid_constant__ Table<PolarBackwardArguments<T>> table,
    const __grid_constant__ Polynomials polynomials) {
    static_assert(sizeof layout + sizeof table + sizeof polynomials <= most_parameter_bytes);
    orthogonalize_backward_kernel(layout, table, &polynomials);
}

// Tables are kept: a network asks for a handful of tolerances again and again.
std::shared_ptr<const Polynomials> polynomials(double tolerance) {
    static std::mutex mutex;
    static std::vector<std::pair<double, std::shared_ptr<const Polynomials>>> kept;
    const std::lock_guard<std::mutex> lock(mutex);
    for (const auto& k : kept)
        if (k.first == tolerance) return k.second;
    auto made = std::make_shared<Polynomials>();
    tabulate(tolerance, *made);
    if (kept.size() >= 64) kept.erase(kept.begin());
    kept.emplace_back(tolerance, made);
    return made;
}

template <class T>
Demand demand(const Job<PolarArguments<T>>& j) {
    return polar_demand(j.matrices, j.arguments.rows, j.arguments.cols);
}
template <class T>
Demand back(const Job<PolarBackwardArguments<T>>& j) {
    return polar_backward_demand(j.matrices, j.arguments.rows, j.arguments.cols);
}

}  // namespace

template <class T>
Error orthogonalize(const Stream& s, const Jobs<PolarArguments<T>>& jobs) {
    // One table for all: what satisfies the most demanding matrix satisfies the others.
    double tolerance = 1;
    for (const auto& j : jobs)
        tolerance =
            std::min(tolerance, polar_per_direction(j.arguments.tolerance,
                                                    std::min(j.arguments.rows, j.arguments.cols)));
    return launch<T, product_tiles<T>>(orthogonalize_global<T>, s, jobs, demand<T>,
                                       *polynomials(tolerance));
}
template <class T>
Error orthogonalize_backward(const Stream& s, const Jobs<PolarBackwardArguments<T>>& jobs) {
    // It takes the cubics alone, which have no tolerance.
    return launch<T, product_tiles<T>>(orthogonalize_backward_global<T>, s, jobs, back<T>,
                                       *polynomials(1.0));
}

#define LIPFUSE_INSTANTIATE(T)                                                   \
    template Error orthogonalize(const Stream&, const Jobs<PolarArguments<T>>&); \
    template Error orthogonalize_backward(const Stream&, const Jobs<PolarBackwardArguments<T>>&);
LIPFUSE_INSTANTIATE(float)
LIPFUSE_INSTANTIATE(double)

}  // namespace lipfuse::cuda
