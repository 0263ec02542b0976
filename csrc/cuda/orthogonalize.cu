#include <memory>
#include <mutex>
#include <vector>

#include "launch.cuh"

namespace lipfuse::cuda {
namespace {

template <class T>
LIPFUSE_KERNEL orthogonalize_global(Layout layout, PolarArguments<T> a,
                                    const __grid_constant__ Polynomials polynomials) {
    orthogonalize_kernel(layout, &polynomials, a);
}
template <class T>
LIPFUSE_KERNEL orthogonalize_backward_global(Layout layout, PolarBackwardArguments<T> a,
                                             const __grid_constant__ Polynomials polynomials) {
    orthogonalize_backward_kernel(layout, &polynomials, a);
}

// Tables are kept: a network asks for a handful of tolerances again and again.
std::shared_ptr<const Polynomials> polynomials(double tolerance) {
    static std::mutex mutex;
    static std::vector<std::pair<double, std::shared_ptr<const Polynomials>>> kept;
    std::lock_guard<std::mutex> lock(mutex);
    for (const auto& k : kept)
        if (k.first == tolerance) return k.second;
    auto made = std::make_shared<Polynomials>();
    tabulate(tolerance, *made);
    if (kept.size() >= 64) kept.erase(kept.begin());
    kept.emplace_back(tolerance, made);
    return made;
}

}  // namespace

template <class T>
Error orthogonalize(const Stream& s, int64_t batch, const PolarArguments<T>& a) {
    const auto table = polynomials(polar_per_direction(a.tolerance, std::min(a.rows, a.cols)));
    return launch<T>(orthogonalize_global<T>, s, polar_demand(batch, a.rows, a.cols), a, *table);
}
template <class T>
Error orthogonalize_backward(const Stream& s, int64_t batch, const PolarBackwardArguments<T>& a) {
    const auto table = polynomials(1.0);  // it takes the cubics alone
    return launch<T>(orthogonalize_backward_global<T>, s,
                     polar_backward_demand(batch, a.rows, a.cols), a, *table);
}

#define LIPFUSE_INSTANTIATE(T)                                                      \
    template Error orthogonalize(const Stream&, int64_t, const PolarArguments<T>&); \
    template Error orthogonalize_backward(const Stream&, int64_t, const PolarBackwardArguments<T>&);
LIPFUSE_INSTANTIATE(float)
LIPFUSE_INSTANTIATE(double)

}  // namespace lipfuse::cuda
