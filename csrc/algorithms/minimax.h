// Polynomials p that bring sqrt(x) * p(x) as close to 1 as their degree allows on [l², 1]: applied
// to S = WᵀW they turn singular values in [l, 1] into values in [1 - error, 1 + error], so that
// W p(S) approaches the polar factor. The equioscillating one (Remez) is the best there is; for
// wide intervals this is the optimal step of the Polar Express (Amsel et al., arXiv 2505.16932).
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "device.h"

namespace lipfuse {

// p in powers of E = (2 S - (l² + 1) I) / (1 - l²), whose spectrum is [-1, 1].
struct Minimax {
    int degree;
    double l;      // lower end of the singular values it was made for
    double error;  // largest |sqrt(x) p(x) - 1| on [l², 1]
    double c[9];   // coefficients of 1, E, ..., E^degree
    // Degree 8 with three products: y = E²(aE² + bE); p = (y + cE² + dE + f)(y + eE²) + gE² + hE + i.
    double a, b, c2, d, e, f, g, h, i;

    // p at x = 0: by how much singular values far below l grow.
    LIPFUSE_DEVICE double at_zero() const {
        const double t = -(1 + l * l) / (1 - l * l);
        double sum = 0;
        for (int k = degree; k >= 0; --k) sum = sum * t + c[k];
        return sum;
    }
};

namespace minimax_detail {

inline bool solve(std::vector<double>& m, std::vector<double>& x, int n) {
    for (int k = 0; k < n; ++k) {
        int best = k;
        for (int r = k + 1; r < n; ++r)
            if (std::fabs(m[r * n + k]) > std::fabs(m[best * n + k])) best = r;
        if (m[best * n + k] == 0) return false;
        for (int j = 0; j < n; ++j) std::swap(m[k * n + j], m[best * n + j]);
        std::swap(x[k], x[best]);
        for (int r = k + 1; r < n; ++r) {
            const double q = m[r * n + k] / m[k * n + k];
            for (int j = k; j < n; ++j) m[r * n + j] -= q * m[k * n + j];
            x[r] -= q * x[k];
        }
    }
    for (int k = n - 1; k >= 0; --k) {
        for (int j = k + 1; j < n; ++j) x[k] -= m[k * n + j] * x[j];
        x[k] /= m[k * n + k];
    }
    return true;
}

inline double chebyshev_sum(const double* c, int degree, double t) {
    double b1 = 0, b2 = 0;
    for (int k = degree; k >= 1; --k) {
        const double b = 2 * t * b1 - b2 + c[k];
        b2 = b1;
        b1 = b;
    }
    return t * b1 - b2 + c[0];
}

// Degree 8 as three products: match the coefficients. Real for every interval in use; `false`
// where it is not, and the caller then takes a lower degree.
inline bool factor(Minimax& p) {
    const double* m = p.c;
    if (m[8] <= 0) return false;
    p.a = std::sqrt(m[8]);
    p.b = m[7] / (2 * p.a);
    const double s = (m[6] - p.b * p.b) / p.a;  // c2 + e
    p.d = (m[5] - p.b * s) / p.a;
    const double half = (s - p.a * p.d / p.b) / 2;
    const double disc = half * half + p.d * p.b + p.a * m[3] / p.b - m[4];
    if (!(disc >= 0)) return false;
    p.e = half - std::sqrt(disc);
    p.c2 = s - p.e;
    p.f = (m[3] - p.d * p.e) / p.b;
    p.g = m[2] - p.f * p.e;
    p.h = m[1];
    p.i = m[0];
    return std::isfinite(p.e) && std::isfinite(p.f);
}

inline Minimax remez(int degree, double l) {
    const int points = degree + 2, grid = 600;
    const double low = l * l, mid = (1 + low) / 2, radius = (1 - low) / 2;
    // Candidates: Chebyshev-spaced both in s and in log s, since wide intervals put their
    // alternation points near l.
    std::vector<double> s;
    for (int k = 0; k <= grid; ++k) {
        const double t = (1 - std::cos(M_PI * k / grid)) / 2;
        s.push_back(l + (1 - l) * t);
        s.push_back(l * std::pow(1 / l, t));
    }
    std::sort(s.begin(), s.end());
    const int count = static_cast<int>(s.size());
    std::vector<int> at(points);
    for (int k = 0; k < points; ++k) {
        const double want = l + (1 - l) * (1 - std::cos(M_PI * k / (points - 1))) / 2;
        at[k] = static_cast<int>(std::lower_bound(s.begin(), s.end(), want) - s.begin());
        if (at[k] >= count) at[k] = count - 1;
    }
    std::vector<double> c(points), residual(count);
    double error = 1;
    for (int round = 0; round < 40; ++round) {
        std::vector<double> m(points * points);
        for (int r = 0; r < points; ++r) {
            const double x = s[at[r]], t = (x * x - mid) / radius;
            double t0 = 1, t1 = t;
            for (int k = 0; k <= degree; ++k) {
                m[r * points + k] = x * t0;
                const double t2 = 2 * t * t1 - t0;
                t0 = t1;
                t1 = t2;
            }
            m[r * points + degree + 1] = r % 2 ? -1 : 1;
            c[r] = 1;
        }
        if (!solve(m, c, points)) break;
        error = 0;
        for (int k = 0; k < count; ++k) {
            residual[k] = s[k] * chebyshev_sum(c.data(), degree, (s[k] * s[k] - mid) / radius) - 1;
            error = std::max(error, std::fabs(residual[k]));
        }
        std::vector<int> extrema;
        for (int k = 0; k < count; ++k) {
            if (extrema.empty() || residual[k] * residual[extrema.back()] < 0)
                extrema.push_back(k);
            else if (std::fabs(residual[k]) > std::fabs(residual[extrema.back()]))
                extrema.back() = k;
        }
        if (static_cast<int>(extrema.size()) < points) break;  // rounding level reached
        while (static_cast<int>(extrema.size()) > points) {
            const bool front =
                std::fabs(residual[extrema.front()]) < std::fabs(residual[extrema.back()]);
            extrema.erase(front ? extrema.begin() : extrema.end() - 1);
        }
        if (extrema == at) break;
        at = extrema;
    }
    Minimax p{};
    p.degree = degree;
    p.l = l;
    p.error = error;
    // Chebyshev to powers.
    std::array<double, 9> t0{}, t1{};
    t0[0] = 1;
    t1[1] = 1;
    for (int k = 0; k <= degree; ++k) {
        for (int j = 0; j < 9; ++j) p.c[j] += c[k] * t0[j];
        std::array<double, 9> t2{};
        for (int j = 0; j < 9; ++j) t2[j] = (j ? 2 * t1[j - 1] : 0) - t0[j];
        t0 = t1;
        t1 = t2;
    }
    return p;
}

// Close to 1 the binomial series of x^(-1/2) around the middle is as good, and needs no exchange,
// which would have nothing but rounding to work on.
inline Minimax series(int degree, double l) {
    const double low = l * l, mid = (1 + low) / 2, ratio = (1 - low) / (1 + low);
    Minimax p{};
    p.degree = degree;
    p.l = l;
    double term = 1 / std::sqrt(mid);
    for (int k = 0; k <= degree; ++k) {
        p.c[k] = term;
        term *= -(k + 0.5) / (k + 1) * ratio;
    }
    p.error = std::fabs(term) * 1.05 + 1e-16;
    return p;
}

}  // namespace minimax_detail

// The polynomials for a grid of intervals, made once at first use (some 20 ms).
class MinimaxTable {
public:
    static const MinimaxTable& instance() {
        static const MinimaxTable table;
        return table;
    }

    // The odd cubic, sqrt(x) p(x) for p of degree 1.
    const Minimax& cubic(double l) const { return covering(rows_[0], l); }

    // The cheapest polynomial for singular values in [l, 1] whose error is at most `tolerance`,
    // else the strongest. Degrees 1, 2, 4, 8 cost 0, 1, 2, 3 products.
    const Minimax& choose(double l, double tolerance) const {
        const Minimax* best = nullptr;
        for (const auto& row : rows_) {
            const Minimax* p = &covering(row, l);
            best = p;
            if (p->error <= tolerance) break;
        }
        return *best;
    }

private:
    // l descends along a row: the first polynomial not above it covers [l, 1]. A walk along all of them
    // would leave nothing else in the nearest cache.
    static const Minimax& covering(const std::vector<Minimax>& row, double l) {
        const auto at =
            std::partition_point(row.begin(), row.end(), [l](const Minimax& p) { return p.l > l; });
        return at == row.end() ? row.back() : *at;
    }

    MinimaxTable() {
        for (int degree : {1, 2, 4, 8}) {
            std::vector<Minimax> row;
            // 1 - l from 1e-8 to 1/2, in steps of 5 % or 1 %, then l down to 1/60, in steps of 12 %. Of
            // degree 8, above which there is nothing, 5 % more of a gap is an error 1.7 times as large.
            const double step = degree == 8 ? 1.01 : 1.05;
            std::vector<double> ends;
            for (double gap = 1e-8; gap < 1e-3; gap *= 4) ends.push_back(1 - gap);
            for (double gap = 1e-3; gap < 0.5; gap *= step) ends.push_back(1 - gap);
            for (double l = 0.5; l > 0.017; l /= 1.12) ends.push_back(l);
            for (double l : ends) {
                if (degree == 8 && l > 0.86) continue;  // degree 4 is at rounding level already
                const bool close = l > (degree == 4 ? 0.985 : 0.999);
                Minimax p =
                    close ? minimax_detail::series(degree, l) : minimax_detail::remez(degree, l);
                if (degree == 8 && !minimax_detail::factor(p)) continue;
                row.push_back(p);
            }
            rows_.push_back(row);
        }
    }

    std::vector<std::vector<Minimax>> rows_;
};

// How algorithms ask for a polynomial; a backend that cannot hold the table has its own.
template <class Backend>
const Minimax& choose_polynomial(Backend&, double l, double tolerance) {
    return MinimaxTable::instance().choose(l, tolerance);
}
template <class Backend>
const Minimax& choose_cubic(Backend&, double l) {
    return MinimaxTable::instance().cubic(l);
}

}  // namespace lipfuse
