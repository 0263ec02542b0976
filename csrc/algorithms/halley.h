// A rational step that lifts small singular values much further than a polynomial of the same price.
#pragma once

#include <algorithm>
#include <cmath>

#include "device.h"

namespace lipfuse {

// f(x) = x (a + b x²) / (1 + c x²), which maps [l, 1] into [f(l), 1] with f(l) as large as it gets:
// the dynamically weighted Halley iteration of Nakatsukasa, Bai & Gygi (SIAM J. Matrix Anal. Appl.
// 31, 2010). As a function of S = x² it is x times
//   b / c + lift / (1 + c S),   lift = a - b / c,
// which takes one inverse of a positive definite matrix.
struct Halley {
    double a = 1, b = 0, c = 0, lift = 1;

    Halley() = default;

    // x -> a x, which stands for a polynomial near zero
    LIPFUSE_DEVICE static Halley line(double slope) {
        Halley f;
        f.a = slope;
        return f;
    }
    LIPFUSE_DEVICE explicit Halley(double l) {
        const double square = l * l, d = std::cbrt(4 * (1 - square) / (square * square)),
                     s = std::sqrt(1 + d);
        a = s + 0.5 * std::sqrt(8 - 4 * d + 8 * (2 - square) / (square * s));
        b = (a - 1) * (a - 1) / 4;
        c = a + b - 1;
        lift = a - b / c;
    }
    LIPFUSE_DEVICE double operator()(double x) const {
        return x * (a + b * x * x) / (1 + c * x * x);
    }

    // The x in [0, l] with f(x) = y, for y up to f(l).
    LIPFUSE_DEVICE double inverse(double y, double l) const {
        double low = 0, high = l;
        for (int i = 0; i < 40; ++i) {
            const double mid = (low + high) / 2;
            ((*this)(mid) < y ? low : high) = mid;
        }
        return low;
    }

    // The smallest l for which rounding in the inverse of 1 + c S leaves errors of no more than
    // `accuracy`, relative: c grows like (4 / l)^(4/3) / 4.
    LIPFUSE_DEVICE static double least(double accuracy, double rounding) {
        return std::fmin(1.0, 2 / std::pow(4 * accuracy / rounding, 0.75));
    }
};

}  // namespace lipfuse
