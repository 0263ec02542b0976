// A polynomial of a symmetric matrix, in as few products as its degree allows.
#pragma once

#include <cmath>
#include <cstdint>

#include "device.h"
#include "minimax.h"
#include "separable.h"

namespace lipfuse {

// P = p(S / high) / sqrt(high) for S = I + R. R is what is kept of S: near an orthogonal matrix it
// holds the digits that S would lose. Both are kept as half. `result` and the second array of scratch
// may change places.
// third: one more array of scratch, or null: then one is allocated if need be.
// factor: where F of separable.h goes, for singular values in [l, 1] times the root of high, kept as half as
// well; or null. It may be the first array of scratch.
template <class Backend, class T>
LIPFUSE_DEVICE void evaluate(Backend& backend, const Minimax& p, double high, const T* r, int64_t n,
                             T** result, T** scratch, T* third, T* factor = nullptr, double l = 0) {
    T* out = *result;
    // E = alpha R + gamma I, spelled out in every epilogue below.
    const double low = p.l * p.l, unit = 1 / std::sqrt(high);
    const double alpha = 2 / (high * (1 - low)), gamma = alpha - (1 + low) / (1 - low);
    auto half = [&](const T* x) { return backend.half(x, n); };
    // The factor is to_root P + to_square E² + to_r R + to_one I: the last product has all of them.
    const bool factors = Backend::separates && factor;
    double to_root = 0, to_square = 0, to_r = 0, to_one = 0;
    if (factors) {
        const double mid = (1 + low) / 2, radius = (1 - low) / 2;  // S / high = mid I + radius E
        const Separable s(l);
        to_root = s.f[1] / unit;
        to_square = s.f[3] * radius * radius;
        to_r = (s.f[2] + 2 * mid * s.f[3]) / high;
        to_one = s.f[0] - s.f[3] * mid * mid + to_r;
    }
    // Makes the epilogue one of P = unit (acc AB + x0 R + diagonal I), and of the factor if one is wanted:
    // all but its E². Returns which of the outputs P is: the first, which may replace an X, is the factor.
    const auto outputs = [&](auto& e, double acc, double x0, double diagonal) {
        const int at = factors ? 1 : 0;
        if (factors) {
            e.outputs = 2;
            e.out[1] = e.out[0];
            e.out[0] = factor;
            e.acc[0] = T(to_root * unit * acc);
            e.x0[0] = T(to_root * unit * x0 + to_r);
            e.diagonal[0] = T(to_root * unit * diagonal + to_one);
        }
        e.acc[at] = T(unit * acc);
        e.x0[at] = T(unit * x0);
        e.diagonal[at] = T(unit * diagonal);
        return at;
    };
    if (p.degree == 1) {
        const double x0 = p.c[1] * alpha, diagonal = p.c[0] + p.c[1] * gamma;
        backend.combine(T(unit * x0), r, n, T(unit * diagonal), out);
        // So close to an orthogonal matrix E², times the square of the interval's length, is nothing.
        if (factors)
            backend.combine(T(to_root * unit * x0 + to_r), r, n,
                            T(to_root * unit * diagonal + to_one), factor);
        return;
    }
    if (p.degree == 2) {  // E² = alpha² R² + 2 alpha gamma R + gamma² I
        auto e = backend.epilogue(out);
        e.x[0] = r;
        outputs(e, p.c[2] * alpha * alpha, 2 * p.c[2] * alpha * gamma + p.c[1] * alpha,
                p.c[2] * gamma * gamma + p.c[1] * gamma + p.c[0]);
        if (factors) {
            e.acc[0] += T(to_square * alpha * alpha);
            e.x0[0] += T(to_square * 2 * alpha * gamma);
            e.diagonal[0] += T(to_square * gamma * gamma);
        }
        backend.multiply_half(half(r), half(r), e);
        return;
    }
    auto mark = backend.mark();
    if (!third && (p.degree > 4 || factors)) third = backend.allocate(n * n);
    // Of degree 4, E² is an operand of the product whose result the factor is.
    T* e2 = factors && p.degree == 4 ? third : scratch[0];
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
        outputs(last, 1, p.c[1] * alpha, p.c[0] + p.c[1] * gamma);
        if (factors) {
            last.x[1] = e2;
            last.x1[0] = T(to_square);
        }
        backend.multiply_half(half(e2), half(m), last);
        backend.release(mark);
        return;
    }
    // y = E² M gives both factors: y + c E² + d E + f I and y + e E². M is read as an operand while
    // they are written, so the result takes its place only afterwards.
    T *left = out, *right = third;
    auto second = backend.epilogue(left);
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
    const int at = outputs(last, 1, p.h * alpha, p.i + p.h * gamma);
    last.x[1] = e2;
    if (factors) last.x1[0] = T(to_root * unit * p.g + to_square);
    last.x1[at] = T(unit * p.g);
    backend.multiply_half(half(left), half(right), last);
    exchange(*result, scratch[1]);
    backend.release(mark);
}

}  // namespace lipfuse
