// A polynomial of a symmetric matrix, in as few products as its degree allows.
#pragma once

#include <cmath>
#include <cstdint>

#include "device.h"
#include "minimax.h"

namespace lipfuse {

// P = p(S / high) / sqrt(high) for S = I + R. R is what is kept of S: near an orthogonal matrix it
// holds the digits that S would lose. Both are kept as half. `result` and the two arrays of scratch may
// change places.
template <class Backend, class T>
LIPFUSE_DEVICE void evaluate(Backend& backend, const Minimax& p, double high, const T* r, int64_t n,
                             T** result, T** scratch) {
    T* out = *result;
    // E = alpha R + gamma I, spelled out in every epilogue below.
    const double low = p.l * p.l, unit = 1 / std::sqrt(high);
    const double alpha = 2 / (high * (1 - low)), gamma = alpha - (1 + low) / (1 - low);
    auto half = [&](const T* x) { return backend.half(x, n); };
    if (p.degree == 1) {
        backend.combine(T(unit * p.c[1] * alpha), r, n, T(unit * (p.c[0] + p.c[1] * gamma)), out);
        return;
    }
    if (p.degree == 2) {  // E² = alpha² R² + 2 alpha gamma R + gamma² I
        auto e = backend.epilogue(out);
        e.x[0] = r;
        e.acc[0] = T(unit * p.c[2] * alpha * alpha);
        e.x0[0] = T(unit * (2 * p.c[2] * alpha * gamma + p.c[1] * alpha));
        e.diagonal[0] = T(unit * (p.c[2] * gamma * gamma + p.c[1] * gamma + p.c[0]));
        backend.multiply_half(half(r), half(r), e);
        return;
    }
    T* e2 = scratch[0];
    T* m = scratch[1];
    // First product: E² and, from the same accumulator, q2 E² + q1 E + q0 I.
    const double q2 = p.degree == 4 ? p.c[4] : p.a, q1 = p.degree == 4 ? p.c[3] : p.b,
                 q0 = p.degree == 4 ? p.c[2] : 0;
    auto first = backend.epilogue(e2);
    first.outputs = 2;
    first.out[1] = m;
    first.x[0] = r;
    first.acc[0] = T(alpha * alpha);
    first.x0[0] = T(2 * alpha * gamma);
    first.diagonal[0] = T(gamma * gamma);
    first.acc[1] = T(q2 * alpha * alpha);
    first.x0[1] = T(2 * q2 * alpha * gamma + q1 * alpha);
    first.diagonal[1] = T(q2 * gamma * gamma + q1 * gamma + q0);
    backend.multiply_half(half(r), half(r), first);
    auto last = backend.epilogue(out);
    last.x[0] = r;
    if (p.degree == 4) {  // E² (c4 E² + c3 E + c2) + c1 E + c0
        last.acc[0] = T(unit);
        last.x0[0] = T(unit * p.c[1] * alpha);
        last.diagonal[0] = T(unit * (p.c[0] + p.c[1] * gamma));
        backend.multiply_half(half(e2), half(m), last);
        return;
    }
    // y = E² M gives both factors: y + c E² + d E + f I and y + e E². M is read as an operand while
    // they are written, so the result takes its place only afterwards.
    auto mark = backend.mark();
    T* right = backend.allocate(n * n);
    T* factor = out;
    auto second = backend.epilogue(factor);
    second.outputs = 2;
    second.out[1] = right;
    second.x[0] = e2;
    second.x[1] = r;
    second.x0[0] = T(p.c2);
    second.x1[0] = T(p.d * alpha);
    second.diagonal[0] = T(p.d * gamma + p.f);
    second.x0[1] = T(p.e);
    backend.multiply_half(half(e2), half(m), second);
    last.out[0] = m;
    last.x[1] = e2;
    last.acc[0] = T(unit);
    last.x1[0] = T(unit * p.g);
    last.x0[0] = T(unit * p.h * alpha);
    last.diagonal[0] = T(unit * (p.i + p.h * gamma));
    backend.multiply_half(half(factor), half(right), last);
    exchange(*result, scratch[1]);
    backend.release(mark);
}

}  // namespace lipfuse
