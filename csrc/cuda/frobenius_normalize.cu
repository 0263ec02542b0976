#include "launch.cuh"

namespace lipfuse::cuda {
namespace {

template <class T>
LIPFUSE_KERNEL frobenius_normalize_global(Layout layout, FrobeniusArguments<T> a) {
    frobenius_normalize_kernel(layout, a);
}
template <class T>
LIPFUSE_KERNEL frobenius_normalize_backward_global(Layout layout, FrobeniusArguments<T> a) {
    frobenius_normalize_backward_kernel(layout, a);
}

}  // namespace

template <class T>
Error frobenius_normalize(const Stream& s, int64_t rows, const FrobeniusArguments<T>& a) {
    return launch<T>(frobenius_normalize_global<T>, s, pass_demand(rows, a.n), a);
}
template <class T>
Error frobenius_normalize_backward(const Stream& s, int64_t rows, const FrobeniusArguments<T>& a) {
    return launch<T>(frobenius_normalize_backward_global<T>, s, pass_demand(rows, a.n), a);
}

#define LIPFUSE_INSTANTIATE(T)                                                                \
    template Error frobenius_normalize(const Stream&, int64_t, const FrobeniusArguments<T>&); \
    template Error frobenius_normalize_backward(const Stream&, int64_t,                       \
                                                const FrobeniusArguments<T>&);
LIPFUSE_INSTANTIATE(float)
LIPFUSE_INSTANTIATE(double)

}  // namespace lipfuse::cuda
