// The polar factor Q of W = Q H (Q with orthonormal columns or rows, H symmetric positive), which
// is what Björck's iteration converges to.
//
// Everything but the first and the last product happens on the smaller side: with S = WᵀW, a
// polynomial p with sqrt(x) p(x) = 1 on the spectrum of S gives Q = W p(S). One polynomial does
// where W is nearly orthogonal; wide spectra take several stages, rational ones first where the
// backend can invert, each followed by a fresh S, which also certifies what was reached: the distance
// of S = QᵀQ from I is measured, or computed with an allowance for rounding, never assumed.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "device.h"
#include "cholesky.h"
#include "evaluate.h"
#include "halley.h"
#include "minimax.h"
#include "separable.h"
#include "sided.h"
#include "spectrum.h"

namespace lipfuse {

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

// What a stage does, which tells what small singular values were from what becomes of them.
struct Lift {
    Halley f;                             // on singular values divided by sqrt(high)
    double l = 0, least = 1, high = 1;    // [l, 1] is led to [least, top]
    double top = 1, gain = 1;             // gain: what this and earlier stages do near zero
    const Minimax* polynomial = nullptr;  // or none: f is carried out
    bool rough = false;                   // later stages correct the polynomial
    bool polishes = false;  // nothing is left to do: what can be lifted has been, the rest is at 1
    bool doubtful = false;  // the smallest singular values could not be seen in the first stage
    double factored = 0;    // for which smallest singular value there is a factor, if any

    LIPFUSE_DEVICE double undo(double y) const {
        const double size = std::sqrt(high);
        if (y >= least) return l * size;  // or more
        return (f.c > 0 ? f.inverse(y, l) : std::fmin(l, y / f.a)) * size;
    }
};

// What a run has from stage to stage. The functions that share it are functions of their own so that
// what only one of them needs takes no registers elsewhere.
template <class T>
struct PolarRun {
    const int64_t rows, cols;
    T *const q, *const factor;  // what is wanted; the second may be null
    const T* source;            // W times `unit`, until q is a product of that
    T* r = nullptr;     // XᵀX - I of what has been reached, X, on the smaller side, kept as half
    T* root = nullptr;  // the product of all stages' polynomials, kept as half; null if not wanted
    bool pending = false;  // source times root is what has been reached, but has not been computed
    double unseen = 0;     // what rounding hides of it, because r was not measured
    double unit = 1;
    PolarInfo info = {};
    Lift lifts[polar_most_stages + 1] = {};  // from the second on; the first stands for no stage
};

// Ratios of the smallest to the largest singular value between which an inverse pays: above them a
// polynomial does as well, below them rounding in the inverse would show.
LIPFUSE_DEVICE constexpr double polar_rational_from = 0.01, polar_rational_below = 0.22;
LIPFUSE_DEVICE constexpr double polar_overshoot = 1e-5;

// What rounding alone leaves of ‖I - QᵀQ‖_F, or hides of it: that of sums of n and of `big` terms.
template <class T>
LIPFUSE_DEVICE double polar_floor(int64_t n, int64_t big) {
    return std::numeric_limits<T>::epsilon() *
           std::hypot(0.5 * double(n), 0.25 * std::sqrt(double(big) * double(n + 4)));
}

// What it hides, in nearly all spectra that were tried, of the result of a stage on [l, 1] that was not
// multiplied out and measured; `before`: of what the stage began with, zero if that was measured.
template <class T>
LIPFUSE_DEVICE double polar_unseen(int64_t n, int64_t big, double l, double before) {
    constexpr double rounding = std::numeric_limits<T>::epsilon();
    const double step = 0.2 * double(n + 8);
    if (before > 0) return before + rounding * step / l;
    return rounding * std::hypot(step, 0.13 * std::sqrt(double(big) * double(n + 4))) / l;
}

// A singular value this far below the largest is rounding noise; it is not blown up to 1.
template <class T>
LIPFUSE_DEVICE double polar_most_gain(int64_t n) {
    return 1 / (8 * std::numeric_limits<T>::epsilon() * std::sqrt(double(n)));
}

// Whether what happens on the smaller side only is so much cheaper that stages had better stay there.
LIPFUSE_DEVICE constexpr bool polar_stays_small(int64_t big, int64_t small) {
    return big >= 2 * small;
}

// Whether R = QᵀQ - I of this norm will do: it is small, and in no single direction does the result
// exceed 1 noticeably.
template <class Backend>
LIPFUSE_DEVICE LIPFUSE_NOINLINE bool polar_reached(Backend& backend,
                                                   const typename Backend::Scalar* r, int64_t n,
                                                   double floor, double tolerance,
                                                   double residual) {
    if (residual > std::max(tolerance, floor)) return false;
    const double overshoot = 2 * std::max(std::min(tolerance, polar_overshoot), floor);
    return residual <= overshoot ||
           ritz_values_below(backend, backend.half(r, n), 8, 0.8 * overshoot);
}

// Chooses the next stage from the spectrum of R + I, and estimates that of W, divided by `unit`.
template <class Backend, class T>
LIPFUSE_DEVICE LIPFUSE_NOINLINE void polar_choose(Backend& backend, double tolerance,
                                                  PolarRun<T>& run) {
    constexpr double rounding = std::numeric_limits<T>::epsilon();
    const int64_t n = std::min(run.rows, run.cols);
    Lift* const lifts = run.lifts;
    PolarInfo& info = run.info;
    const Lift& last = lifts[info.stages];
    Lift& lift = lifts[info.stages + 1];
    Interval range = spectrum(backend, backend.half(run.r, n), n < 256 ? 10 : 16);
    // A start vector in the null space sees nothing; the Frobenius norm bounds what there is.
    if (!(range.high > 0)) range.high = 1 + info.residual;
    range.low = std::max(range.low, 4 * rounding * range.high);
    double smallest = std::sqrt(range.low);
    for (int i = info.stages; i > 0; --i) smallest = lifts[i].undo(smallest);
    smallest /= run.unit;
    if (info.stages == 0) {
        info.low = smallest;
        info.high = std::sqrt(range.high) / run.unit;
    } else if (range.low < 0.5 || last.doubtful) {
        // Earlier stages have set the small singular values apart, so this sees them better.
        info.low = std::min(info.low, smallest);
    }
    double l = std::sqrt(range.low / range.high);
    const bool lifted = last.gain > polar_most_gain<T>(n);
    if (lifted) {
        // What cannot be lifted any further stays; the others are brought to 1. They fill
        // [least, top], which the estimate is too coarse to tell, unless some escaped.
        if (range.seen <= last.top * last.top + 2e-3)
            range.high = std::min(range.high, last.top * last.top);
        l = last.least / std::sqrt(range.high);
    }
    lift = Lift();
    lift.high = range.high;
    const double accurate = Halley::least(0.6 * tolerance, rounding);
    if (Backend::inverts && !lifted && l > std::max(polar_rational_from, accurate) &&
        l < polar_rational_below) {
        // So few steps cannot see how small the smallest singular values are at first.
        lift.doubtful = info.stages == 0 && l < 0.06;
        lift.l = lift.doubtful ? std::max(accurate, 4e-3) : l;
        lift.f = Halley(lift.l);
        lift.least = lift.f(lift.l);
    } else {
        // A smaller l would hardly lift small singular values faster, and spread the others.
        lift.l = std::max(l, 0.02);
        // What is asked of each direction: the residual adds up over n of them, and no singular
        // value may exceed 1 by more than `polar_overshoot`.
        const double accuracy =
            std::min(0.5 * tolerance / std::sqrt(double(n)), 0.5 * polar_overshoot);
        const Minimax& poly = choose_polynomial(backend, lift.l, accuracy);
        lift.polynomial = &poly;
        lift.rough = poly.error > accuracy;
        lift.polishes = lifted && !lift.rough;
        lift.doubtful = last.doubtful;
        lift.f = Halley::line(poly.at_zero());
        lift.least = 1 - poly.error;
        lift.top = 1 + poly.error;
    }
    lift.gain = last.gain * lift.f.a;
    lift.top *= 1 + 4 * rounding;
}

// q <- alpha times the source times M, which is kept as half.
template <class Backend, class T>
LIPFUSE_DEVICE LIPFUSE_NOINLINE void polar_apply(Backend& backend, PolarRun<T>& run,
                                                 const typename Backend::Scalar* m, T alpha) {
    Sided<Backend> side{backend, run.rows, run.cols};
    const int64_t area = run.rows * run.cols;
    const T *none = nullptr, *source = run.source;
    auto mark = backend.mark();
    if (source == run.q) {  // W M cannot be written over W
        T* copy = backend.allocate(area);
        backend.axpby(area, T(1), source, T(0), none, copy);
        source = copy;
    }
    side.apply(source, backend.half(m, side.small), run.q, alpha, T(0), none);
    backend.release(mark);
    run.source = run.q;
}

// Carries it out: W <- W p(S), R with it, the growing root and, after the first stage, the factor.
template <class Backend, class T>
LIPFUSE_DEVICE LIPFUSE_NOINLINE void polar_carry_out(Backend& backend, double tolerance,
                                                     PolarRun<T>& run) {
    Sided<Backend> side{backend, run.rows, run.cols};
    const int64_t n = side.small;
    const T* none = nullptr;
    T *const q = run.q, *const r = run.r, *const factor = run.factor, *const root = run.root;
    PolarInfo& info = run.info;
    Lift& lift = run.lifts[info.stages + 1];
    // p S p costs less than the Gram matrix of a tall result, which then need not be known before the
    // last stage. Only where S is well conditioned: its rounding errors are multiplied by p².
    const double unseen = polar_unseen<T>(n, side.big, lift.l, run.unseen);
    const bool small = polar_stays_small(side.big, n) && lift.l > 0.3 && unseen <= 0.6 * tolerance;
    run.unseen = small ? unseen : 0;
    auto stage = backend.mark();
    T* p = backend.allocate(n * n);
    // Results are as good as scratch till they are written.
    const bool first = info.stages == 0, in_result = run.source != q && !Backend::near_scratch;
    const bool in_factor = factor && first && !Backend::near_scratch;
    T* scratch[2] = {in_factor ? factor : backend.allocate(n * n), backend.allocate(n * n)};
    if (lift.polynomial) {
        allow_rough_products(backend, lift.rough && !small);  // errors must be measured
        const bool factors = factor && first && info.low >= separable_from * info.high;
        if (factors) lift.factored = info.low;
        evaluate(backend, *lift.polynomial, lift.high, r, n, &p, scratch, in_result ? q : nullptr,
                 factors ? factor : nullptr, info.low / info.high);
    } else if constexpr (Backend::inverts) {
        const Halley& f = lift.f;
        const double size = std::sqrt(lift.high);
        backend.combine(T(f.c / lift.high), r, n, T(1 + f.c / lift.high), p);
        backend.complete(p, n);
        backend.invert(p, n, n);
        backend.keep_half(p, n);
        backend.combine(T(f.lift / size), p, n, T(f.b / f.c / size), p);
    }
    const bool late = run.pending, apply = !small || !(first || late);
    if (apply && !late) polar_apply(backend, run, p, T(1));
    allow_rough_products(backend, false);
    if (root) {
        if (!first)
            backend.multiply_half(backend.half(root, n), backend.half(p, n),
                                  backend.epilogue(scratch[1]));
        backend.axpby(backend.size_of_half(n), T(1), first ? p : scratch[1], T(0), none, root);
    }
    if (apply && late) polar_apply(backend, run, root, T(1));
    run.pending = !apply;
    if (small) {
        auto e = backend.epilogue(scratch[1]);  // S p = R p + p
        e.x[0] = p;
        e.x0[0] = T(1);
        backend.multiply_half(backend.half(r, n), backend.half(p, n), e);
        e = backend.epilogue(r);
        e.diagonal[0] = T(-1);
        backend.multiply_half(backend.half(p, n), backend.half(scratch[1], n), e);
        backend.release(stage);
    } else {
        backend.release(stage);
        side.deviation(q, r);
    }
    ++info.stages;
    info.residual = std::hypot(std::sqrt(backend.square_of_half(r, n)), run.unseen);
}

// What no eigenvalue of R = QᵀQ - I exceeds: its norm. Where a null space keeps that large, a
// Cholesky factorisation proves what the polynomials promise. R may be made a whole matrix.
template <class Backend>
LIPFUSE_DEVICE LIPFUSE_NOINLINE double polar_excess(Backend& backend, typename Backend::Scalar* r,
                                                    int64_t n, double floor, double residual) {
    using T = typename Backend::Scalar;
    if (residual > 1e-2) {
        const Tridiagonal t = lanczos(backend, backend.half(r, n), 8);
        const double seen = ritz_value(backend, t, t.size - 1, 1e-14);  // next to -1, it is tiny
        backend.complete(r, n);
        for (double x = 4 * floor; x < residual; x = std::max(2 * x, 1.1 * seen))
            if (lies_below(backend, static_cast<const T*>(r), n, x)) return x;
    }
    return residual;
}

// The bound, and what is still to be written: the result and what its gradient wants.
template <class Backend, class T>
LIPFUSE_DEVICE LIPFUSE_NOINLINE void polar_finish(Backend& backend, double tolerance, double scale,
                                                  T* inverse_root, PolarRun<T>& run) {
    constexpr double rounding = std::numeric_limits<T>::epsilon();
    const int64_t n = std::min(run.rows, run.cols), big = std::max(run.rows, run.cols);
    const double root = std::sqrt(double(n)), floor = polar_floor<T>(n, big);
    const T* none = nullptr;
    PolarInfo& info = run.info;
    const bool nothing = info.stages == 0;  // it was orthogonal to begin with
    if (nothing) info.low = info.high = 1 / run.unit;
    const double factored = run.lifts[1].factored;
    if (factored > 0 && info.low == factored)  // no later stage has seen smaller ones
        backend.complete(run.factor, n);
    else if (run.factor)
        backend.fill(run.factor, n * n, T(0));
    const double excess = polar_excess(backend, run.r, n, floor, info.residual);
    const double rounded =
        3 * run.unseen / root + rounding * (4 + 2 * root + 0.6 * std::sqrt(double(big)));
    // Reached: singular values exceed 1 by no more than the goal allows. Else divide by what is left.
    double divisor = 1;
    if (info.residual > std::max(tolerance, floor)) {
        divisor = std::sqrt(1 + excess);
        info.residual += excess * root;
    }
    info.bound = std::sqrt(1 + excess + rounded) / divisor;
    const T size = T(scale / divisor);
    if (run.pending)
        polar_apply(backend, run, run.root, size);
    else if (run.source != run.q || size != 1)
        backend.axpby(run.rows * run.cols, size, run.source, T(0), none, run.q);
    if (inverse_root && nothing) {
        backend.fill(inverse_root, n * n, T(0));
        backend.add_diagonal(inverse_root, n, T(run.unit));
    } else if (inverse_root) {
        if (run.unit != 1)
            backend.axpby(backend.size_of_half(n), T(run.unit), inverse_root, T(0), none,
                          inverse_root);
        backend.complete(inverse_root, n);
    }
}

// q <- scale * Q. Singular values of Q stay below 1 + polar_overshoot + rounding.
// inverse_root (small x small, may be null): (WᵀW)^(-1/2), which the gradient of a matrix that is
// not square needs. factor (the same): F of separable.h, of the root of WᵀW, which spares the gradient
// products; zero where there is none.
template <class Backend>
LIPFUSE_DEVICE PolarInfo polar(Backend& backend, const typename Backend::Scalar* w, int64_t rows,
                               int64_t cols, double tolerance, double scale,
                               typename Backend::Scalar* q, typename Backend::Scalar* inverse_root,
                               typename Backend::Scalar* factor = nullptr) {
    using T = typename Backend::Scalar;
    Sided<Backend> side{backend, rows, cols};
    const int64_t n = side.small, area = rows * cols;
    auto mark = backend.mark();
    PolarRun<T> run{rows, cols, q, factor, w};
    PolarInfo& info = run.info;
    const double floor = polar_floor<T>(n, side.big);

    const double largest = backend.largest(w, area);
    if (!(largest > 0) || !std::isfinite(largest)) {
        // Zero stays zero; NaN or Inf spread to the whole result, visibly.
        backend.fill(
            q, area,
            largest > 0 || largest != largest ? std::numeric_limits<T>::quiet_NaN() : T(0));
        if (inverse_root) backend.fill(inverse_root, n * n, T(0));
        if (factor) backend.fill(factor, n * n, T(0));
        info.residual = std::sqrt(double(n));
        if (largest != 0)
            info.residual = info.low = info.high = info.bound =
                std::numeric_limits<double>::quiet_NaN();
        return info;
    }
    // R = WᵀW - I keeps the digits of WᵀW only if that is not far below I, and squares of tiny or
    // huge elements leave the range of T. A power of two brings the singular values to about 1.
    const double typical = largest / std::sqrt(double(n));
    if (typical < 0.5 || typical > 2) {
        run.unit = power_to_one<T>(typical);
        backend.axpby(area, T(run.unit), w, T(0), static_cast<const T*>(nullptr), q);
        run.source = q;
    }

    run.r = backend.allocate(n * n);
    run.root =
        inverse_root || !polar_stays_small(side.big, n) ? inverse_root : backend.allocate(n * n);
    side.deviation(run.source, run.r);
    info.residual = std::sqrt(backend.square_of_half(run.r, n));
    while (!polar_reached(backend, run.r, n, floor, tolerance, info.residual) &&
           info.stages < polar_most_stages && !run.lifts[info.stages].polishes) {
        const double before = info.residual;
        polar_choose(backend, tolerance, run);
        polar_carry_out(backend, tolerance, run);
        const Lift& lift = run.lifts[info.stages];
        if (!(info.residual < 0.7 * before) && lift.l > 0.5 && lift.gain < polar_most_gain<T>(n))
            break;  // rounding level
    }
    polar_finish(backend, tolerance, scale, inverse_root, run);
    backend.release(mark);
    return info;
}

}  // namespace lipfuse
