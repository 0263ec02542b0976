#include "launch.cuh"

namespace lipfuse::cuda {
namespace {

template <class T>
LIPFUSE_KERNEL power_iteration_global(Layout layout, PowerArguments<T> a) {
    power_iteration_kernel(layout, a);
}
template <class T>
LIPFUSE_KERNEL spectral_normalize_global(Layout layout, PowerArguments<T> a, double scale, T* out) {
    spectral_normalize_kernel(layout, a, scale, out);
}
template <class T>
LIPFUSE_KERNEL power_iteration_backward_global(Layout layout, OuterArguments<T> a) {
    power_iteration_backward_kernel(layout, a);
}
template <class T>
LIPFUSE_KERNEL spectral_normalize_backward_global(Layout layout, OuterArguments<T> a) {
    spectral_normalize_backward_kernel(layout, a);
}

}  // namespace

template <class T>
Error power_iteration(const Stream& s, int64_t batch, const PowerArguments<T>& a) {
    return launch<T>(power_iteration_global<T>, s, power_demand(batch, a.rows, a.cols), a);
}
template <class T>
Error spectral_normalize(const Stream& s, int64_t batch, const PowerArguments<T>& a, double scale,
                         T* out) {
    return launch<T>(spectral_normalize_global<T>, s, power_demand(batch, a.rows, a.cols), a, scale,
                     out);
}
template <class T>
Error power_iteration_backward(const Stream& s, int64_t batch, const OuterArguments<T>& a) {
    return launch<T>(power_iteration_backward_global<T>, s, pass_demand(batch, a.rows * a.cols), a);
}
template <class T>
Error spectral_normalize_backward(const Stream& s, int64_t batch, const OuterArguments<T>& a) {
    return launch<T>(spectral_normalize_backward_global<T>, s, pass_demand(batch, a.rows * a.cols),
                     a);
}

#define LIPFUSE_INSTANTIATE(T)                                                                  \
    template Error power_iteration(const Stream&, int64_t, const PowerArguments<T>&);           \
    template Error spectral_normalize(const Stream&, int64_t, const PowerArguments<T>&, double, \
                                      T*);                                                      \
    template Error power_iteration_backward(const Stream&, int64_t, const OuterArguments<T>&);  \
    template Error spectral_normalize_backward(const Stream&, int64_t, const OuterArguments<T>&);
LIPFUSE_INSTANTIATE(float)
LIPFUSE_INSTANTIATE(double)

}  // namespace lipfuse::cuda
