// The polar factor Q of W = Q H (Q with orthonormal columns or rows, H symmetric positive), which
// is what Björck's iteration converges to, and the exact gradient of W -> Q.
//
// Everything but the first and the last product happens on the smaller side: with S = WᵀW, a
// polynomial p with sqrt(x) p(x) = 1 on the spectrum of S gives Q = W p(S). One polynomial does
// where W is nearly orthogonal; wide spectra take several stages, rational ones first where the
// backend can invert, each followed by a fresh S, which also certifies what was reached: the distance
// of S = QᵀQ from I is measured, never assumed.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "device.h"
#include "cholesky.h"
#include "halley.h"
#include "minimax.h"
#include "mirror.h"
#include "spectrum.h"

namespace lipfuse {

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
    LIPFUSE_DEVICE void cross(const T* x, const T* y, T* out, bool symmetric) {
        cross(x, y, backend.epilogue(out), symmetric);
    }
    LIPFUSE_DEVICE void gram(const T* x, T* out) { cross(x, x, out, true); }
    // out = XᵀX - I
    LIPFUSE_DEVICE void deviation(const T* x, T* out) {
        auto epilogue = backend.epilogue(out);
        epilogue.diagonal[0] = T(-1);
        cross(x, x, epilogue, true);
    }
    // out = alpha X M + beta Y, M small x small; out may be Y
    LIPFUSE_DEVICE void apply(const T* x, const T* m, bool transpose_m, T* out, T alpha, T beta,
                              const T* y) {
        auto a = backend.view(x, rows, cols), b = backend.view(m, small, small);
        auto epilogue = backend.epilogue(out);
        epilogue.acc[0] = alpha;
        if (beta != T(0)) {
            epilogue.x[0] = y;
            epilogue.x0[0] = beta;
        }
        if (left)
            backend.multiply(transpose_m ? b : b.transposed(), a, epilogue, false);
        else
            backend.multiply(a, transpose_m ? b.transposed() : b, epilogue, false);
    }
};

// P = p(S / high) / sqrt(high) for S = I + R. R is what is kept of S: near an orthogonal matrix it
// holds the digits that S would lose. `result` and the two arrays of scratch may change places.
template <class Backend, class T>
LIPFUSE_DEVICE void evaluate(Backend& backend, const Minimax& p, double high, const T* r, int64_t n,
                             T** result, T** scratch) {
    T* out = *result;
    // E = alpha R + gamma I, spelled out in every epilogue below.
    const double low = p.l * p.l, unit = 1 / std::sqrt(high);
    const double alpha = 2 / (high * (1 - low)), gamma = alpha - (1 + low) / (1 - low);
    auto view = [&](const T* x) { return backend.view(x, n, n); };
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
        backend.multiply(view(r), view(r), e, true);
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
    backend.multiply(view(r), view(r), first, true);
    auto last = backend.epilogue(out);
    last.x[0] = r;
    if (p.degree == 4) {  // E² (c4 E² + c3 E + c2) + c1 E + c0
        last.acc[0] = T(unit);
        last.x0[0] = T(unit * p.c[1] * alpha);
        last.diagonal[0] = T(unit * (p.c[0] + p.c[1] * gamma));
        backend.multiply(view(e2), view(m), last, true);
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
    backend.multiply(view(e2), view(m), second, true);
    last.out[0] = m;
    last.x[1] = e2;
    last.acc[0] = T(unit);
    last.x1[0] = T(unit * p.g);
    last.x0[0] = T(unit * p.h * alpha);
    last.diagonal[0] = T(unit * (p.i + p.h * gamma));
    backend.multiply(view(factor), view(right), last, true);
    exchange(*result, scratch[1]);
    backend.release(mark);
}

// Whether the following products may leave errors that a later stage corrects: a backend that has
// quicker ones for that overloads this.
template <class Backend>
LIPFUSE_DEVICE void allow_rough_products(Backend&, bool) {}

struct PolarInfo {
    double residual = 0;       // ‖I - QᵀQ‖_F
    double low = 0, high = 0;  // estimated range of the singular values of W
    double bound = 0;          // proven: no singular value of Q exceeds it
    int stages = 0;
};

constexpr int polar_most_stages = 18;

// What a stage did to small singular values, to tell theirs from what became of them.
struct Lift {
    Halley f;                           // on singular values divided by `size`
    double l = 0, least = 0, size = 1;  // [l, 1] was led to [least, 1]

    LIPFUSE_DEVICE double undo(double y) const {
        if (y >= least) return l * size;  // or more
        return (f.c > 0 ? f.inverse(y, l) : std::fmin(l, y / f.a)) * size;
    }
};
// Ratios of the smallest to the largest singular value between which an inverse pays: above them a
// polynomial does as well, below them rounding in the inverse would show.
LIPFUSE_DEVICE constexpr double polar_rational_from = 0.01, polar_rational_below = 0.22;
LIPFUSE_DEVICE constexpr double polar_backward_rational_from = 5e-5;
LIPFUSE_DEVICE constexpr double polar_gradient_floor = 1e-4;
LIPFUSE_DEVICE constexpr double polar_overshoot = 1e-5;

// q <- scale * Q. Singular values of Q stay below 1 + polar_overshoot + rounding.
// inverse_root (small x small, may be null): (WᵀW)^(-1/2), which the gradient of a matrix that is
// not square needs.
template <class Backend>
LIPFUSE_DEVICE PolarInfo polar(Backend& backend, const typename Backend::Scalar* w, int64_t rows,
                               int64_t cols, double tolerance, double scale,
                               typename Backend::Scalar* q,
                               typename Backend::Scalar* inverse_root) {
    using T = typename Backend::Scalar;
    constexpr double rounding = std::numeric_limits<T>::epsilon();
    Sided<Backend> side{backend, rows, cols};
    const int64_t n = side.small, area = rows * cols;
    const T* none = nullptr;
    PolarInfo info;
    auto mark = backend.mark();

    const double largest = backend.largest(w, area);
    if (!(largest > 0) || !std::isfinite(largest)) {
        // Zero stays zero; NaN or Inf spread to the whole result, visibly.
        backend.fill(
            q, area,
            largest > 0 || largest != largest ? std::numeric_limits<T>::quiet_NaN() : T(0));
        if (inverse_root) backend.fill(inverse_root, n * n, T(0));
        info.residual =
            largest == 0 ? std::sqrt(double(n)) : std::numeric_limits<double>::quiet_NaN();
        return info;
    }
    // R = WᵀW - I keeps the digits of WᵀW only if that is not far below I, and squares of tiny or
    // huge elements leave the range of T. A power of two brings the singular values to about 1.
    double unit = 1;
    const T* source = w;
    const double typical = largest / std::sqrt(double(n));
    if (typical < 0.5 || typical > 2) {
        unit = std::ldexp(1.0, -std::ilogb(typical));
        backend.axpby(area, T(unit), w, T(0), none, q);
        source = q;
    }

    T* r = backend.allocate(n * n);
    T* p = backend.allocate(n * n);
    T* scratch[2] = {backend.allocate(n * n), backend.allocate(n * n)};
    T* spare = nullptr;  // the other buffer of the growing product of a wide spectrum
    side.deviation(source, r);
    info.residual = std::sqrt(backend.dot(n * n, r, r));
    // What rounding alone leaves of ‖I - QᵀQ‖_F, and what is asked of each direction: the
    // residual adds up over n of them, and no singular value may exceed 1 by more than `overshoot`.
    const double floor = 0.5 * rounding * double(n);
    const double goal = std::max(tolerance, floor);
    const double per_direction =
        std::min(0.5 * tolerance / std::sqrt(double(n)), 0.5 * polar_overshoot);
    // Done: the residual is small, and in no single direction does the result exceed 1 noticeably.
    auto reached = [&] {
        if (info.residual > goal) return false;
        const double overshoot = 2 * std::max(std::min(tolerance, polar_overshoot), floor);
        return info.residual <= overshoot ||
               largest_ritz_value(backend, r, n, 8) <= 0.8 * overshoot;
    };
    // A singular value this far below the largest is rounding noise; it is not blown up to 1.
    const double most_gain = 1 / (8 * rounding * std::sqrt(double(n)));
    double gain = 1, covered = 1, top = 1;  // the last stage led to [covered, top]
    Lift lifts[polar_most_stages];
    bool polished = false, doubtful = false;
    while (!reached() && info.stages < polar_most_stages && !polished) {
        Interval range = spectrum(backend, r, n, n < 256 ? 10 : 16);
        // A start vector in the null space sees nothing; the Frobenius norm bounds what there is.
        if (!(range.high > 0)) range.high = 1 + info.residual;
        range.low = std::max(range.low, 4 * rounding * range.high);
        double smallest = std::sqrt(range.low);
        for (int i = info.stages; i-- > 0;) smallest = lifts[i].undo(smallest);
        smallest /= unit;
        if (info.stages == 0) {
            info.low = smallest;
            info.high = std::sqrt(range.high) / unit;
        } else if (range.low < 0.5 || doubtful) {
            // Earlier stages have set the small singular values apart, so this sees them better.
            info.low = std::min(info.low, smallest);
        }
        // What this stage does to singular values near zero, and to what ends of [l, 1] it leads.
        double l = std::sqrt(range.low / range.high), rise = 1, least = l, most = 1;
        bool finest = false;
        if (gain > most_gain) {
            // What cannot be lifted any further stays; the others are brought to 1. They fill
            // [covered, top], which the estimate is too coarse to tell, unless some escaped.
            if (range.seen <= top * top) range.high = std::min(range.high, top * top);
            l = covered / top;
        }
        const double accurate = Halley::least(0.6 * tolerance, rounding);
        const bool rational = Backend::inverts && l > std::max(polar_rational_from, accurate) &&
                              l < polar_rational_below && gain <= most_gain;
        if constexpr (Backend::inverts) {
            if (rational) {
                // So few steps cannot see how small the smallest singular values are at first.
                doubtful = info.stages == 0 && l < 0.06;
                if (doubtful) l = std::max(accurate, 4e-3);
                const Halley f(l);
                lifts[info.stages] = {f, l, f(l), std::sqrt(range.high)};
                const double root = std::sqrt(range.high);
                backend.combine(T(f.c / range.high), r, n, T(1 + f.c / range.high), p);
                backend.invert(p, n, n);
                backend.combine(T(f.lift / root), p, n, T(f.b / f.c / root), p);
                rise = f.a;
                least = f(l);
            }
        }
        if (!rational) {
            // A smaller l would hardly lift small singular values faster, and spread the others.
            l = std::max(l, 0.02);
            const Minimax& poly = choose_polynomial(backend, l, per_direction);
            allow_rough_products(backend, poly.error > per_direction);
            evaluate(backend, poly, range.high, static_cast<const T*>(r), n, &p, scratch);
            rise = poly.at_zero();
            least = 1 - poly.error;
            most = 1 + poly.error;
            finest = poly.error <= per_direction;
            lifts[info.stages] = {Halley::line(rise), l, least, std::sqrt(range.high)};
        }
        if (inverse_root) {
            if (info.stages == 0) {
                backend.axpby(n * n, T(unit), p, T(0), none, inverse_root);
            } else {
                if (!spare) spare = backend.allocate(n * n);
                backend.multiply(backend.view(inverse_root, n, n), backend.view(p, n, n), spare,
                                 true);
                backend.axpby(n * n, T(1), spare, T(0), none, inverse_root);
            }
        }
        auto stage = backend.mark();
        if (source == q) {  // W p(S) cannot be written over W
            T* copy = backend.allocate(area);
            backend.axpby(area, T(1), q, T(0), none, copy);
            source = copy;
        }
        side.apply(source, p, false, q, T(1), T(0), none);
        allow_rough_products(backend, false);
        backend.release(stage);
        source = q;
        ++info.stages;
        if (gain > most_gain) polished = finest;
        gain *= rise;
        covered = least;
        top = most * (1 + 4 * rounding);
        const double before = info.residual;
        if (side.big >= 2 * n && l > 0.3) {
            // p S p costs less than the Gram matrix of a tall result. Only where S is well
            // conditioned: its rounding errors are multiplied by p².
            auto e = backend.epilogue(scratch[0]);  // S p = R p + p
            e.x[0] = p;
            e.x0[0] = T(1);
            backend.multiply(backend.view(r, n, n), backend.view(p, n, n), e, true);
            e = backend.epilogue(r);
            e.diagonal[0] = T(-1);
            backend.multiply(backend.view(p, n, n), backend.view(scratch[0], n, n), e, true);
        } else {
            side.deviation(q, r);
        }
        info.residual = std::sqrt(backend.dot(n * n, r, r));
        if (!(info.residual < 0.7 * before) && l > 0.5 && gain < most_gain)
            break;  // rounding level
    }
    if (info.stages == 0) {  // orthogonal to begin with
        if (source != q) backend.axpby(area, T(1), source, T(0), none, q);
        if (inverse_root) {
            backend.fill(inverse_root, n * n, T(0));
            backend.add_diagonal(inverse_root, n, T(unit));
        }
        info.low = info.high = 1 / unit;
    }
    // No eigenvalue of QᵀQ exceeds 1 + ‖QᵀQ - I‖_F. Where a null space keeps that norm large, a
    // Cholesky factorisation proves what the polynomials promise.
    double excess = info.residual;
    if (excess > 1e-2)
        for (double x = 4 * floor; x < excess; x = std::max(4 * x, 1e-5))
            if (lies_below(backend, r, n, x)) {
                excess = x;
                break;
            }
    info.bound = std::sqrt(1 + excess + 2 * rounding * std::sqrt(double(n)));
    // Reached: singular values exceed 1 by no more than the goal allows. Else divide by the bound.
    const double divisor = info.residual <= goal ? 1 : info.bound;
    info.bound /= divisor;
    if (scale != divisor) backend.axpby(area, T(scale / divisor), q, T(0), none, q);
    backend.release(mark);
    return info;
}

// Steps towards a well-conditioned HK + KH = C, for a symmetric H with eigenvalues in [l, 1] and a
// skew-symmetric C. An odd function f of M = [H C; 0 -H] is [f(H) C'; 0 -f(H)], and has the same
// solution K: it is what makes both blocks of sign(M) = [I 2K; 0 -I]. So whatever lifts the small
// eigenvalues of H does, carried out on M. Both steps return the new l; c and h swap places with the
// buffers given.

// Halley's f: with N = (I + c H²)⁻¹, f(H) = (b/c) H + lift H N and C' = (b/c) C + lift N (C + c HCH) N.
template <class Backend, class T>
LIPFUSE_DEVICE double rational_step(Backend& backend, double l, double accuracy, int64_t n, T** c,
                                    T** h, T** spare) {
    constexpr double rounding = std::numeric_limits<T>::epsilon();
    const Halley f(std::max(l, Halley::least(accuracy, rounding)));
    auto view = [&](const T* x) { return backend.view(x, n, n); };
    auto product = [&](const T* x, const T* y, T* out, double factor, const T* z, double keep,
                       Mirror mirror) {
        auto e = backend.epilogue(out);
        e.acc[0] = T(factor);
        e.x[0] = z;
        e.x0[0] = T(keep);
        backend.multiply(view(x), view(y), e, mirror);
    };
    auto mark = backend.mark();
    T* inverse = backend.allocate(n * n);
    T* y = backend.allocate(n * n);
    auto e = backend.epilogue(inverse);
    e.acc[0] = T(f.c);
    e.diagonal[0] = T(1);
    backend.multiply(view(*h), view(*h), e, true);
    backend.invert(inverse, n, n);
    product(*h, *c, y, 1, nullptr, 0, Mirror::none);
    product(y, *h, *spare, f.c, *c, 1, Mirror::skew);
    product(inverse, *spare, y, 1, nullptr, 0, Mirror::none);
    product(y, inverse, *spare, f.lift, *c, f.b / f.c, Mirror::skew);
    exchange(*c, *spare);
    product(*h, inverse, *spare, f.lift, *h, f.b / f.c, Mirror::symmetric);
    exchange(*h, *spare);
    backend.release(mark);
    return f(l);
}

// A cubic, which rounding hardly notices: f(H) = a H - b H³ and C' = a C - b (H²C - HCH + CH²). Three
// products lift the smallest eigenvalue by up to 2.6.
template <class Backend, class T>
LIPFUSE_DEVICE double cubic_step(Backend& backend, double l, int64_t n, T** c, T** h, T** spare,
                                 T* product) {
    const Minimax& p = choose_cubic(backend, std::max(l, 0.1));
    const double low = p.l * p.l, top = 1 + p.error;
    const double a = (p.c[0] - p.c[1] * (1 + low) / (1 - low)) / top;
    const double b = -2 * p.c[1] / (1 - low) / top;
    auto view = [&](const T* x) { return backend.view(x, n, n); };
    auto mark = backend.mark();
    T* y = backend.allocate(n * n);
    backend.multiply(view(*h), view(*c), y, false);  // Y = HC
    backend.multiply(view(*h), view(y), product, false);
    auto e = backend.epilogue(product);  // HY - YH / 2; its skew part is what b multiplies
    e.acc[0] = T(-0.5);
    e.x[0] = product;
    e.x0[0] = T(1);
    backend.multiply(view(y), view(*h), e, false);
    backend.skew(product, n, y);
    backend.axpby(n * n, T(a), *c, T(-b), y, *c);
    backend.multiply(view(*h), view(*h), y, true);
    e = backend.epilogue(*spare);
    e.acc[0] = T(-b);
    e.x[0] = *h;
    e.x0[0] = T(a);
    backend.multiply(view(*h), view(y), e, true);
    exchange(*h, *spare);
    backend.release(mark);
    const double least = (1 - p.error) / top;
    return l < p.l ? std::min(least, l * (a - b * l * l)) : least;
}

// (H + l I)^(-1) for a symmetric H with eigenvalues in [0, 1]: by the backend's inverse, or by Newton's
// iteration X <- X (2 I - (H + l I) X), until rounding lets it get no better. h is overwritten.
template <class Backend, class T>
LIPFUSE_DEVICE void damped_inverse(Backend& backend, T* h, double l, int64_t n, T* x) {
    const T* none = nullptr;
    backend.add_diagonal(h, n, T(l));
    if constexpr (Backend::inverts) {
        backend.axpby(n * n, T(1), h, T(0), none, x);
        backend.invert(x, n, n);
        return;
    }
    auto mark = backend.mark();
    T* y = backend.allocate(n * n);
    T* current = backend.allocate(n * n);
    T* next = backend.allocate(n * n);
    backend.fill(current, n * n, T(0));
    backend.add_diagonal(current, n, T(0.9));  // short of 1 / largest, which is only estimated
    double least = std::numeric_limits<double>::infinity();
    for (int step = 0; step < 48; ++step) {
        auto e = backend.epilogue(y);  // (H + l I) X - I
        e.diagonal[0] = T(-1);
        backend.multiply(backend.view(h, n, n), backend.view(current, n, n), e, true);
        const double error = std::sqrt(backend.dot(n * n, y, y));
        if (!(error < least)) break;
        backend.axpby(n * n, T(1), current, T(0), none, x);
        if (error < 1e-4) break;
        least = error;
        e = backend.epilogue(next);  // X - X ((H + l I) X - I)
        e.acc[0] = T(-1);
        e.x[0] = current;
        e.x0[0] = T(1);
        backend.multiply(backend.view(current, n, n), backend.view(y, n, n), e, true);
        exchange(current, next);
    }
    backend.release(mark);
}

// The gradient of the polar factor. With A = QᵀG and H = QᵀW, K solves HK + KH = A - Aᵀ and
//   dL/dW = Q K + (G - Q A) H^(-1),
// whatever the forward did. The operator K -> HK + KH has eigenvalues h_i + h_j, known from the
// forward's estimate, so Chebyshev's iteration needs one product a step and no inner product; wide
// spectra are narrowed first. Singular values below polar_gradient_floor times the largest count
// as that, which bounds a gradient that is unbounded in theory.
// The tangent gradient takes H = I.
template <class Backend>
LIPFUSE_DEVICE void polar_backward(Backend& backend, const typename Backend::Scalar* g,
                                   const typename Backend::Scalar* w,
                                   const typename Backend::Scalar* q,
                                   const typename Backend::Scalar* inverse_root, int64_t rows,
                                   int64_t cols, double scale, double low, double high,
                                   double tolerance, bool tangent, typename Backend::Scalar* out) {
    using T = typename Backend::Scalar;
    Sided<Backend> side{backend, rows, cols};
    const int64_t n = side.small, area = rows * cols;
    if (!(high > 0)) {  // W = 0: no direction is better than another
        backend.fill(out, area, high == 0 ? T(0) : std::numeric_limits<T>::quiet_NaN());
        return;
    }
    const bool square = rows == cols;
    const T* none = nullptr;
    auto mark = backend.mark();
    // q holds scale * Q; G stands for the gradient of scale * Q.
    T* a = backend.allocate(n * n);
    T* k = backend.allocate(n * n);
    side.cross(q, g, a, false);  // scale * QᵀG
    T* c = backend.allocate(n * n);
    const double norm = std::sqrt(backend.skew(a, n, c));
    if (tangent) {
        // Q (A - Aᵀ) / 2 + (G - Q A), all times scale; q² carries 1 / scale
        backend.axpby(n * n, T(0.5 / scale), c, T(square ? 0 : -1 / scale), a, k);
        side.apply(q, k, false, out, T(1), square ? T(0) : T(scale), g);
        backend.release(mark);
        return;
    }
    // In units of the largest singular value: l is the smallest, or where the gradient is cut off.
    double l = std::max(low, polar_gradient_floor * high) / high;
    T* product = square ? a : backend.allocate(n * n);  // A itself is of no further use then
    T* previous = backend.allocate(n * n);
    if (norm > 0 && (1 - l) / (1 + l) > tolerance) {
        T* h = backend.allocate(n * n);
        auto e = backend.epilogue(h);
        e.acc[0] = T(1 / (scale * high));
        side.cross(q, w, e, true);  // H / high
        if constexpr (Backend::inverts) {
            if (low > polar_backward_rational_from * high)
                while (l < polar_rational_below)
                    l = rational_step(backend, l, 0.1 * tolerance, n, &c, &h, &k);
        }
        while (l < polar_rational_below) l = cubic_step(backend, l, n, &c, &h, &k, product);
        const double theta = 1 + l, delta = 1 - l;  // h_i + h_j lies in [2l, 2]
        backend.axpby(n * n, T(1 / theta), c, T(0), none, k);
        backend.fill(previous, n * n, T(0));
        // Chebyshev's iteration: the error falls to 1 / T_j(sigma) after j - 1 products.
        const double sigma = theta / delta;
        double rho = 1 / sigma, reduction = 1 / sigma;
        while (reduction > tolerance) {
            const double next = 1 / (2 * sigma - rho);
            backend.sylvester_step(h, k, c, T(next * rho), T(2 * next / delta), previous, n);
            exchange(k, previous);
            reduction *= next;
            rho = next;
        }
        backend.axpby(n * n, T(1 / (scale * high)), k, T(0), none, k);
    } else {
        backend.axpby(n * n, T(1 / (scale * (high + std::max(low, l * high)))), c, T(0), none, k);
    }
    // k solves (scale H) K + K (scale H) = scale (QᵀG - GᵀQ), so K is the one of the formula.
    if (square) {
        side.apply(q, k, false, out, T(1), T(0), nullptr);  // (scale Q) K
    } else {
        if (low < polar_gradient_floor * high) {  // the forward's H^(-1) has no such bound
            T* damped = backend.allocate(n * n);
            auto e = backend.epilogue(previous);
            e.acc[0] = T(1 / (scale * high));
            side.cross(q, w, e, true);
            damped_inverse(backend, previous, polar_gradient_floor, n, damped);
            backend.axpby(n * n, T(1 / high), damped, T(0), none, damped);
            inverse_root = damped;
        }
        // scale (Q K + (G - Q A) H⁻¹) = (scale Q)(K - A H⁻¹) + scale G H⁻¹, A = a / scale
        auto e = backend.epilogue(product);
        e.acc[0] = T(-1 / scale);
        e.x[0] = k;
        e.x0[0] = T(1);
        backend.multiply(backend.view(a, n, n), backend.view(inverse_root, n, n), e, false);
        side.apply(q, product, false, out, T(1), T(0), nullptr);
        side.apply(g, inverse_root, false, out, T(scale), T(1), out);
    }
    backend.release(mark);
}

}  // namespace lipfuse
