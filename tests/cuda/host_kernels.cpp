// Runs one kernel on the host's model of a GPU: arguments and sizes from the command line, arrays
// from standard input to standard output. Only the tests call this.
//
//   host_kernels OPERATOR DTYPE SHAPES RESIDENT_BLOCKS SHARED_BYTES PRODUCTS ORDER PARAMETER...
//
// SHAPES are those of the items of one launch, as 2x33x70,1x40x40; PRODUCTS are plain, split or
// rough. Arrays follow each other item by item.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "cuda/layers.h"
#include "cuda/plan.h"

namespace {

using namespace lipfuse::cuda;

[[noreturn]] void stop(const char* why) {
    std::fprintf(stderr, "host_kernels: %s\n", why);
    std::exit(2);
}

struct Shape {
    int64_t batch, rows, cols;
    int64_t area() const { return rows * cols; }
    int64_t small() const { return std::min(rows, cols); }
};

// Buffers of their own, so that a sanitizer sees both ends of each.
class Arrays {
public:
    template <class V>
    V* make(int64_t n) {
        V* data = static_cast<V*>(std::malloc(n ? n * sizeof(V) : 1));
        std::memset(data, 0xff, n * sizeof(V));
        owned_.push_back(data);
        return data;
    }
    template <class V>
    V* read(int64_t n) {
        V* data = make<V>(n);
        if (std::fread(data, sizeof(V), size_t(n), stdin) != size_t(n)) stop("input is too short");
        return data;
    }
    // To be written out, in the order of the calls.
    template <class V>
    V* result(int64_t n) {
        V* data = make<V>(n);
        results_.push_back({data, n * int64_t(sizeof(V))});
        return data;
    }
    void write() const {
        for (const auto& r : results_) std::fwrite(r.first, 1, size_t(r.second), stdout);
    }
    ~Arrays() {
        for (void* p : owned_) std::free(p);
    }

private:
    std::deque<void*> owned_;
    std::vector<std::pair<void*, int64_t>> results_;
};

struct Case {
    std::string op;
    std::vector<Shape> shapes;
    Limits limits;
    host::Order order;
    std::vector<double> parameters;

    double p(size_t i) const {
        if (i >= parameters.size()) stop("a parameter is missing");
        return parameters[i];
    }
};

// Items and what they ask for.
template <class Arguments>
struct Launch {
    Arrays arrays;
    std::vector<Arguments> items;
    std::vector<Demand> demands;

    void add(const Arguments& item, const Demand& demand) {
        items.push_back(item);
        demands.push_back(demand);
    }

    template <class T, class Body>
    void run(const Case& c, int64_t tile_bytes, Body body) {
        auto table = std::make_unique<Table<Arguments>>();
        std::vector<Demand> sorted;
        for (size_t i : costly_first(demands)) {
            table->item[sorted.size()] = items[i];
            sorted.push_back(demands[i]);
        }
        Plan plan = make_plan<T>(sorted, tile_bytes, c.limits);
        std::fprintf(stderr, "%lld blocks, pool %d, shared %lld, workspace %lld; teams:",
                     static_cast<long long>(plan.blocks), plan.layout.pool_blocks,
                     static_cast<long long>(plan.shared_bytes),
                     static_cast<long long>(plan.workspace_bytes));
        for (int i = 0; i < plan.layout.items; ++i)
            std::fprintf(stderr, " %dx%d", plan.layout.place[i].matrices,
                         plan.layout.place[i].blocks);
        std::fprintf(stderr, "\n");
        const std::unique_ptr<char[]> workspace(new char[size_t(plan.workspace_bytes) + 1]);
        std::memset(workspace.get(), 0xff, size_t(plan.workspace_bytes));
        plan.attach(workspace.get());
        std::memset(workspace.get(), 0, size_t(plan.partial_at));
        if (plan.blocks)
            host::Grid::launch(static_cast<int>(plan.blocks), block_threads,
                               size_t(plan.shared_bytes), c.order,
                               [&] { body(plan.layout, *table); });
        arrays.write();
    }
};

template <class T>
int64_t product_tiles(const Case& c) {
    return product_tile_bytes<T>(c.limits.tensor_cores);
}

// n_iterations, eps, whether v is given, scale
template <class T>
PowerArguments<T> power_item(const Case& c, const Shape& s, Arrays& a, bool normalize, int step,
                             const T* w) {
    PowerArguments<T> p{};
    p.weight = w;
    p.u = a.read<T>(s.batch * s.rows);
    if (c.p(2) != 0) p.v = a.read<T>(s.batch * s.cols);
    if (normalize) {
        p.out = a.result<T>(s.batch * s.area());
        p.scale = c.p(3);
    }
    p.sigma = a.result<T>(s.batch * step);
    p.new_u = a.result<T>(s.batch * s.rows);
    p.new_v = a.result<T>(s.batch * s.cols);
    p.rows = s.rows;
    p.cols = s.cols;
    p.n_iterations = int(c.p(0));
    p.eps = c.p(1);
    p.sigma_step = step;
    return p;
}

template <class T>
void power(const Case& c, bool normalize) {
    Launch<PowerArguments<T>> l;
    for (const Shape& s : c.shapes) {
        const T* w = l.arrays.template read<T>(s.batch * s.area());
        l.add(power_item<T>(c, s, l.arrays, normalize, 1, w),
              power_demand(s.batch, s.rows, s.cols));
    }
    l.template run<T>(c, sweep_tile_bytes<T>(), [&](const Layout& layout, const auto& table) {
        normalize ? spectral_normalize_kernel(layout, table)
                  : power_iteration_kernel(layout, table);
    });
}

// eps, scale, whether there is a gradient of sigma
template <class T>
void outer(const Case& c, bool normalize) {
    Launch<OuterArguments<T>> l;
    for (const Shape& s : c.shapes) {
        OuterArguments<T> a{};
        if (normalize) a.grad = l.arrays.template read<T>(s.batch * s.area());
        if (!normalize || c.p(2) != 0) a.grad_sigma = l.arrays.template read<T>(s.batch);
        if (normalize) {
            a.normalized = l.arrays.template read<T>(s.batch * s.area());
            a.sigma = l.arrays.template read<T>(s.batch);
            a.eps = c.p(0);
            a.scale = c.p(1);
        }
        a.u = l.arrays.template read<T>(s.batch * s.rows);
        a.v = l.arrays.template read<T>(s.batch * s.cols);
        a.out = l.arrays.template result<T>(s.batch * s.area());
        a.rows = s.rows;
        a.cols = s.cols;
        l.add(a, pass_demand(s.batch, s.area()));
    }
    l.template run<T>(c, 0, [&](const Layout& layout, const auto& table) {
        normalize ? spectral_normalize_backward_kernel(layout, table)
                  : power_iteration_backward_kernel(layout, table);
    });
}

// eps, scale; a row is a matrix
template <class T>
void frobenius(const Case& c, bool backward) {
    Launch<FrobeniusArguments<T>> l;
    for (const Shape& s : c.shapes) {
        FrobeniusArguments<T> a{};
        a.in = l.arrays.template read<T>(s.batch * s.cols);
        if (backward) {
            a.normalized = l.arrays.template read<T>(s.batch * s.cols);
            a.norm = l.arrays.template read<T>(s.batch);
        }
        a.out = l.arrays.template result<T>(s.batch * s.cols);
        if (!backward) a.new_norm = l.arrays.template result<T>(s.batch);
        a.n = s.cols;
        a.eps = c.p(0);
        a.scale = c.p(1);
        l.add(a, pass_demand(s.batch, s.cols));
    }
    l.template run<T>(c, 0, [&](const Layout& layout, const auto& table) {
        backward ? frobenius_normalize_backward_kernel(layout, table)
                 : frobenius_normalize_kernel(layout, table);
    });
}

// beta, most iterations, eps, scale, whether to keep the history: from parameter `at` on
template <class T>
BjorckArguments<T> bjorck_item(const Case& c, const Shape& s, Arrays& a, size_t at, const T* w) {
    BjorckArguments<T> b{};
    b.weight = w;
    b.out = a.result<T>(s.batch * s.area());
    b.steps = a.result<int64_t>(s.batch);
    b.rows = s.rows;
    b.cols = s.cols;
    b.beta = c.p(at);
    b.max_iterations = int(c.p(at + 1));
    b.eps = c.p(at + 2);
    b.scale = c.p(at + 3);
    if (c.p(at + 4) != 0) b.history = a.result<T>(s.batch * b.max_iterations * s.area());
    return b;
}

template <class T>
void bjorck_forward(const Case& c) {
    Launch<BjorckArguments<T>> l;
    for (const Shape& s : c.shapes) {
        const T* w = l.arrays.template read<T>(s.batch * s.area());
        l.add(bjorck_item<T>(c, s, l.arrays, 0, w), bjorck_demand(s.batch, s.rows, s.cols, false));
    }
    l.template run<T>(c, product_tiles<T>(c), [&](const Layout& layout, const auto& table) {
        bjorck_kernel(layout, table);
    });
}

// of the power iteration: n_iterations, eps, whether v is given; then Björck's
template <class T>
void chain(const Case& c) {
    Launch<ChainArguments<T>> l;
    for (const Shape& s : c.shapes) {
        const T* w = l.arrays.template read<T>(s.batch * s.area());
        const auto power = power_item<T>(c, s, l.arrays, false, 2, w);
        l.add({power, bjorck_item<T>(c, s, l.arrays, 3, w)},
              bjorck_demand(s.batch, s.rows, s.cols, true));
    }
    l.template run<T>(
        c, std::max(product_tiles<T>(c), sweep_tile_bytes<T>()),
        [&](const Layout& layout, const auto& table) { spectral_bjorck_kernel(layout, table); });
}

// beta, most iterations, scale; of the chain also: eps of sigma
template <class T>
void bjorck_gradient(const Case& c, bool chain) {
    Launch<BjorckBackwardArguments<T>> l;
    for (const Shape& s : c.shapes) {
        BjorckBackwardArguments<T> a{};
        a.most_steps = static_cast<int>(c.p(1));
        a.grad = l.arrays.template read<T>(s.batch * s.area());
        a.history = l.arrays.template read<T>(s.batch * a.most_steps * s.area());
        a.steps = l.arrays.template read<int64_t>(s.batch);
        if (chain) {
            a.sigma = l.arrays.template read<T>(2 * s.batch);
            a.u = l.arrays.template read<T>(s.batch * s.rows);
            a.v = l.arrays.template read<T>(s.batch * s.cols);
            a.eps = c.p(3);
        }
        a.out = l.arrays.template result<T>(s.batch * s.area());
        a.rows = s.rows;
        a.cols = s.cols;
        a.beta = c.p(0);
        a.scale = c.p(2);
        l.add(a, bjorck_backward_demand(s.batch, s.rows, s.cols));
    }
    l.template run<T>(c, product_tiles<T>(c), [&](const Layout& layout, const auto& table) {
        bjorck_backward_kernel(layout, table);
    });
}

// tolerance, scale, whether to save what the gradient wants
template <class T>
void polar_forward(const Case& c) {
    Launch<PolarArguments<T>> l;
    double tolerance = 1;
    for (const Shape& s : c.shapes) {
        PolarArguments<T> a{};
        a.weight = l.arrays.template read<T>(s.batch * s.area());
        a.out = l.arrays.template result<T>(s.batch * s.area());
        a.info = l.arrays.template result<double>(s.batch * info_size);
        a.rows = s.rows;
        a.cols = s.cols;
        a.tolerance = c.p(0);
        a.scale = c.p(1);
        a.saved_count = c.p(2) != 0 ? lipfuse::polar_saved_count(s.rows, s.cols, a.tolerance) : 0;
        if (a.saved_count)
            a.saved = l.arrays.template result<T>(s.batch * a.saved_count * s.small() * s.small());
        tolerance = std::min(tolerance, polar_per_direction(a.tolerance, s.small()));
        l.add(a, polar_demand(s.batch, s.rows, s.cols));
    }
    auto polynomials = std::make_unique<Polynomials>();
    tabulate(tolerance, *polynomials);
    std::fprintf(stderr, "polynomials: %d, %d cubics\n", polynomials->choices, polynomials->cubics);
    l.template run<T>(c, product_tiles<T>(c), [&](const Layout& layout, const auto& table) {
        orthogonalize_kernel(layout, table, polynomials.get());
    });
}

// tolerance, scale, tangent, how many matrices the forward has saved of each but the inverse root
template <class T>
void polar_gradient(const Case& c) {
    Launch<PolarBackwardArguments<T>> l;
    for (const Shape& s : c.shapes) {
        PolarBackwardArguments<T> a{};
        a.grad = l.arrays.template read<T>(s.batch * s.area());
        a.weight = l.arrays.template read<T>(s.batch * s.area());
        a.orthogonal = l.arrays.template read<T>(s.batch * s.area());
        a.saved_count = (s.rows != s.cols) + int64_t(c.p(3));
        if (a.saved_count)
            a.saved = l.arrays.template read<T>(s.batch * a.saved_count * s.small() * s.small());
        a.info = l.arrays.template read<double>(s.batch * info_size);
        a.out = l.arrays.template result<T>(s.batch * s.area());
        a.rows = s.rows;
        a.cols = s.cols;
        a.tolerance = c.p(0);
        a.scale = c.p(1);
        a.tangent = c.p(2) != 0;
        l.add(a, polar_backward_demand(s.batch, s.rows, s.cols));
    }
    auto polynomials = std::make_unique<Polynomials>();
    tabulate(1.0, *polynomials);
    l.template run<T>(c, product_tiles<T>(c), [&](const Layout& layout, const auto& table) {
        orthogonalize_backward_kernel(layout, table, polynomials.get());
    });
}

// squarings
template <class T>
void bound(const Case& c) {
    Launch<BoundArguments<T>> l;
    for (const Shape& s : c.shapes) {
        BoundArguments<T> a{};
        a.weight = l.arrays.template read<T>(s.batch * s.area());
        a.out = l.arrays.template result<T>(s.batch);
        a.rows = s.rows;
        a.cols = s.cols;
        a.squarings = int(c.p(0));
        l.add(a, spectral_bound_demand(s.batch, s.rows, s.cols));
    }
    l.template run<T>(c, product_tiles<T>(c), [&](const Layout& layout, const auto& table) {
        spectral_bound_kernel(layout, table);
    });
}

// ---- a product alone -----------------------------------------------------------------------------

template <class T>
struct ProductArguments {
    View<T> a, b;
    Epilogue<T> epilogue;
    bool symmetric, rough;
};

// whether A, B are stored transposed, whether the result is symmetric, whether it may be rough; a
// shape is m x n x k. Results: 2 AB + 3 X + I, and AB - X.
template <class T>
void product(const Case& c) {
    Launch<ProductArguments<T>> l;
    for (const Shape& s : c.shapes) {
        const int64_t m = s.batch, n = s.rows, k = s.cols;
        const T* a = l.arrays.template read<T>(m * k);
        const T* b = l.arrays.template read<T>(k * n);
        ProductArguments<T> p{};
        p.a = c.p(0) != 0 ? Backend<T>::view(a, k, m).transposed() : Backend<T>::view(a, m, k);
        p.b = c.p(1) != 0 ? Backend<T>::view(b, n, k).transposed() : Backend<T>::view(b, k, n);
        Epilogue<T>& e = p.epilogue;
        e.outputs = 2;
        e.x[0] = l.arrays.template read<T>(m * n);
        e.out[0] = l.arrays.template result<T>(m * n);
        e.out[1] = l.arrays.template result<T>(m * n);
        e.acc[0] = 2;
        e.x0[0] = 3;
        e.diagonal[0] = 1;
        e.x0[1] = -1;
        p.symmetric = c.p(2) != 0;
        p.rough = c.p(3) != 0;
        l.add(p, {1, 1, c.limits.resident_blocks, 4, 0, tile_area});
    }
    l.template run<T>(c, product_tiles<T>(c), [&](const Layout& layout, const auto& table) {
        for_each_matrix<T>(layout, table, nullptr,
                           [](Backend<T>& backend, const ProductArguments<T>& p, int64_t) {
                               backend.rough(p.rough);
                               backend.multiply(p.a, p.b, p.epilogue, p.symmetric);
                           });
    });
}

// ---- layers: PRODUCTS does not matter, RESIDENT_BLOCKS is the number of blocks -------------------

// scale, what to do with flags (0 nothing, 1 write, 2 read), offset of the arrays in elements;
// a shape is rows x 1 x inner
template <class E>
void sorting(const Case& c) {
    Arrays arrays;
    for (const Shape& s : c.shapes) {
        const int64_t pairs = s.batch * s.cols, offset = int64_t(c.p(2));
        SortArguments<E> a{};
        E* in = arrays.make<E>(2 * pairs + offset);
        std::memcpy(in + offset, arrays.read<E>(2 * pairs), size_t(2 * pairs) * sizeof(E));
        a.in = in + offset;
        if (c.p(1) == 2) a.exchange = arrays.read<uint8_t>(pairs);
        a.out = arrays.result<E>(2 * pairs);
        if (c.p(1) == 1) a.flags = arrays.result<uint8_t>(pairs);
        a.rows = s.batch;
        a.inner = a.length = s.cols;
        a.scale = c.p(0);
        std::fprintf(stderr, "packs: %d\n", int(takes_packs(a)));
        host::Grid::launch(int(c.limits.resident_blocks), layer_threads, 0, c.order, [&] {
            takes_packs(a) ? sort_pairs_kernel<E, whole_pack<E>>(a) : sort_pairs_kernel<E, 1>(a);
        });
    }
    arrays.write();
}

// kernel height and width, whether the last windows may be cut off, scale, channels, backward;
// a shape is images x height x width, channels last
template <class E, Pooling kind>
void pooling(const Case& c) {
    Arrays arrays;
    for (const Shape& s : c.shapes) {
        PoolArguments<E> a{};
        a.images = s.batch;
        a.height = s.rows;
        a.width = s.cols;
        a.kernel_height = int64_t(c.p(0));
        a.kernel_width = int64_t(c.p(1));
        const bool ceil = c.p(2) != 0, backward = c.p(5) != 0;
        a.out_height = ceil ? a.rows_of_windows() : a.height / a.kernel_height;
        a.out_width = ceil ? a.columns_of_windows() : a.width / a.kernel_width;
        a.scale = c.p(3);
        a.channels = int64_t(c.p(4));
        a.smallest = sizeof(Wide<E>) == 8 ? 0x1p-501 : 0x1p-53;
        a.set_factors();
        const int64_t in = a.images * a.height * a.width * a.channels,
                      out = a.images * a.out_height * a.out_width * a.channels;
        if (!backward || kind == Pooling::norm) a.in = arrays.read<E>(in);
        if (backward) a.grad = arrays.read<E>(out);
        a.out = arrays.result<E>(backward ? in : out);
        const int vectors = vectors_of(a);
        std::fprintf(stderr, "vectors: %d\n", vectors);
        host::Grid::launch(int(c.limits.resident_blocks), layer_threads, 0, c.order, [&] {
            constexpr int V = whole_pack<E>;
            if (vectors == 1)
                backward ? pool_backward_kernel<kind, E, V, false>(a)
                         : pool_kernel<kind, E, V, false>(a);
            else if (vectors == 2)
                backward ? pool_backward_kernel<kind, E, 1, true>(a)
                         : pool_kernel<kind, E, 1, true>(a);
            else
                backward ? pool_backward_kernel<kind, E, 1, false>(a)
                         : pool_kernel<kind, E, 1, false>(a);
        });
    }
    arrays.write();
}

// ---- deliberate mistakes, to prove that they are found -------------------------------------------

struct Mistake {
    double* out;
};
void mistake(const Case& c) {
    Launch<Mistake> l;
    l.add({l.arrays.make<double>(block_threads)}, Demand{1, 1, 1, 1, 64, 0});
    const std::string kind = c.op.substr(8);
    l.run<double>(c, 0, [&](const Layout& layout, const Table<Mistake>& table) {
        Backend<double> backend(layout, nullptr);
        double* array = backend.allocate(64);
        const int t = thread_index();
        if (kind == "race") {
            if (t < 64) array[t] = t;
            table.item[0].out[t] = array[(t + 1) % 64];
        } else if (kind == "bounds") {
            if (t <= 64) array[t] = t;
        } else if (kind == "barrier") {
            if (t != 7) sync_threads();
        }
        sync_threads();
    });
}

// Only the plan, as text.
void plan(const Case& c) {
    std::vector<Demand> demands;
    for (const Shape& s : c.shapes) demands.push_back(polar_demand(s.batch, s.rows, s.cols));
    std::vector<Demand> sorted;
    for (size_t i : costly_first(demands)) sorted.push_back(demands[i]);
    const Plan p = make_plan<float>(sorted, product_tiles<float>(c), c.limits);
    std::printf("%lld %d %lld\n", static_cast<long long>(p.blocks), p.layout.pool_blocks,
                static_cast<long long>(p.shared_bytes));
    for (size_t i = 0; i < sorted.size(); ++i)
        std::printf("%d %d %.0f %lld\n", p.layout.place[i].matrices, p.layout.place[i].blocks,
                    sorted[i].cost, static_cast<long long>(sorted[i].wanted_blocks));
}

template <class T>
void dispatch(const Case& c) {
    const std::string& op = c.op;
    if (op == "power_iteration") return power<T>(c, false);
    if (op == "spectral_normalize") return power<T>(c, true);
    if (op == "power_iteration_backward") return outer<T>(c, false);
    if (op == "spectral_normalize_backward") return outer<T>(c, true);
    if (op == "frobenius_normalize") return frobenius<T>(c, false);
    if (op == "frobenius_normalize_backward") return frobenius<T>(c, true);
    if (op == "bjorck") return bjorck_forward<T>(c);
    if (op == "spectral_bjorck") return chain<T>(c);
    if (op == "bjorck_backward") return bjorck_gradient<T>(c, false);
    if (op == "spectral_bjorck_backward") return bjorck_gradient<T>(c, true);
    if (op == "orthogonalize") return polar_forward<T>(c);
    if (op == "orthogonalize_backward") return polar_gradient<T>(c);
    if (op == "spectral_bound") return bound<T>(c);
    if (op == "product") return product<T>(c);
    if (op == "plan") return plan(c);
    if (op.rfind("mistake_", 0) == 0) return mistake(c);
    stop("unknown operator");
}

template <class E>
bool dispatch_layer(const Case& c) {
    if (c.op == "sort_pairs") return sorting<E>(c), true;
    if (c.op == "scaled_avg_pool2d") return pooling<E, Pooling::average>(c), true;
    if (c.op == "l2_norm_pool2d") return pooling<E, Pooling::norm>(c), true;
    return false;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 8) stop("too few arguments");
    Case c;
    c.op = argv[1];
    for (const char* p = argv[3]; p && *p; p = std::strchr(p, ','), p = p ? p + 1 : p) {
        long long b, m, n;
        if (std::sscanf(p, "%lldx%lldx%lld", &b, &m, &n) != 3) stop("not a shape");
        c.shapes.push_back({b, m, n});
    }
    const std::string dtype = argv[2], products = argv[6], order = argv[7];
    c.limits.resident_blocks = std::atoll(argv[4]);
    c.limits.shared_bytes = std::atoll(argv[5]);
    c.limits.tensor_cores = products != "plain";
    c.limits.rough_products = products == "rough";
    c.order = order == "backward"   ? host::Order::backward
              : order == "shuffled" ? host::Order::shuffled
                                    : host::Order::forward;
    for (int i = 8; i < argc; ++i) c.parameters.push_back(std::atof(argv[i]));
    if (dtype == "bfloat16") return dispatch_layer<lipfuse::Bf16>(c) ? 0 : 2;
    if (dtype == "float16") return dispatch_layer<lipfuse::Fp16>(c) ? 0 : 2;
    if (dtype == "float32")
        dispatch_layer<float>(c) || (dispatch<float>(c), true);
    else
        dispatch_layer<double>(c) || (dispatch<double>(c), true);
    return 0;
}
