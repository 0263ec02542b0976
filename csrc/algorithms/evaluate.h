// A polynomial of a symmetric matrix, in as few products as its degree allows.
#pragma once

#include <cmath>
#include <cstdint>

#include "device.h"
#include "minimax.h"
#include "separable.h"

namespace lipfuse {

// The factor of separable.h as root P + square E² + r R + one I, for the E below.
struct FactorTerms {
    double root, square, r, one;

    LIPFUSE_DEVICE FactorTerms(double l, double low, double high) {
        const double mid = (1 + low) / 2, radius = (1 - low) / 2;  // S / high = mid I + radius E
        const Separable s(l);
        root = s.f[1] * std::sqrt(high);
        square = s.f[3] * radius * radius;
        r = (s.f[2] + 2 * mid * s.f[3]) / high;
        one = s.f[0] - s.f[3] * mid * mid + r;
    }
};

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
    const bool factors = factor != nullptr;
    // Makes the epilogue one of P = unit (acc AB + x0 R + x1 E² + diagonal I), and of the factor if one is
    // wanted, which then is the first output: that may replace an X. Returns what of E² is in the factor.
    const auto outputs = [&](auto& e, double acc, double x0, double x1, double diagonal) {
        int at = 0;
        double square = 0;
        if (factors) {
            const FactorTerms f(l, low, high);
            const double root = f.root * unit;
            e.outputs = 2;
            e.out[1] = e.out[0];
            e.out[0] = factor;
            e.acc[0] = T(root * acc);
            e.x0[0] = T(root * x0 + f.r);
            e.x1[0] = T(root * x1 + f.square);
            e.diagonal[0] = T(root * diagonal + f.one);
            square = f.square;
            at = 1;
        }
        e.acc[at] = T(unit * acc);
        e.x0[at] = T(unit * x0);
        e.x1[at] = T(unit * x1);
        e.diagonal[at] = T(unit * diagonal);
        return square;
    };
    if (p.degree == 1) {
        const double x0 = unit * p.c[1] * alpha, diagonal = unit * (p.c[0] + p.c[1] * gamma);
        backend.combine(T(x0), r, n, T(diagonal), out);
        if (factors) {  // So close to an orthogonal matrix E², times its small coefficient, is nothing.
            const FactorTerms f(l, low, high);
            backend.combine(T(f.root * x0 + f.r), r, n, T(f.root * diagonal + f.one), factor);
        }
        return;
    }
    if (p.degree == 2) {  // E² = alpha² R² + 2 alpha gamma R + gamma² I
        auto e = backend.epilogue(out);
        e.x[0] = r;
        const double square =
            outputs(e, p.c[2] * alpha * alpha, 2 * p.c[2] * alpha * gamma + p.c[1] * alpha, 0,
                    p.c[2] * gamma * gamma + p.c[1] * gamma + p.c[0]);
        if (factors) {
            e.acc[0] += T(square * alpha * alpha);
            e.x0[0] += T(square * 2 * alpha * gamma);
            e.x1[0] = T(0);
            e.diagonal[0] += T(square * gamma * gamma);
        }
        backend.multiply_half(half(r), half(r), e);
        return;
    }
    auto mark = backend.mark();
    // Of degree 4, E² is an operand of the product whose result the factor is.
    const bool elsewhere = p.degree == 4 && factor == scratch[0];
    if (!third && (p.degree > 4 || elsewhere)) third = backend.allocate(n * n);
    T* e2 = elsewhere ? third : scratch[0];
    T* m = scratch[1];
    // First product: E² and, from the same accumulator, q2 E² + q1 E + q0 I. All epilogues come before it:
    // afterwards nothing need be kept of what they are made of.
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
    auto last = backend.epilogue(out);
    last.x[0] = r;
    if (p.degree == 4) {  // E² (c4 E² + c3 E + c2) + c1 E + c0
        outputs(last, 1, p.c[1] * alpha, 0, p.c[0] + p.c[1] * gamma);
        if (factors) last.x[1] = e2;
        backend.multiply_half(half(r), half(r), first);
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
    last.out[0] = m;
    last.x[1] = e2;
    outputs(last, 1, p.h * alpha, p.g, p.i + p.h * gamma);
    backend.multiply_half(half(r), half(r), first);
    backend.multiply_half(half(e2), half(m), second);
    backend.multiply_half(half(left), half(right), last);
    exchange(*result, scratch[1]);
    backend.release(mark);
}

}  // namespace lipfuse
