// Runs one kernel on the host's model of a GPU: arguments and sizes from the command line, arrays
// from standard input to standard output. Only test_host_execution.py calls this.
//
//   host_kernels OPERATOR DTYPE BATCH ROWS COLS RESIDENT_BLOCKS SHARED_BYTES ORDER PARAMETER...
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cuda/plan.h"
#include "cuda/kernels.h"

namespace {

using namespace lipfuse::cuda;

[[noreturn]] void stop(const char* why) {
    std::fprintf(stderr, "host_kernels: %s\n", why);
    std::exit(2);
}

// A buffer of its own, so that a sanitizer sees both its ends.
template <class V>
struct Buffer {
    explicit Buffer(int64_t n)
        : count(n), data(static_cast<V*>(std::malloc(n ? n * sizeof(V) : 1))) {
        std::memset(data, 0xff, n * sizeof(V));
    }
    Buffer(const Buffer&) = delete;
    ~Buffer() { std::free(data); }
    Buffer& read() {
        if (std::fread(data, sizeof(V), size_t(count), stdin) != size_t(count))
            stop("input is too short");
        return *this;
    }
    void write() const { std::fwrite(data, sizeof(V), size_t(count), stdout); }
    operator V*() const { return data; }

    int64_t count;
    V* data;
};

struct Case {
    std::string op;
    int64_t batch, rows, cols;
    Limits limits;
    host::Order order;
    std::vector<double> parameters;

    double p(size_t i) const {
        if (i >= parameters.size()) stop("a parameter is missing");
        return parameters[i];
    }
};

template <class T, class Body>
void execute(const Case& c, const Demand& demand, Body body) {
    Plan plan = make_plan<T>(demand, c.limits);
    std::fprintf(stderr, "teams %lld of %d blocks, shared %lld, workspace %lld\n",
                 static_cast<long long>(plan.teams), plan.layout.team_blocks,
                 static_cast<long long>(plan.shared_bytes),
                 static_cast<long long>(plan.workspace_bytes));
    Buffer<char> workspace(plan.workspace_bytes);
    plan.attach(workspace);
    std::memset(workspace.data, 0, size_t(plan.partial_at));
    if (plan.teams == 0) return;
    host::Grid::launch(static_cast<int>(plan.blocks()), block_threads, size_t(plan.shared_bytes),
                       c.order, [&] { body(plan.layout); });
}

template <class T>
void power(const Case& c, bool normalize) {
    Buffer<T> w(c.batch * c.rows * c.cols), u(c.batch * c.rows), v(c.batch * c.cols);
    Buffer<T> new_u(u.count), new_v(v.count), sigma(c.batch), out(w.count);
    w.read();
    u.read();
    const bool given = c.p(2) != 0;
    if (given) v.read();
    const PowerArguments<T> a{
        w, u, given ? v.data : nullptr, new_u, new_v, sigma, c.rows, c.cols, int(c.p(0)), c.p(1)};
    execute<T>(c, power_demand(c.batch, c.rows, c.cols), [&](const Layout& l) {
        if (normalize)
            spectral_normalize_kernel(l, a, c.p(3), out.data);
        else
            power_iteration_kernel(l, a);
    });
    if (normalize) out.write();
    sigma.write();
    new_u.write();
    new_v.write();
}

template <class T>
void power_backward(const Case& c) {
    Buffer<T> g(c.batch), u(c.batch * c.rows), v(c.batch * c.cols), out(c.batch * c.rows * c.cols);
    g.read();
    u.read();
    v.read();
    OuterArguments<T> a{};
    a.grad_sigma = g;
    a.u = u;
    a.v = v;
    a.out = out;
    a.rows = c.rows;
    a.cols = c.cols;
    execute<T>(c, pass_demand(c.batch, c.rows * c.cols),
               [&](const Layout& l) { power_iteration_backward_kernel(l, a); });
    out.write();
}

template <class T>
void normalize_backward(const Case& c) {
    const int64_t area = c.batch * c.rows * c.cols;
    Buffer<T> g(area), gs(c.batch), w(area), sigma(c.batch), u(c.batch * c.rows),
        v(c.batch * c.cols), out(area);
    g.read();
    if (c.p(2) != 0) gs.read();
    w.read();
    sigma.read();
    u.read();
    v.read();
    const OuterArguments<T> a{
        g, c.p(2) != 0 ? gs.data : nullptr, w, sigma, u, v, out, c.rows, c.cols, c.p(0), c.p(1)};
    execute<T>(c, pass_demand(c.batch, c.rows * c.cols),
               [&](const Layout& l) { spectral_normalize_backward_kernel(l, a); });
    out.write();
}

template <class T>
void frobenius(const Case& c, bool backward) {
    Buffer<T> in(c.batch * c.cols), w(in.count), norm(c.batch), out(in.count);
    in.read();
    if (backward) {
        w.read();
        norm.read();
    }
    FrobeniusArguments<T> a{in, w, norm, out, norm, c.cols, c.p(0), c.p(1)};
    execute<T>(c, pass_demand(c.batch, c.cols), [&](const Layout& l) {
        backward ? frobenius_normalize_backward_kernel(l, a) : frobenius_normalize_kernel(l, a);
    });
    out.write();
    if (!backward) norm.write();
}

// beta, most iterations, eps, scale, save; of the chain also: n_iterations, eps of sigma
template <class T>
void bjorck_forward(const Case& c, bool chain) {
    const int64_t area = c.batch * c.rows * c.cols, most = int64_t(c.p(1));
    const bool save = c.p(4) != 0;
    Buffer<T> w(area), u(c.batch * c.rows), v(c.batch * c.cols), out(area),
        history(save ? area * most : 0);
    Buffer<T> new_u(u.count), new_v(v.count), sigma(2 * c.batch);
    Buffer<int64_t> steps(c.batch);
    w.read();
    const BjorckArguments<T> a{
        w,      out,   save ? history.data : nullptr, steps, c.rows, c.cols, int(most), c.p(0),
        c.p(2), c.p(3)};
    if (chain) {
        u.read();
        v.read();
        PowerArguments<T> p{w, u, v, new_u, new_v, sigma, c.rows, c.cols, int(c.p(5)), c.p(6), 2};
        execute<T>(c, bjorck_demand(c.batch, c.rows, c.cols, true),
                   [&](const Layout& l) { spectral_bjorck_kernel(l, p, a); });
    } else {
        execute<T>(c, bjorck_demand(c.batch, c.rows, c.cols, false),
                   [&](const Layout& l) { bjorck_kernel(l, a); });
    }
    out.write();
    steps.write();
    if (chain) {
        sigma.write();
        new_u.write();
        new_v.write();
    }
    history.write();
}

// beta, most iterations, scale; of the chain also: eps of sigma
template <class T>
void bjorck_gradient(const Case& c, bool chain) {
    const int64_t area = c.batch * c.rows * c.cols, most = int64_t(c.p(1));
    Buffer<T> g(area), history(area * most), sigma(2 * c.batch), u(c.batch * c.rows),
        v(c.batch * c.cols), out(area);
    Buffer<int64_t> steps(c.batch);
    g.read();
    history.read();
    steps.read();
    if (chain) {
        sigma.read();
        u.read();
        v.read();
    }
    const BjorckBackwardArguments<T> a{g,
                                       history,
                                       steps,
                                       out,
                                       c.rows,
                                       c.cols,
                                       most,
                                       c.p(0),
                                       c.p(2),
                                       chain ? sigma.data : nullptr,
                                       u,
                                       v,
                                       chain ? c.p(3) : 0};
    execute<T>(c, bjorck_backward_demand(c.batch, c.rows, c.cols),
               [&](const Layout& l) { bjorck_backward_kernel(l, a); });
    out.write();
}

// tolerance, scale, save
template <class T>
void polar_forward(const Case& c) {
    const int64_t n = std::min(c.rows, c.cols), area = c.batch * c.rows * c.cols;
    const bool save = c.p(2) != 0;
    Buffer<T> w(area), out(area), root(save ? c.batch * n * n : 0);
    Buffer<double> info(c.batch * info_size);
    w.read();
    auto table = std::make_unique<Polynomials>();
    tabulate(polar_per_direction(c.p(0), n), *table);
    std::fprintf(stderr, "polynomials: %d, %d cubics\n", table->choices, table->cubics);
    const PolarArguments<T> a{w,      out,   save ? root.data : nullptr, info, c.rows, c.cols,
                              c.p(0), c.p(1)};
    execute<T>(c, polar_demand(c.batch, c.rows, c.cols),
               [&](const Layout& l) { orthogonalize_kernel(l, table.get(), a); });
    out.write();
    info.write();
    root.write();
}

// tolerance, scale, tangent, whether the inverse root is given
template <class T>
void polar_gradient(const Case& c) {
    const int64_t n = std::min(c.rows, c.cols), area = c.batch * c.rows * c.cols;
    const bool rooted = c.p(3) != 0;
    Buffer<T> g(area), w(area), q(area), root(rooted ? c.batch * n * n : 0), out(area);
    Buffer<double> info(c.batch * info_size);
    g.read();
    w.read();
    q.read();
    root.read();
    info.read();
    auto table = std::make_unique<Polynomials>();
    tabulate(1.0, *table);
    const PolarBackwardArguments<T> a{g,      w,      q,          rooted ? root.data : nullptr,
                                      info,   out,    c.rows,     c.cols,
                                      c.p(0), c.p(1), c.p(2) != 0};
    execute<T>(c, polar_backward_demand(c.batch, c.rows, c.cols),
               [&](const Layout& l) { orthogonalize_backward_kernel(l, table.get(), a); });
    out.write();
}

// Deliberate mistakes, to prove that they are found.
void mistake(const Case& c) {
    Buffer<double> out(block_threads);
    const std::string kind = c.op.substr(8);
    execute<double>(c, Demand{1, 1, 1, 64, 0}, [&](const Layout& l) {
        Backend<double> backend(l, nullptr);
        double* array = backend.allocate(64);
        const int t = thread_index();
        if (kind == "race") {
            if (t < 64) array[t] = t;
            out[t] = array[(t + 1) % 64];
        } else if (kind == "bounds") {
            if (t <= 64) array[t] = t;
        } else if (kind == "barrier") {
            if (t != 7) sync_threads();
        }
        sync_threads();
    });
}

template <class T>
void dispatch(const Case& c) {
    const std::string& op = c.op;
    if (op == "power_iteration") return power<T>(c, false);
    if (op == "spectral_normalize") return power<T>(c, true);
    if (op == "power_iteration_backward") return power_backward<T>(c);
    if (op == "spectral_normalize_backward") return normalize_backward<T>(c);
    if (op == "frobenius_normalize") return frobenius<T>(c, false);
    if (op == "frobenius_normalize_backward") return frobenius<T>(c, true);
    if (op == "bjorck") return bjorck_forward<T>(c, false);
    if (op == "spectral_bjorck") return bjorck_forward<T>(c, true);
    if (op == "bjorck_backward") return bjorck_gradient<T>(c, false);
    if (op == "spectral_bjorck_backward") return bjorck_gradient<T>(c, true);
    if (op == "orthogonalize") return polar_forward<T>(c);
    if (op == "orthogonalize_backward") return polar_gradient<T>(c);
    if (op.rfind("mistake_", 0) == 0) return mistake(c);
    stop("unknown operator");
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 9) stop("too few arguments");
    Case c;
    c.op = argv[1];
    c.batch = std::atoll(argv[3]);
    c.rows = std::atoll(argv[4]);
    c.cols = std::atoll(argv[5]);
    c.limits.resident_blocks = std::atoll(argv[6]);
    c.limits.shared_bytes = std::atoll(argv[7]);
    const std::string order = argv[8];
    c.order = order == "backward"   ? host::Order::backward
              : order == "shuffled" ? host::Order::shuffled
                                    : host::Order::forward;
    for (int i = 9; i < argc; ++i) c.parameters.push_back(std::atof(argv[i]));
    if (std::string(argv[2]) == "float32")
        dispatch<float>(c);
    else
        dispatch<double>(c);
    return 0;
}
