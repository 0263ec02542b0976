#include <algorithm>
#include <numeric>

#include "../algorithms/polar_gradient.h"
#include "checks.h"

namespace lipfuse::cpu {
namespace {

constexpr int64_t info_size = 5;  // PolarInfo: low, high, residual, bound, stages

void write(const PolarInfo& p, double* to) {
    to[0] = p.low;
    to[1] = p.high;
    to[2] = p.residual;
    to[3] = p.bound;
    to[4] = p.stages;
}

// One matrix of one of the weights.
struct Job {
    size_t weight;
    int64_t matrix;  // within the weight
    int64_t of;      // so many
    int64_t info;    // its row
    int64_t rows, cols;
    double scale;

    double work() const { return double(rows) * double(cols) * double(std::min(rows, cols)); }
    int64_t area() const { return rows * cols; }
};

template <class T>
PolarSaved<T> saved_for(const Tensor& saved, const Job& j) {
    return {data_or_null<T>(saved), saved_count(saved, j.of, j.rows, j.cols), j.rows, j.cols,
            j.matrix};
}

// Runs f(backend, job) for all: matrices that are a large part of the whole one after the other
// with all threads inside each, the others side by side, spread by their work. The schedule depends
// on sizes, thread count and instruction set alone, so that results are reproducible.
template <class T, class F>
void for_each_job(const std::vector<Job>& jobs, F f) {
    double total = 0;
    for (const Job& j : jobs) total += j.work();
    const auto run = [&](Parallel team) {
        std::vector<size_t> order(jobs.size());
        std::iota(order.begin(), order.end(), size_t(0));
        std::stable_sort(order.begin(), order.end(),
                         [&](size_t a, size_t b) { return jobs[a].work() > jobs[b].work(); });
        size_t first = 0;
        {
            Backend<T> backend(team);
            double left = total;
            while (first < order.size() && jobs[order[first]].work() * team.threads > 0.8 * left) {
                left -= jobs[order[first]].work();
                f(backend, jobs[order[first++]]);
            }
        }
        std::vector<std::vector<size_t>> bins(static_cast<size_t>(team.threads));
        std::vector<double> load(bins.size(), 0.0);
        for (size_t i = first; i < order.size(); ++i) {
            const size_t b = size_t(std::min_element(load.begin(), load.end()) - load.begin());
            bins[b].push_back(order[i]);
            load[b] += jobs[order[i]].work() + 3e4;  // a matrix has a cost of its own
        }
        team.for_each(static_cast<int>(bins.size()), [&](int b) {
            Backend<T> backend;
            for (size_t i : bins[size_t(b)]) f(backend, jobs[i]);
        });
    };
    // The cores of processors with a tile unit are so far apart that one of them normalises a matrix on
    // its own as fast as they share it, up to about 128 rows and columns.
    const bool far_apart = kernels<T>().split_product != nullptr;
    in_team(total, run, jobs.size() == 1 && far_apart ? 1.5e6 : 4e5);
}

// Those of several weights.
std::vector<Job> jobs_of(const std::vector<Matrices>& matrices, const std::vector<double>& scales) {
    std::vector<Job> jobs;
    int64_t row = 0;
    for (size_t i = 0; i < matrices.size(); ++i) {
        const Matrices& m = matrices[i];
        for (int64_t g = 0; g < m.batch; ++g)
            jobs.push_back({i, g, m.batch, row++, m.rows, m.cols, scales[i]});
    }
    return jobs;
}

// Q of every job into `out`, what its gradient wants into `saved` where there is room for it.
void run(const std::vector<Job>& jobs, const Tensors& weights, double tol, const Tensors& out,
         const Tensors& saved, const Tensor& info) {
    by_dtype(out[0], [&](auto zero) {
        using T = decltype(zero);
        for_each_job<T>(jobs, [&](Backend<T>& backend, const Job& j) {
            const auto keep = saved_for<T>(saved[j.weight], j);
            const int64_t at = j.matrix * j.area();
            write(polar(backend, data<T>(weights[j.weight]) + at, j.rows, j.cols, tol, j.scale,
                        data<T>(out[j.weight]) + at, keep.inverse_root, keep.factor),
                  data<double>(info) + j.info * info_size);
        });
    });
}

void run_backward(const std::vector<Job>& jobs, const Tensors& grads, const Tensors& weights,
                  const Tensors& orthogonal, const Tensors& saved, const Tensor& info, double tol,
                  bool tangent, const Tensors& out) {
    by_dtype(out[0], [&](auto zero) {
        using T = decltype(zero);
        for_each_job<T>(jobs, [&](Backend<T>& backend, const Job& j) {
            const int64_t at = j.matrix * j.area();
            const auto kept = saved_for<T>(saved[j.weight], j);
            const double* r = data<double>(info) + j.info * info_size;
            polar_backward(backend, data<T>(grads[j.weight]) + at, data<T>(weights[j.weight]) + at,
                           data<T>(orthogonal[j.weight]) + at, kept.inverse_root, j.rows, j.cols,
                           j.scale, r[0], r[1], tol, tangent, data<T>(out[j.weight]) + at,
                           static_cast<const T*>(kept.factor));
        });
    });
}

std::tuple<Tensor, Tensor, Tensor> orthogonalize(const Tensor& weight, double tol, double scale,
                                                 bool save) {
    const Matrices m(weight);
    check_tolerance(tol);
    const Tensor w = packed(weight);
    Tensor out = make(w, sizes_of(w));
    Tensor saved = make_saved(w, batch_sizes(w, {}), m, tol, save);
    Tensor info = make_double(w, batch_sizes(w, {info_size}));
    run(jobs_of({m}, {scale}), {w}, tol, {out}, {saved}, info);
    return {out, saved, info};
}

Tensor orthogonalize_backward(const Tensor& grad, const Tensor& weight, const Tensor& orthogonal,
                              const Tensor& saved, const Tensor& info, double tol, double scale,
                              bool tangent) {
    const Tensor g = packed(grad), found = packed(info);
    const Matrices m(g);
    check_tolerance(tol);
    check_info(g, found, m.batch * info_size);
    check_polar(g, weight, orthogonal, saved, m, tangent);
    Tensor out = make(g, sizes_of(g));
    run_backward(jobs_of({m}, {scale}), {g}, {packed(weight)}, {packed(orthogonal)},
                 {packed(saved)}, found, tol, tangent, {out});
    return out;
}

std::tuple<Tensors, Tensors, Tensor> foreach_orthogonalize(Tensors weights,
                                                           std::vector<int64_t> groups,
                                                           std::vector<double> scales, double tol,
                                                           bool save) {
    check_tolerance(tol);
    const std::vector<Matrices> matrices = check_weights(weights, groups, scales);
    const std::vector<Job> jobs = jobs_of(matrices, scales);
    Tensors out, saved;
    for (size_t i = 0; i < weights.size(); ++i) {
        const Matrices& m = matrices[i];
        weights[i] = packed(weights[i]);
        out.push_back(make(weights[i], sizes_of(weights[i])));
        saved.push_back(make_saved(weights[i], {m.batch}, m, tol, save));
    }
    Tensor info = make_double(weights[0], {static_cast<int64_t>(jobs.size()), info_size});
    run(jobs, weights, tol, out, saved, info);
    return {out, saved, info};
}

Tensors foreach_orthogonalize_backward(Tensors grads, Tensors weights, Tensors orthogonal,
                                       Tensors saved, const Tensor& info,
                                       std::vector<int64_t> groups, std::vector<double> scales,
                                       double tol, bool tangent) {
    check_lengths(weights, {&grads, &orthogonal, &saved});
    check_tolerance(tol);
    const std::vector<Matrices> matrices = check_weights(weights, groups, scales);
    const std::vector<Job> jobs = jobs_of(matrices, scales);
    check_info(weights[0], info, static_cast<int64_t>(jobs.size()) * info_size);
    Tensors out;
    for (size_t i = 0; i < grads.size(); ++i) {
        check_polar(weights[i], grads[i], orthogonal[i], saved[i], matrices[i], tangent);
        grads[i] = packed(grads[i]);
        weights[i] = packed(weights[i]);
        orthogonal[i] = packed(orthogonal[i]);
        saved[i] = packed(saved[i]);
        out.push_back(make(grads[i], sizes_of(grads[i])));
    }
    run_backward(jobs, grads, weights, orthogonal, saved, packed(info), tol, tangent, out);
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lipfuse, CPU, m) {
    m.impl("orthogonalize", TORCH_BOX(&orthogonalize));
    m.impl("orthogonalize_backward", TORCH_BOX(&orthogonalize_backward));
    m.impl("foreach_orthogonalize", TORCH_BOX(&foreach_orthogonalize));
    m.impl("foreach_orthogonalize_backward", TORCH_BOX(&foreach_orthogonalize_backward));
}

}  // namespace lipfuse::cpu
