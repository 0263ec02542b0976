// A solution of HK + KH = C in two products. In the basis of H's eigenvectors it is C divided by sums
// x + y of eigenvalues, and on [l, 1]² that is nearly a multiplication from both sides:
//   1 / (x + y) = a + f(x) f(y) + error,   K = a C + F C F,   F = f(H),
// f in the span of 1, 1/x, x² and x⁴, which are at hand where (WᵀW)^(-1/2) is computed.
#pragma once

#include <cmath>

#include "device.h"

namespace lipfuse {

// Below this ratio of the least to the largest eigenvalue there is no such approximation in store, and
// below this tolerance of the forward none is made: few would be accurate enough for its gradient.
LIPFUSE_DEVICE constexpr double separable_from = 0.57, separable_tolerance = 2e-5;

// Of all a and f those with the least |1 - (x + y) (a + f(x) f(y))| at its largest on [l, 1]²; as
// functions of 1 - l they are smooth, and quartics describe them (fit_separable.py).
struct Separable {
    double a, f[4];  // f = f[0] + f[1] / x + f[2] x² + f[3] x⁴

    LIPFUSE_DEVICE explicit Separable(double l) {
        const double t = 1 - l;
        a = at(t, 0.249992, 0.125338, 0.06547, 0.020724, 0.029295);
        f[0] = at(t, 0.433495, 0.099339, -0.337815, 1.003302, -0.873746);
        f[1] = at(t, 0.235447, -0.053152, 0.186127, -0.53089, 0.462211);
        f[2] = at(t, -0.205622, -0.252764, 0.044294, -0.712207, 0.316746);
        f[3] = at(t, 0.036689, 0.081207, 0.026604, 0.202389, 0.058234);
    }

    // What the relative error does not exceed.
    LIPFUSE_DEVICE static double error(double l) {
        return 1e-5 + 1.45e-3 * std::pow((1 - l) / 0.4, 3.6);
    }

private:
    LIPFUSE_DEVICE static double at(double t, double c0, double c1, double c2, double c3,
                                    double c4) {
        return c0 + t * (c1 + t * (c2 + t * (c3 + t * c4)));
    }
};

}  // namespace lipfuse
