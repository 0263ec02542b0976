#include <algorithm>
#include <numeric>

#include "../algorithms/polar.h"
#include "operators.h"

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

// One matrix of one of several weights.
struct Job {
    size_t weight;
    int64_t matrix;  // within the weight
    int64_t info;    // its row
    int64_t rows, cols;
    double scale;

    double work() const { return double(rows) * double(cols) * double(std::min(rows, cols)); }
    int64_t area() const { return rows * cols; }
    int64_t root_area() const { return std::min(rows, cols) * std::min(rows, cols); }
};

// Runs f(backend, job) for all: matrices that are a large part of the whole one after the other
// with all threads inside each, the others side by side, spread by their work. The schedule depends
// on sizes and thread count alone, so that results are reproducible.
template <class T, class F>
void for_each_job(const std::vector<Job>& jobs, F f) {
    double total = 0;
    for (const Job& j : jobs) total += j.work();
    in_team(total, [&](Parallel team) {
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
    });
}

std::vector<Job> jobs_of(const std::vector<Tensor>& weights, const std::vector<int64_t>& groups,
                         const std::vector<double>& scales) {
    STD_TORCH_CHECK(groups.size() == weights.size() && scales.size() == weights.size(),
                    "lipfuse: weights, groups and scales must have the same length");
    std::vector<Job> jobs;
    int64_t row = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
        const Tensor& w = weights[i];
        STD_TORCH_CHECK(w.dim() >= 2 && w.scalar_type() == weights[0].scalar_type() &&
                            groups[i] > 0 && groups[i] <= std::max<int64_t>(1, w.size(0)) &&
                            w.size(0) % groups[i] == 0,
                        "lipfuse: weight ", i,
                        " must have at least 2 dimensions, the dtype of the first, and a first"
                        " dimension that its groups divide");
        const int64_t rows = w.size(0) / groups[i], cols = w.size(0) ? w.numel() / w.size(0) : 0;
        for (int64_t g = 0; g < groups[i]; ++g)
            jobs.push_back({i, g, row++, rows, cols, scales[i]});
    }
    return jobs;
}

// The matrices of one (..., m, n) tensor.
std::vector<Job> jobs_of(const Tensor& weight, double scale) {
    const Matrices m(weight);
    std::vector<Job> jobs;
    for (int64_t i = 0; i < m.batch; ++i) jobs.push_back({0, i, i, m.rows, m.cols, scale});
    return jobs;
}

using Tensors = std::vector<Tensor>;

// What the backward reads of weight i: as many elements as its matrices have.
void check_backward(const Tensor& grad, const Tensor& weight, const Tensor& orthogonal,
                    const Tensor& root, const Job& job, int64_t count) {
    check_like(grad, weight, count * job.area(), "weight");
    check_like(grad, orthogonal, count * job.area(), "orthogonal");
    check_same_dtype(grad, root, "inverse_root");
    if (root.numel() != 0 || job.rows != job.cols)
        check_numel(root, count * job.root_area(), "inverse_root");
}
void check_info(const Tensor& info, int64_t matrices) {
    STD_TORCH_CHECK(info.scalar_type() == ScalarType::Double, "lipfuse: info must be float64");
    check_numel(info, matrices * info_size, "info");
}

// Q of every job into `out`, (WᵀW)^(-1/2) into `roots` where there is room for it.
void run(const std::vector<Job>& jobs, const Tensors& weights, double tol, const Tensors& out,
         const Tensors& roots, const Tensor& info) {
    by_dtype(out[0], [&](auto zero) {
        using T = decltype(zero);
        for_each_job<T>(jobs, [&](Backend<T>& backend, const Job& j) {
            T* root = data_or_null<T>(roots[j.weight]);
            const int64_t at = j.matrix * j.area();
            write(polar(backend, data<T>(weights[j.weight]) + at, j.rows, j.cols, tol, j.scale,
                        data<T>(out[j.weight]) + at,
                        root ? root + j.matrix * j.root_area() : nullptr),
                  data<double>(info) + j.info * info_size);
        });
    });
}

void run_backward(const std::vector<Job>& jobs, const Tensors& grads, const Tensors& weights,
                  const Tensors& orthogonal, const Tensors& roots, const Tensor& info, double tol,
                  bool tangent, const Tensors& out) {
    by_dtype(out[0], [&](auto zero) {
        using T = decltype(zero);
        for_each_job<T>(jobs, [&](Backend<T>& backend, const Job& j) {
            const int64_t at = j.matrix * j.area();
            const T* root = data_or_null<T>(roots[j.weight]);
            const double* r = data<double>(info) + j.info * info_size;
            polar_backward(backend, data<T>(grads[j.weight]) + at, data<T>(weights[j.weight]) + at,
                           data<T>(orthogonal[j.weight]) + at,
                           root ? root + j.matrix * j.root_area() : nullptr, j.rows, j.cols,
                           j.scale, r[0], r[1], tol, tangent, data<T>(out[j.weight]) + at);
        });
    });
}

std::tuple<Tensor, Tensor, Tensor> orthogonalize(const Tensor& weight, double tol, double scale,
                                                 bool save) {
    const Matrices m(weight);
    check_tolerance(tol);
    const Tensor w = packed(weight);
    const bool keep = save && m.rows != m.cols;
    Tensor out = make(w, sizes_of(w));
    Tensor root = make(w, keep ? batch_sizes(w, {m.small(), m.small()}) : Sizes{0});
    Tensor info = make_double(w, batch_sizes(w, {info_size}));
    run(jobs_of(w, scale), {w}, tol, {out}, {root}, info);
    return {out, root, info};
}

Tensor orthogonalize_backward(const Tensor& grad, const Tensor& weight, const Tensor& orthogonal,
                              const Tensor& inverse_root, const Tensor& info, double tol,
                              double scale, bool tangent) {
    const Tensor g = packed(grad), found = packed(info);
    const Matrices m(g);
    check_tolerance(tol);
    check_info(found, m.batch);
    check_backward(g, weight, orthogonal, inverse_root, {0, 0, 0, m.rows, m.cols, scale}, m.batch);
    Tensor out = make(g, sizes_of(g));
    run_backward(jobs_of(g, scale), {g}, {packed(weight)}, {packed(orthogonal)},
                 {packed(inverse_root)}, found, tol, tangent, {out});
    return out;
}

std::tuple<Tensors, Tensors, Tensor> foreach_orthogonalize(Tensors weights,
                                                           std::vector<int64_t> groups,
                                                           std::vector<double> scales, double tol,
                                                           bool save) {
    STD_TORCH_CHECK(!weights.empty(), "lipfuse: weights must not be empty");
    check_tolerance(tol);
    const std::vector<Job> jobs = jobs_of(weights, groups, scales);
    Tensors out, roots;
    for (size_t i = 0, k = 0; i < weights.size(); k += size_t(groups[i++])) {
        weights[i] = packed(weights[i]);
        out.push_back(make(weights[i], sizes_of(weights[i])));
        const int64_t small = std::min(jobs[k].rows, jobs[k].cols);
        const bool keep = save && jobs[k].rows != jobs[k].cols;
        roots.push_back(make(weights[i], keep ? Sizes{groups[i], small, small} : Sizes{0}));
    }
    Tensor info = make_double(weights[0], {static_cast<int64_t>(jobs.size()), info_size});
    run(jobs, weights, tol, out, roots, info);
    return {out, roots, info};
}

Tensors foreach_orthogonalize_backward(Tensors grads, Tensors weights, Tensors orthogonal,
                                       Tensors inverse_roots, const Tensor& info,
                                       std::vector<int64_t> groups, std::vector<double> scales,
                                       double tol, bool tangent) {
    STD_TORCH_CHECK(!weights.empty(), "lipfuse: weights must not be empty");
    for (const Tensors* list : {&grads, &orthogonal, &inverse_roots})
        STD_TORCH_CHECK(list->size() == weights.size(),
                        "lipfuse: lists of tensors must have the length of weights");
    check_tolerance(tol);
    const std::vector<Job> jobs = jobs_of(weights, groups, scales);
    check_info(info, static_cast<int64_t>(jobs.size()));
    Tensors out;
    for (size_t i = 0, k = 0; i < grads.size(); k += size_t(groups[i++])) {
        check_like(weights[i], grads[i], weights[i].numel(), "grads");
        check_backward(grads[i], weights[i], orthogonal[i], inverse_roots[i], jobs[k], groups[i]);
        grads[i] = packed(grads[i]);
        weights[i] = packed(weights[i]);
        orthogonal[i] = packed(orthogonal[i]);
        inverse_roots[i] = packed(inverse_roots[i]);
        out.push_back(make(grads[i], sizes_of(grads[i])));
    }
    run_backward(jobs, grads, weights, orthogonal, inverse_roots, packed(info), tol, tangent, out);
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
