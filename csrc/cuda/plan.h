// How a launch is laid out, decided from sizes alone: blocks for a matrix, and where scratch lies.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backend.h"

namespace lipfuse::cuda {

// What a kernel asks for.
struct Demand {
    int64_t batch;
    int64_t wanted_blocks;     // for one matrix, if there were no limit
    int64_t arrays, elements;  // scratch: how many arrays at most, and their elements together
    int64_t elements_a_block;  // further ones for each block of a team of several
};

// What the device has for this kernel.
struct Limits {
    int64_t shared_bytes;     // a block may have
    int64_t resident_blocks;  // that run at the same time, with the least of shared memory
};

struct Plan {
    Layout layout;  // without the pointers
    int64_t teams = 0;
    int64_t shared_bytes = 0;  // dynamic shared memory of a block
    bool cooperative = false;
    // one workspace: counters, partial sums, scratch
    int64_t partial_at = 0, scratch_at = 0, workspace_bytes = 0;

    int64_t blocks() const { return teams * layout.team_blocks; }
    void attach(char* workspace) {
        layout.counters = reinterpret_cast<unsigned*>(workspace);
        layout.partial = reinterpret_cast<double*>(workspace + partial_at);
        layout.scratch = workspace + scratch_at;
    }
};

template <class T>
Plan make_plan(const Demand& d, const Limits& limits) {
    Plan p;
    const int64_t fixed = shared_bytes(sizeof(Shared<T>));
    const int64_t share =
        std::max<int64_t>(1, limits.resident_blocks / std::max<int64_t>(1, d.batch));
    const int64_t blocks = std::max<int64_t>(1, std::min(d.wanted_blocks, share));
    p.layout.batch = d.batch;
    p.layout.team_blocks = static_cast<int>(blocks);
    p.shared_bytes = fixed;
    const int64_t elements = d.elements + (blocks > 1 ? blocks * d.elements_a_block : 0);
    const int64_t scratch =
        (array_bytes(elements, sizeof(T)) + d.arrays * array_bytes(1, sizeof(T)) + 255) / 256 * 256;
    if (blocks == 1) {
        p.layout.shared_scratch = std::min(scratch, limits.shared_bytes - fixed) / 16 * 16;
        p.shared_bytes += p.layout.shared_scratch;
        p.teams = d.batch;
        if (scratch <= p.layout.shared_scratch) return p;
        p.teams = std::min(d.batch, limits.resident_blocks);  // bounds what scratch takes
    } else {
        p.cooperative = true;
        p.teams = std::min(d.batch, limits.resident_blocks / blocks);
    }
    p.layout.scratch_bytes = scratch;
    p.partial_at = (p.teams * int64_t(sizeof(unsigned)) + 255) / 256 * 256;
    p.scratch_at =
        p.partial_at + (p.teams * 2 * blocks * int64_t(sizeof(double)) + 255) / 256 * 256;
    p.workspace_bytes = p.scratch_at + p.teams * scratch;
    return p;
}

// ---- demands: the arrays that each algorithm allocates at the same time --------------------------

inline int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

// Passes over memory: a block for every so many elements.
inline Demand pass_demand(int64_t batch, int64_t elements) {
    return {batch, ceil_div(elements, 8192), 0, 0, 0};
}
inline Demand power_demand(int64_t batch, int64_t rows, int64_t cols) {
    return {batch, std::min(ceil_div(rows * cols, 8192), ceil_div(rows, 8)), 4, rows + cols, cols};
}
// Products: below about 96³ one block has all in shared memory and needs no barrier across blocks.
inline int64_t product_blocks(int64_t rows, int64_t cols) {
    const int64_t small = std::min(rows, cols), work = rows * cols * small;
    return work <= 96 * 96 * 96 ? 1 : ceil_div(work, 16 * 32 * 32 * 32);
}
inline Demand bjorck_demand(int64_t batch, int64_t rows, int64_t cols, bool chain) {
    const int64_t small = std::min(rows, cols), area = rows * cols, n2 = small * small;
    // S, two iterates, the guard's two squares; the chain's W / sigma, and its power iteration
    return {batch, product_blocks(rows, cols), 12,
            3 * n2 + 2 * area + (chain ? area + rows + cols : 0), chain ? cols : 0};
}
inline Demand bjorck_backward_demand(int64_t batch, int64_t rows, int64_t cols) {
    const int64_t small = std::min(rows, cols);
    return {batch, product_blocks(rows, cols), 8, 3 * small * small + rows * cols, 0};
}
inline Demand polar_demand(int64_t batch, int64_t rows, int64_t cols) {
    const int64_t n = std::min(rows, cols), n2 = n * n;
    // R, P, two of scratch, the growing root; then a copy of W, the factors of a polynomial,
    // Cholesky's, or Lanczos's vectors
    return {batch, product_blocks(rows, cols), 16, 5 * n2 + std::max(rows * cols, 2 * n2) + 4 * n,
            0};
}
inline Demand polar_backward_demand(int64_t batch, int64_t rows, int64_t cols) {
    const int64_t n = std::min(rows, cols);
    // A, K, C, H, D and a product; a damped inverse and three for making it
    return {batch, product_blocks(rows, cols), 14, 11 * n * n, 0};
}

// The polynomials that the algorithms may choose for a matrix of this size and tolerance: the
// table's, thinned out so that they can travel with a launch.
inline void tabulate(double tolerance, Polynomials& out) {
    const MinimaxTable& table = MinimaxTable::instance();
    const Minimax* last = nullptr;
    auto add = [&](double l) {
        const Minimax& p = table.choose(l, tolerance);
        if (&p == last || out.choices == most_polynomials) return;
        last = &p;
        out.low[out.choices] = p.l;
        out.choice[out.choices++] = p;
    };
    for (double gap = 1e-8; gap < 1e-3; gap *= 4) add(1 - gap);
    for (double gap = 1e-3; gap < 0.5; gap *= 1.1) add(1 - gap);
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
