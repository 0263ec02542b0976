// Products on the tile unit: operands are split into their parts, then the result is shared out.
#pragma once

#include <algorithm>
#include <cstdint>

#include "arena.h"
#include "kernels.h"
#include "parallel.h"

namespace lipfuse::cpu {

template <class T>
class SplitProduct {
public:
    SplitProduct(const Kernels<T>& kernels, const Parallel& parallel, Arena& arena)
        : kernels_(kernels), parallel_(parallel), arena_(arena) {}

    // Of results of so many rows and columns those are worth splitting in which every part is of use
    // often enough, unless too many threads would share them otherwise: a task is about twice as fast
    // here, but has to be larger. `work`: multiplications.
    bool pays(int64_t rows, int64_t cols, double work, int threads) const {
        return kernels_.split_product && std::min(rows, cols) > 2 * block_side &&
               work >= least_work && threads <= 2 * tasks(work, threads);
    }

    void compute(Product<T> p, double work, int threads) {
        const int tasks = this->tasks(work, threads);
        const int64_t rows = blocks_of(p.terms[0].a.rows), cols = blocks_of(p.terms[0].b.cols);
        const bool mirrored = p.mirror != Mirror::none, by_columns = !mirrored && cols > rows;
        if (p.epilogue.stride == 0) p.epilogue.stride = p.terms[0].b.cols;
        const auto mark = arena_.mark();
        // Each task splits what it needs: to read what another core has split takes longer.
        const int64_t size = SplitPlan(p).scratch(cols);
        uint16_t* scratch = arena_.allocate<uint16_t>(tasks * size);
        parallel_.for_each(tasks, [&](int t) {
            Blocks some{0, rows, 0, cols};
            if (by_columns) {
                some.col_begin = cols * t / tasks;
                some.col_end = cols * (t + 1) / tasks;
            } else {
                const Work work{mirrored, cols, mirrored && rows >= 12 ? 2 : 0};
                work.cut(work.above(rows) * t / tasks, some.row_begin, some.first_col);
                work.cut(work.above(rows) * (t + 1) / tasks, some.row_end, some.last_col);
                if (some.last_col > 0)
                    ++some.row_end;
                else
                    some.last_col = cols;
            }
            kernels_.split_product(p, some, scratch + t * size);
        });
        arena_.release(mark);
    }

    // H K + K H = P - Pᵀ with P = H K, for a symmetric h and a skew-symmetric k, through the epilogue: half
    // the splitting of a product of two terms. `known` has room for P.
    void anticommutator(const View<const T>& h, const View<const T>& k, const Epilogue<T>& e,
                        T* known, double work, int threads) {
        const int64_t n = h.rows, rows = blocks_of(n);
        Product<T> p;
        p.terms[0] = {h, k};
        p.layout = h.layout == Layout::rows ? Layout::rows : Layout::all_blocks;
        p.epilogue.out[0] = known;
        compute(p, work, threads);
        const View<const T> whole{known, n, n, n, 1, Mirror::none, p.layout};
        p.mirror = Mirror::skew;
        p.layout = h.layout;
        p.epilogue = e;
        p.epilogue.stride = n;
        // Rows grow from top to bottom: more pieces than threads, the longest first.
        const int tasks = this->tasks(work, threads),
                  pieces = tasks > 1 ? int(std::min<int64_t>(rows, 4 * tasks)) : 1;
        parallel_.for_each(pieces, [&](int t) {
            kernels_.finish_skew(p, whole, rows * (pieces - 1 - t) / pieces,
                                 rows * (pieces - t) / pieces);
        });
    }

private:
    static constexpr double least_work = 1e6;  // of a task

    static int tasks(double work, int threads) {
        return std::max(1, int(std::min(double(threads), work / least_work)));
    }

    // What the first rows of blocks take, in blocks.
    struct Work {
        bool mirrored;
        int64_t cols;
        int64_t splitting;  // of a row's operand, which counts where there are many rows

        int64_t above(int64_t row) const {
            return mirrored ? row * (row + 1) / 2 + row * splitting : row * cols;
        }
        // The block at which so much is done, row by row.
        void cut(int64_t work, int64_t& row, int64_t& col) const {
            row = 0;
            while (above(row + 1) <= work) ++row;
            col = std::max<int64_t>(0, work - above(row) - splitting);
        }
    };

    const Kernels<T>& kernels_;
    const Parallel& parallel_;
    Arena& arena_;
};

}  // namespace lipfuse::cpu
