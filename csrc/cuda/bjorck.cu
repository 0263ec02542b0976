#include "launch.cuh"

namespace lipfuse::cuda {
namespace {

template <class T>
LIPFUSE_KERNEL bjorck_global(Layout layout, BjorckArguments<T> a) {
    bjorck_kernel(layout, a);
}
template <class T>
LIPFUSE_KERNEL spectral_bjorck_global(Layout layout, PowerArguments<T> p, BjorckArguments<T> a) {
    spectral_bjorck_kernel(layout, p, a);
}
template <class T>
LIPFUSE_KERNEL bjorck_backward_global(Layout layout, BjorckBackwardArguments<T> a) {
    bjorck_backward_kernel(layout, a);
}

}  // namespace

template <class T>
Error bjorck(const Stream& s, int64_t batch, const BjorckArguments<T>& a) {
    return launch<T>(bjorck_global<T>, s, bjorck_demand(batch, a.rows, a.cols, false), a);
}
template <class T>
Error spectral_bjorck(const Stream& s, int64_t batch, const PowerArguments<T>& p,
                      const BjorckArguments<T>& a) {
    return launch<T>(spectral_bjorck_global<T>, s, bjorck_demand(batch, a.rows, a.cols, true), p,
                     a);
}
template <class T>
Error bjorck_backward(const Stream& s, int64_t batch, const BjorckBackwardArguments<T>& a) {
    return launch<T>(bjorck_backward_global<T>, s, bjorck_backward_demand(batch, a.rows, a.cols),
                     a);
}

#define LIPFUSE_INSTANTIATE(T)                                                       \
    template Error bjorck(const Stream&, int64_t, const BjorckArguments<T>&);        \
    template Error spectral_bjorck(const Stream&, int64_t, const PowerArguments<T>&, \
                                   const BjorckArguments<T>&);                       \
    template Error bjorck_backward(const Stream&, int64_t, const BjorckBackwardArguments<T>&);
LIPFUSE_INSTANTIATE(float)
LIPFUSE_INSTANTIATE(double)

}  // namespace lipfuse::cuda
