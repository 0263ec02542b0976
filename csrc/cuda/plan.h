// From the sizes of a launch's matrices to its layout: blocks for each, and where scratch lies.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "kernels.h"

namespace lipfuse::cuda {

// What one item of a launch asks for.
struct Demand {
    int64_t matrices;
    double cost;               // of one matrix, in whatever unit its launch has
    int64_t wanted_blocks;     // for one matrix, if there were no limit
    int64_t arrays, elements;  // scratch: how many arrays at most, and their elements together
    int64_t elements_a_block;  // further ones for each block of a team
};

// What the device has for a kernel.
struct Limits {
    int64_t shared_bytes;     // a block may have, so many that the following holds
    int64_t resident_blocks;  // that run at the same time
    bool tensor_cores;        // that are quicker than plain float32 even by six products for one
    bool rough_products;      // the user allows float32 products of less than float32's precision
};

struct Plan {
    Layout layout;  // without the pointers
    int64_t blocks = 0, shared_bytes = 0;
    bool cooperative = false;
    // one workspace: counters, partial sums, scratch
    int64_t partial_at = 0, scratch_at = 0, workspace_bytes = 0;

    void attach(char* workspace) {
        layout.counters = reinterpret_cast<unsigned*>(workspace);
        layout.partial = reinterpret_cast<double*>(workspace + partial_at);
        layout.scratch = workspace + scratch_at;
    }
};

inline int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

// The order in which a launch takes its items: what takes longest does not begin last.
inline std::vector<size_t> costly_first(const std::vector<Demand>& demands) {
    std::vector<size_t> order(demands.size());
    std::iota(order.begin(), order.end(), size_t(0));
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return demands[a].cost > demands[b].cost; });
    return order;
}

// How many blocks one matrix gets if it is to take no longer than `time`.
inline int64_t blocks_within(const Demand& d, double time) {
    return static_cast<int64_t>(
        std::min(double(std::max<int64_t>(1, d.wanted_blocks)), std::ceil(d.cost / time)));
}

// The least time in which all can be done side by side: with ceil(cost / time) blocks for each
// matrix, and one block after the other for those that get one. Matrices so many that not each can
// have a team share out the device one by one.
inline double balanced_time(const std::vector<Demand>& demands, int64_t resident) {
    double total = 0, longest = 0;
    for (const Demand& d : demands) {
        total += double(d.matrices) * d.cost;
        longest = std::max(longest, d.cost / double(std::max<int64_t>(1, d.wanted_blocks)));
    }
    const auto fits = [&](double time) {
        double teams = 0, pool = 0;
        for (const Demand& d : demands) {
            const int64_t b = blocks_within(d, time);
            (b > 1 ? teams : pool) += double(d.matrices) * (b > 1 ? double(b) : d.cost);
        }
        return teams + std::ceil(pool / time * (1 - 1e-9)) <= double(resident);
    };
    double low = std::max(longest, total / double(resident)), high = std::max(total, low);
    if (total == 0 || fits(low)) return std::max(low, 1e-30);
    for (int i = 0; i < 24; ++i) {
        const double time = std::sqrt(low * high);
        (fits(time) ? high : low) = time;
    }
    return high;
}

// `tile_bytes`: of shared memory that the kernel needs beside arrays.
template <class T>
Plan make_plan(const std::vector<Demand>& demands, int64_t tile_bytes, const Limits& limits) {
    Plan p;
    Layout& l = p.layout;
    l.items = static_cast<int32_t>(demands.size());
    l.tile_bytes = static_cast<int32_t>(tile_bytes);
    const bool split = sizeof(T) == 4 && limits.tensor_cores;
    l.pieces = split ? 3 : 0;
    l.rough_pieces = split ? (limits.rough_products ? 2 : 3) : 0;
    const int64_t fixed = shared_bytes(sizeof(Shared<T>)) + tile_bytes;
    const auto scratch_bytes = [](const Demand& d, int64_t blocks) {
        const int64_t elements = d.elements + (blocks > 1 ? blocks * d.elements_a_block : 0);
        return ceil_div(array_bytes(elements, sizeof(T)) + d.arrays * array_bytes(1, sizeof(T)),
                        Layout::unit) *
               Layout::unit;
    };
    const double time = balanced_time(demands, limits.resident_blocks);
    int64_t units = 0, pool = 0, pool_scratch = 0;
    for (size_t i = 0; i < demands.size(); ++i) {
        const Demand& d = demands[i];
        Place& place = l.place[i];
        const int64_t blocks = blocks_within(d, time);
        place.matrices = static_cast<int32_t>(d.matrices);
        place.blocks = static_cast<int32_t>(blocks);
        place.first = static_cast<int32_t>(p.blocks);
        if (blocks > 1) {
            p.cooperative = p.cooperative || d.matrices > 0;
            p.blocks += blocks * d.matrices;
            place.scratch_at = static_cast<int32_t>(units);
            place.scratch = static_cast<int32_t>(scratch_bytes(d, blocks) / Layout::unit);
            units += place.scratch * d.matrices;
        } else {
            pool += d.matrices;
            if (d.matrices) pool_scratch = std::max(pool_scratch, scratch_bytes(d, 1));
        }
    }
    l.pool_first = static_cast<int32_t>(p.blocks);
    l.pool_blocks = static_cast<int32_t>(std::min(pool, limits.resident_blocks - p.blocks));
    p.blocks += l.pool_blocks;
    p.shared_bytes = fixed;
    if (l.pool_blocks > 0) {
        const int64_t shared = std::min(pool_scratch, limits.shared_bytes - fixed) / 16 * 16;
        l.shared_scratch = static_cast<int32_t>(std::max<int64_t>(0, shared));
        p.shared_bytes += l.shared_scratch;
        if (pool_scratch > l.shared_scratch) {
            l.pool_scratch_at = static_cast<int32_t>(units);
            l.pool_scratch = static_cast<int32_t>(pool_scratch / Layout::unit);
            units += int64_t(l.pool_scratch) * l.pool_blocks;
        }
    }
    if (units == 0 && !p.cooperative) return p;
    p.partial_at = ceil_div(p.blocks * int64_t(sizeof(unsigned)), 256) * 256;
    p.scratch_at = p.partial_at + ceil_div(p.blocks * 2 * int64_t(sizeof(double)), 256) * 256;
    p.workspace_bytes = p.scratch_at + units * Layout::unit;
    return p;
}

// ---- demands: the arrays that each algorithm allocates at the same time, and what it costs -------

// Costs are counted in multiplications; a chain of barriers and short passes costs as much as this.
constexpr double latency = 3e7;
constexpr int64_t tile_area = 64 * 64;

template <class T>
int64_t product_tile_bytes(bool split) {
    return split && sizeof(T) == 4 ? SplitTile::bytes
                                   : std::max(PlainTile<T, 4>::bytes, PlainTile<T, 2>::bytes);
}
// Of a sweep: every warp's part of a vector.
template <class T>
int64_t sweep_tile_bytes() {
    return int64_t(32) * sweep_elements<T> * block_warps * int64_t(sizeof(T));
}

// Passes over memory: a block for every so many elements.
inline Demand pass_demand(int64_t matrices, int64_t elements) {
    return {matrices, double(elements) + 4096, ceil_div(elements, 8192), 0, 0, 0};
}
inline Demand power_demand(int64_t matrices, int64_t rows, int64_t cols) {
    const int64_t blocks = std::min(ceil_div(rows * cols, 16384), ceil_div(rows, 8));
    return {matrices, double(rows * cols) + 16384, blocks, 3, rows + 2 * cols, cols};
}
// Products: a matrix that one block has in shared memory needs no barrier across blocks.
inline int64_t product_blocks(int64_t rows, int64_t cols) {
    const int64_t tiles = ceil_div(rows, 64) * ceil_div(cols, 64);
    return std::min(rows, cols) <= 64 && tiles <= 16 ? 1 : tiles;
}
// `big`, `small`: how many products of the matrix with one of its smaller side, and how many of the
// smaller side alone.
inline Demand product_demand(int64_t matrices, int64_t rows, int64_t cols, double big, double small,
                             int64_t arrays, int64_t elements) {
    const double n = double(std::min(rows, cols)), area = double(rows) * double(cols);
    return {matrices,
            area * n * big + n * n * n * small + latency,
            product_blocks(rows, cols),
            arrays,
            elements,
            tile_area};
}
inline Demand bjorck_demand(int64_t matrices, int64_t rows, int64_t cols, bool chain) {
    const int64_t n = std::min(rows, cols), area = rows * cols;
    // S, two iterates, the guard's two squares; the chain's W / sigma, and its power iteration
    Demand d = product_demand(matrices, rows, cols, 8, chain ? 2 : 0, 12 + (chain ? 3 : 0),
                              3 * n * n + 2 * area + (chain ? area + rows + 2 * cols : 0));
    if (chain) d.elements_a_block = std::max(d.elements_a_block, cols);
    return d;
}
inline Demand bjorck_backward_demand(int64_t matrices, int64_t rows, int64_t cols) {
    const int64_t n = std::min(rows, cols);
    return product_demand(matrices, rows, cols, 20, 0, 8, 3 * n * n + rows * cols);
}
// Of Cholesky's factors and a panel, of the squares of Gram iteration, or of Lanczos's vectors.
inline int64_t proof_elements(int64_t n) {
    return n * n + std::max(n * n, panel_width * n) + 4 * n;
}
inline Demand polar_demand(int64_t matrices, int64_t rows, int64_t cols) {
    const int64_t n = std::min(rows, cols);
    // R, P, two of scratch, and a third or a copy of W; their product, if it is not kept; or R and a proof
    const int64_t squares = polar_stays_small(std::max(rows, cols), n) ? 5 : 4;
    return product_demand(matrices, rows, cols, 1.5, 2.5, 16,
                          std::max(squares * n * n + rows * cols, 2 * n * n + proof_elements(n)));
}
inline Demand spectral_bound_demand(int64_t matrices, int64_t rows, int64_t cols) {
    const int64_t n = std::min(rows, cols);
    return product_demand(matrices, rows, cols, 0.5, 1, 8, rows * cols + n * n + proof_elements(n));
}
inline Demand polar_backward_demand(int64_t matrices, int64_t rows, int64_t cols) {
    const int64_t n = std::min(rows, cols);
    // A, C, a product, H, K and the one before; a damped inverse, what of, and three for making it
    return product_demand(matrices, rows, cols, rows == cols ? 2.5 : 3.5, 6, 14, 11 * n * n);
}

// The polynomials that the algorithms may choose for a matrix of this size and tolerance: the
// table's, thinned out so that they can travel with a launch.
inline void tabulate(double tolerance, Polynomials& out) {
    const MinimaxTable& table = MinimaxTable::instance();
    const Minimax* last = nullptr;
    auto add = [&](double l) {
        const Minimax& p = table.choose(l, tolerance);
        if (&p == last) return;
        last = &p;
        if (out.choices == most_polynomials) --out.choices;  // the last has to serve every l below
        out.low[out.choices] = p.l;
        out.choice[out.choices++] = p;
    };
    for (double gap = 1e-8; gap < 1e-3; gap *= 4) add(1 - gap);
    for (double gap = 1e-3; gap < 0.5; gap *= gap < 0.25 ? 1.1 : 1.03) add(1 - gap);
    for (double l = 0.5; l > 0.017; l /= 1.12) add(l);
    add(0);
    const Minimax* cubic = nullptr;
    for (double l = 0.34; l > 0.085; l /= 1.12) {
        const Minimax& p = table.cubic(l);
        if (&p == cubic || out.cubics == 24) continue;
        cubic = &p;
        out.cubic_low[out.cubics] = p.l;
        out.cubic[out.cubics++] = p;
    }
}
// What the forward asks of each direction; see polar().
inline double polar_per_direction(double tolerance, int64_t n) {
    return std::min(0.5 * tolerance / std::sqrt(double(n)), 0.5 * 1e-5);
}

}  // namespace lipfuse::cuda
