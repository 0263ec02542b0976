// How work is shared out: in how many tasks, and which rows are theirs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>

#include "kernels.h"
#include "parallel.h"

namespace lipfuse::cpu {

template <class T>
class Shares {
public:
    static constexpr int max_tasks = 64;

    Shares(const Kernels<T>& kernels, const Parallel& parallel)
        : parallel_(parallel),
          whole_(std::lcm(int64_t(kernels.tile_rows), int64_t(kernels.tile_cols))),
          fine_(std::lcm(int64_t(kernels.tile_rows), int64_t(kernels.lanes))) {}

    const Parallel& parallel() const { return parallel_; }
    int task_count(double work, double work_a_task) const {
        if (parallel_.threads <= 1) return 1;
        return int(std::min(
            {double(parallel_.threads), double(max_tasks), std::max(1.0, work / work_a_task)}));
    }
    static int64_t panels(int64_t n, int64_t width) { return (n + width - 1) / width; }
    static int64_t part(int64_t n, int t, int tasks) { return n * t / tasks; }

    // Whole register tiles in both directions, and whole vectors: blocks on the diagonal belong to one
    // task.
    int64_t row_step() const { return whole_; }
    // Whole tiles in one direction, and whole vectors.
    int64_t fine_step() const { return fine_; }

    // Calls f(task, first row, last row) for the rows of a triangle, whose lengths grow from top to
    // bottom: more tasks than threads, the longest rows first, so that the short ones fill the gaps.
    // Returns the number of tasks.
    template <class F>
    int over_triangle(int64_t n, int threads, F f) const {
        if (threads <= 1) {
            f(0, int64_t(0), n);
            return 1;
        }
        // A register tile is two vectors wide, and of those that meet the diagonal within the first of
        // them only that is computed: so few rows may be cut there as well.
        const int64_t step = panels(n, whole_) > threads ? whole_ : fine_;
        return longest_first(panels(n, step), [&](int t, int64_t begin, int64_t end) {
            f(t, begin * step, std::min(n, end * step));
        });
    }
    // The same for rows of blocks of 32.
    template <class F>
    void over_blocks(int64_t n, int threads, F f) const {
        if (threads <= 1)
            f(int64_t(0), blocks_of(n));
        else
            longest_first(blocks_of(n), [&](int, int64_t begin, int64_t end) { f(begin, end); });
    }
    // For rows of a lower half, of which all tasks have about as many elements, and always the same
    // rows, which a thread then finds where it left them.
    template <class F>
    int over_rows_of_half(int64_t n, int64_t step, int tasks, F f) const {
        parallel_.for_each(tasks, [&](int t) {
            f(t, row_of_half(n, step, t, tasks), row_of_half(n, step, t + 1, tasks));
        });
        return tasks;
    }
    static int64_t row_of_half(int64_t n, int64_t step, int t, int tasks) {
        if (t == tasks) return n;
        const double share = std::sqrt(double(t) / double(tasks));
        return std::min(n, int64_t(share * double(n) / double(step) + 0.5) * step);
    }

private:
    template <class F>
    int longest_first(int64_t count, F f) const {
        const int tasks = int(std::min<int64_t>(count, max_tasks));
        parallel_.for_each(tasks, [&](int t) {
            f(t, part(count, tasks - 1 - t, tasks), part(count, tasks - t, tasks));
        });
        return tasks;
    }

    Parallel parallel_;
    int64_t whole_, fine_;
};

}  // namespace lipfuse::cpu
