// The gradient of the polar factor W -> Q, exact or along the tangent: what it solves is HK + KH = C.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "device.h"
#include "minimax.h"
#include "mirror.h"
#include "polar.h"
#include "separable.h"
#include "sided.h"
#include "spectrum.h"

namespace lipfuse {

// Ratios of the smallest to the largest eigenvalue of H: below them steps of Newton or cubic ones pay.
LIPFUSE_DEVICE constexpr double polar_newton_below = 0.49, polar_cubic_below = 0.22;
// Below this, rounding shows: in one half of QᵀW, of which the mean is much closer to H, and in the inverse
// root that the forward has made from WᵀW.
LIPFUSE_DEVICE constexpr double polar_exact_below = 0.05;
// Singular values below this, relative to the largest, count as about that: it bounds a gradient that is
// unbounded in theory.
LIPFUSE_DEVICE constexpr double polar_gradient_floor = 1e-4;

// Steps towards a well-conditioned HK + KH = C, for a symmetric H with eigenvalues in [l, 1] and a
// skew-symmetric C. An odd function f of M = [H C; 0 -H] is [f(H) C'; 0 -f(H)], and has the same
// solution K: it is what makes both blocks of sign(M) = [I 2K; 0 -I]. So whatever lifts the small
// eigenvalues of H does, carried out on M. Both steps return the new l.

// Newton's f(x) = (z x + 1 / (z x)) / (2 top), which leads [l, 1] to [1 / top, 1] with z = 1 / sqrt(l):
//   f(H) = (z H + P / z) / (2 top),   C' = (z C + P C P / z) / (2 top),   P = H^(-1).
// Nothing lifts small eigenvalues further for so few products. H and C are kept as half, and P is from then
// on; beyond [l, 1] f exceeds 1.
template <class Backend, class T>
LIPFUSE_DEVICE double newton_step(Backend& backend, double l, T* p, int64_t n, T* c, T* h) {
    const double z = 1 / std::sqrt(l), top = (z + 1 / z) / 2;
    const T keep = T(z / (2 * top)), add = T(1 / (2 * z * top));
    auto mark = backend.mark();
    T* pc = backend.allocate(n * n);
    backend.keep_half(p, n);
    backend.multiply(backend.half(p, n), backend.half(c, n, Mirror::skew), pc, false);
    auto e = backend.epilogue(c);
    e.acc[0] = add;
    e.x[0] = c;
    e.x0[0] = keep;
    backend.multiply_half(backend.view(pc, n, n), backend.half(p, n), e, Mirror::skew);
    backend.axpby(backend.size_of_half(n), keep, h, add, p, h);
    backend.release(mark);
    return 1 / top;
}

// p <- H^(-1), whole, for an H that is kept as half.
template <class Backend, class T>
LIPFUSE_DEVICE void invert_half(Backend& backend, const T* h, int64_t n, T* p) {
    backend.axpby(backend.size_of_half(n), T(1), h, T(0), static_cast<const T*>(nullptr), p);
    backend.complete(p, n);
    backend.invert(p, n, n);
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
    backend.complete(y, n, Mirror::skew);
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

// H <- H + cut D⁴ with D = (I + H / cut)^(-1): leads eigenvalues from 0 to `cut` to two thirds of it at least,
// and leaves alone what is larger. scratch: n x n.
template <class Backend, class T>
LIPFUSE_DEVICE void lift_small_eigenvalues(Backend& backend, double cut, int64_t n, T* h,
                                           T* scratch) {
    damped_inverse(backend, h, cut, n, scratch);  // D / cut; it adds `cut` to H
    auto mark = backend.mark();
    T* square = backend.allocate(n * n);
    const auto d = backend.view(scratch, n, n), d2 = backend.view(square, n, n);
    auto e = backend.epilogue(square);
    e.acc[0] = T(cut * cut);
    backend.multiply(d, d, e, true);
    e = backend.epilogue(h);
    e.acc[0] = T(cut);
    e.x[0] = h;
    e.x0[0] = T(1);
    e.diagonal[0] = T(-cut);
    backend.multiply(d2, d2, e, true);
    backend.release(mark);
}

// Newton's steps as long as they pay, for an H with eigenvalues in [0, 1], which is kept as half like C; those
// below `cut` are lifted first. The first inverse tells which is the smallest, much better than the forward
// can: there it is one of WᵀW, and steps of Lanczos resolve the largest.
// p: H^(-1), whole, which is overwritten. inverse (may be null): gets `scale` times that of the H whose small
// eigenvalues were lifted. Returns where the spectrum begins.
template <class Backend, class T>
LIPFUSE_DEVICE double narrow_by_newton(Backend& backend, double cut, int64_t n, T* c, T* h, T* p,
                                       T* inverse, double scale) {
    double l = 1 / largest_ritz_value(backend, backend.view(p, n, n), 10);
    if (l > 0.9 * cut && l <= 1) {
        l *= 0.9;  // it comes from above, by 6 % at the most in any spectrum that was tried
    } else {       // H may be singular, up to rounding
        backend.complete(h, n);
        lift_small_eigenvalues(backend, cut, n, h, p);
        backend.keep_half(h, n);
        l = 0.64 * cut;
        invert_half(backend, h, n, p);
    }
    if (inverse) backend.axpby(n * n, T(scale), p, T(0), static_cast<const T*>(nullptr), inverse);
    l = newton_step(backend, l, p, n, c, h);
    while (l < polar_newton_below) {
        invert_half(backend, h, n, p);
        l = newton_step(backend, l, p, n, c, h);
    }
    return l;
}

// K and what was before it, after the first step of Chebyshev's iteration from K = start C and nothing
// before. A backend that need not write both first overloads this.
template <class Backend, class T>
LIPFUSE_DEVICE void first_sylvester_step(Backend& backend, const T* h, const T* c, T start, T fd,
                                         T fr, T* k, T* previous, T* spare, int64_t n) {
    backend.axpby(n * n, start, c, T(0), static_cast<const T*>(nullptr), k);
    backend.fill(previous, n * n, T(0));
    backend.sylvester_step(h, k, c, fd, fr, previous, spare, n);
}

// *k <- K with HK + KH = C, up to `tolerance`, for a symmetric H with eigenvalues in [l, 1] and a
// skew-symmetric C. The error falls to 1 / T_j(sigma) after j - 1 products. spare (n x n) may be
// overwritten.
template <class Backend, class T>
LIPFUSE_DEVICE void solve_by_chebyshev(Backend& backend, const T* h, const T* c, double l,
                                       double tolerance, int64_t n, T** k, T** previous, T* spare) {
    const double theta = 1 + l, delta = 1 - l;  // h_i + h_j lies in [2l, 2]
    const double sigma = theta / delta;
    double rho = 1 / sigma, reduction = 1 / sigma;
    bool first = true;
    do {
        const double next = 1 / (2 * sigma - rho);
        const T fd = T(next * rho), fr = T(2 * next / delta);
        if (first)
            first_sylvester_step(backend, h, c, T(1 / theta), fd, fr, *k, *previous, spare, n);
        else
            backend.sylvester_step(h, static_cast<const T*>(*k), c, fd, fr, *previous, spare, n);
        exchange(*k, *previous);
        first = false;
        reduction *= next;
        rho = next;
    } while (reduction > tolerance);
}

// The gradient of the polar factor. With A = QᵀG and H = QᵀW, K solves HK + KH = A - Aᵀ and
//   dL/dW = Q K + (G - Q A) H^(-1),
// whatever the forward did. The operator K -> HK + KH has eigenvalues h_i + h_j, known from the
// forward's estimate, so Chebyshev's iteration needs one product a step and no inner product; wide
// spectra are narrowed first. Of a good condition, the forward has left a `factor` (or null, or zero) with
// which two products give K. Singular values below polar_gradient_floor times the largest count as about
// that, which bounds a gradient that is unbounded in theory.
// The tangent gradient takes H = I; a W that was orthogonal already, up to a factor, has an H like that.
template <class Backend>
LIPFUSE_DEVICE void polar_backward(Backend& backend, const typename Backend::Scalar* g,
                                   const typename Backend::Scalar* w,
                                   const typename Backend::Scalar* q,
                                   const typename Backend::Scalar* inverse_root, int64_t rows,
                                   int64_t cols, double scale, double low, double high,
                                   double tolerance, bool tangent, typename Backend::Scalar* out,
                                   const typename Backend::Scalar* factor = nullptr) {
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
    side.cross(q, g, a, false);  // scale * QᵀG
    T* c = backend.allocate(n * n);
    const double norm = std::sqrt(backend.skew(a, n, c));
    if (tangent || low == high) {
        // H = h I: (Q (A - Aᵀ) / 2 + (G - Q A)) / h, all times scale; q² carries 1 / scale
        const double h = tangent ? 1 : low;
        if (square) {
            side.apply(q, backend.half(c, n, Mirror::skew), out, T(0.5 / (scale * h)), T(0), none);
        } else {
            backend.complete(c, n, Mirror::skew);
            backend.axpby(n * n, T(0.5 / (scale * h)), c, T(-1 / (scale * h)), a, a);
            side.apply(q, a, false, out, T(1), T(scale / h), g);
        }
        backend.release(mark);
        return;
    }
    // In units of the largest singular value: l is the smallest, or where the gradient is cut off.
    const double cut = std::max(low, polar_gradient_floor * high);
    double l = cut / high;
    // H / high. Rounding in Q leaves QᵀW a little unsymmetric, and small eigenvalues show it: the mean of
    // both halves is much closer to H.
    auto root = [&](T* product, T* h) {
        side.cross(q, w, product, false);
        backend.symmetrize(product, T(0.5 / (scale * high)), n, h);
    };
    // Of a square matrix A itself is of no further use.
    T* spare = square ? a : backend.allocate(n * n);
    T* solution = c;  // times `unit`: K of (scale H) K + K (scale H) = scale (QᵀG - GᵀQ)
    double unit = 1 / (scale * (high + cut));
    T* inverse = nullptr;  // of WᵀW's root, if it is computed here
    bool solved = !(norm > 0 && (1 - l) / (1 + l) > tolerance);  // C, or nearly
    if (!solved && factor && factor[0] > 0 && l >= separable_from &&
        Separable::error(l) <= tolerance) {
        const auto f = backend.view(factor, n, n);
        T* fc = spare;
        backend.multiply(f, backend.half(c, n, Mirror::skew), fc, false);
        auto e = backend.epilogue(c);  // a C + F C F
        e.x[0] = c;
        e.x0[0] = T(Separable(l).a);
        backend.multiply_half(backend.view(fc, n, n), f, e, Mirror::skew);
        unit = 1 / (scale * high);
        solved = true;
    }
    if (!solved) {
        T* h = backend.allocate(n * n);
        T* k = backend.allocate(n * n);
        // The result is written at the very end.
        const bool in_result = square && !Backend::near_scratch;
        T* product = in_result ? out : spare;
        T* previous = in_result ? spare : backend.allocate(n * n);
        // known: P = H⁻¹ is there already, and exact enough.
        const bool wide = l < (Backend::inverts ? polar_newton_below : polar_cubic_below),
                   known = Backend::inverts && !square && l >= polar_exact_below;
        if (known && !wide) {
            // PK + KP = PCP costs less than H does: H <- cut P, whose eigenvalues lie in [l, 1] as well,
            // and C <- HCH.
            backend.axpby(n * n, T(cut), inverse_root, T(0), none, h);
            backend.keep_half(h, n);
            backend.multiply(backend.half(h, n), backend.half(c, n, Mirror::skew), k, false);
            backend.multiply_half(backend.view(k, n, n), backend.half(h, n), backend.epilogue(c),
                                  Mirror::skew);
            unit = 1 / (scale * cut);
        } else {
            unit = 1 / (scale * high);
            const bool invert = known && polar_stays_small(side.big, n);  // less than what H costs
            if (l < polar_exact_below) {
                root(k, h);
                backend.keep_half(h, n);
            } else if (!invert) {
                auto e = backend.epilogue(h);  // H / high
                e.acc[0] = T(unit);
                side.cross_half(q, w, e);
            }
            if constexpr (Backend::inverts) {
                if (wide) {
                    T* p = backend.allocate(n * n);
                    if (known) {
                        backend.axpby(n * n, T(high), inverse_root, T(0), none, p);
                    } else {
                        invert_half(backend, h, n, p);
                        if (!square) inverse_root = inverse = backend.allocate(n * n);
                    }
                    if (invert) {
                        backend.axpby(n * n, T(1), p, T(0), none, h);
                        backend.invert(h, n, n);
                        backend.keep_half(h, n);
                    }
                    l = narrow_by_newton(backend, polar_gradient_floor, n, c, h, p, inverse,
                                         1 / high);
                }
            } else if (wide) {
                backend.complete(h, n);
                backend.complete(c, n, Mirror::skew);
                while (l < polar_cubic_below) l = cubic_step(backend, l, n, &c, &h, &k, product);
                backend.keep_half(h, n);
                backend.keep_half(c, n);
            }
        }
        solve_by_chebyshev(backend, h, c, l, tolerance, n, &k, &previous, product);
        solution = k;
    }
    if (square) {  // (scale Q) K
        side.apply(q, backend.half(solution, n, Mirror::skew), out, T(unit), T(0), none);
    } else {
        backend.complete(solution, n, Mirror::skew);
        // The forward's inverse has no such bound. Its estimate of `low` may be far too small, that of
        // `high` by 8 % too large.
        if (!inverse && low < polar_gradient_floor * high &&
            !(largest_ritz_value(backend, backend.view(inverse_root, n, n), 10) <
              1 / (0.9 * polar_gradient_floor * high))) {
            T* damped = backend.allocate(n * n);
            T* h = backend.allocate(n * n);
            root(damped, h);
            damped_inverse(backend, h, polar_gradient_floor, n, damped);
            backend.axpby(n * n, T(1 / high), damped, T(0), none, damped);
            inverse_root = damped;
        }
        // scale (Q K + (G - Q A) H⁻¹) = scale ((scale Q)(K - A H⁻¹) / scale + G H⁻¹), A = a / scale
        auto e = backend.epilogue(spare);
        e.acc[0] = T(-1 / (scale * scale));
        e.x[0] = solution;
        e.x0[0] = T(unit / scale);
        backend.multiply(backend.view(a, n, n), backend.view(inverse_root, n, n), e, false);
        side.apply_both(q, spare, g, inverse_root, T(scale), out);
    }
    backend.release(mark);
}

}  // namespace lipfuse
