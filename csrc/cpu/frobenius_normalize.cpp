#include "checks.h"

namespace lipfuse::cpu {
namespace {

// Calls f(backend, row): a single row has all threads, several share them out.
template <class T, class F>
void for_each_row(int64_t rows, int64_t n, F f) {
    in_team(pass_work * double(rows) * double(n), [&](Parallel team) {
        const int tasks = static_cast<int>(std::min<int64_t>(team.threads, rows));
        team.for_each(tasks, [&](int t) {
            Backend<T> backend(rows == 1 ? team : Parallel{});
            for (int64_t r = rows * t / tasks; r < rows * (t + 1) / tasks; ++r) f(backend, r);
        });
    });
}

// Every row of (..., n) is divided by its Euclidean norm; rows below eps by eps, so that a zero row
// stays zero.
std::tuple<Tensor, Tensor> frobenius_normalize(const Tensor& weight, double eps, double scale) {
    const Rows rows(weight);
    const int64_t n = rows.n;
    const Tensor w = packed(weight);
    Tensor out = make(w, sizes_of(w));
    Tensor norm = make(w, batch_sizes(w, {}, 1));
    if (n == 0) return {out, torch::stable::zero_(norm)};
    by_dtype(w, [&](auto zero) {
        using T = decltype(zero);
        for_each_row<T>(rows.count, n, [&](Backend<T>& backend, int64_t r) {
            const T* in = data<T>(w) + r * n;
            const double size = std::sqrt(backend.dot(n, in, in));
            data<T>(norm)[r] = T(size);
            backend.axpby(n, T(scale / (size < eps ? eps : size)), in, T(0), nullptr,
                          data<T>(out) + r * n);
        });
    });
    return {out, norm};
}

// (c G - <G, Ŵ> Ŵ / c) / ‖W‖
Tensor frobenius_normalize_backward(const Tensor& grad, const Tensor& normalized,
                                    const Tensor& norm, double eps, double scale) {
    const Tensor g = packed(grad), w = packed(normalized), size = packed(norm);
    const Rows rows = check_rows(g, w, size);
    const int64_t n = rows.n;
    Tensor out = make(g, sizes_of(g));
    by_dtype(g, [&](auto zero) {
        using T = decltype(zero);
        for_each_row<T>(rows.count, n, [&](Backend<T>& backend, int64_t r) {
            const T* gi = data<T>(g) + r * n;
            const T* wi = data<T>(w) + r * n;
            const double s = double(data<T>(size)[r]);
            const double along = s < eps ? 0.0 : -backend.dot(n, gi, wi) / (scale * s);
            backend.axpby(n, T(scale / (s < eps ? eps : s)), gi, T(along), wi,
                          data<T>(out) + r * n);
        });
    });
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lipfuse, CPU, m) {
    m.impl("frobenius_normalize", TORCH_BOX(&frobenius_normalize));
    m.impl("frobenius_normalize_backward", TORCH_BOX(&frobenius_normalize_backward));
}

}  // namespace lipfuse::cpu
