// Products of a matrix that take place on its smaller side.
#pragma once

#include <algorithm>
#include <cstdint>

#include "device.h"

namespace lipfuse {

// out = alpha (A B + C D); a backend that does both at once overloads this.
template <class Backend, class View, class T>
LIPFUSE_DEVICE void multiply_both(Backend& backend, View a, View b, View c, View d, T alpha,
                                  T* out) {
    auto e = backend.epilogue(out);
    e.acc[0] = alpha;
    backend.multiply(a, b, e, false);
    e.x[0] = out;
    e.x0[0] = T(1);
    backend.multiply(c, d, e, false);
}

// A matrix and which side of it is the smaller one. For a wide matrix every formula below holds
// for the transpose, so the products swap their operands: small matrices multiply from the left.
template <class Backend>
struct Sided {
    using T = typename Backend::Scalar;
    Backend& backend;
    int64_t rows, cols;
    bool left = rows < cols;
    int64_t small = std::min(rows, cols), big = std::max(rows, cols);

    // XᵀY on the small side (small x small)
    template <class Epilogue>
    LIPFUSE_DEVICE void cross(const T* x, const T* y, const Epilogue& epilogue, bool symmetric) {
        auto a = backend.view(x, rows, cols), b = backend.view(y, rows, cols);
        if (left)
            backend.multiply(a, b.transposed(), epilogue, symmetric);
        else
            backend.multiply(a.transposed(), b, epilogue, symmetric);
    }
    // The same where it is symmetric, of which half is kept.
    template <class Epilogue>
    LIPFUSE_DEVICE void cross_half(const T* x, const T* y, const Epilogue& epilogue) {
        auto a = backend.view(x, rows, cols), b = backend.view(y, rows, cols);
        if (left)
            backend.multiply_half(a, b.transposed(), epilogue);
        else
            backend.multiply_half(a.transposed(), b, epilogue);
    }
    LIPFUSE_DEVICE void cross(const T* x, const T* y, T* out, bool symmetric) {
        cross(x, y, backend.epilogue(out), symmetric);
    }
    LIPFUSE_DEVICE void gram(const T* x, T* out) { cross(x, x, out, true); }
    // out = XᵀX - I, of which half is kept
    LIPFUSE_DEVICE void deviation(const T* x, T* out) {
        auto epilogue = backend.epilogue(out);
        epilogue.diagonal[0] = T(-1);
        cross_half(x, x, epilogue);
    }
    // out = alpha X M + beta Y, M small x small; out may be Y
    LIPFUSE_DEVICE void apply(const T* x, const T* m, bool transpose_m, T* out, T alpha, T beta,
                              const T* y) {
        auto view = backend.view(m, small, small);
        apply(x, transpose_m ? view.transposed() : view, out, alpha, beta, y);
    }
    // The same with a view of M: of a symmetric one that is kept as half, or where X is not wide of a
    // skew-symmetric one.
    template <class View>
    LIPFUSE_DEVICE void apply(const T* x, const View& m, T* out, T alpha, T beta, const T* y) {
        auto a = backend.view(x, rows, cols);
        auto epilogue = backend.epilogue(out);
        epilogue.acc[0] = alpha;
        if (beta != T(0)) {
            epilogue.x[0] = y;
            epilogue.x0[0] = beta;
        }
        if (left)
            backend.multiply(m.transposed(), a, epilogue, false);
        else
            backend.multiply(a, m, epilogue, false);
    }
    // out = alpha (X M + Y N)
    LIPFUSE_DEVICE void apply_both(const T* x, const T* m, const T* y, const T* n, T alpha,
                                   T* out) {
        auto a = backend.view(x, rows, cols), b = backend.view(m, small, small);
        auto c = backend.view(y, rows, cols), d = backend.view(n, small, small);
        if (left)
            multiply_both(backend, b.transposed(), a, d.transposed(), c, alpha, out);
        else
            multiply_both(backend, a, b, c, d, alpha, out);
    }
};

}  // namespace lipfuse
