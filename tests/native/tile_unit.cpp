// Products on a tile unit (csrc/cpu/split_product.inl) without one: its instructions are spelled out, for
// processors that have AVX-512 alone. Compares with double over shapes, strides, epilogues and tasks, and
// the polar factor and its gradient with what they are without a tile unit; exits with 1 at the first that
// is wrong, else prints how many were right.
#include <immintrin.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "algorithms/polar_gradient.h"
#include "cpu/backend.h"

namespace emulated {
struct Tile {
    uint32_t word[16][16];  // a pair of bf16 each, or a float
};
static Tile tiles[8];
static bool configured = false;

static void require(bool expected) {
    if (configured == expected) return;
    std::fprintf(stderr, "tile_unit: tiles are %s\n", expected ? "not configured" : "not released");
    std::exit(1);
}
static float low(uint32_t pair) {
    pair <<= 16;
    float x;
    std::memcpy(&x, &pair, 4);
    return x;
}
static float high(uint32_t pair) {
    pair &= 0xffff0000u;
    float x;
    std::memcpy(&x, &pair, 4);
    return x;
}
static void load(int tile, const void* from, long stride) {
    require(true);
    for (int r = 0; r < 16; ++r)
        std::memcpy(tiles[tile].word[r], static_cast<const char*>(from) + r * stride, 64);
}
static void store(int tile, void* to, long stride) {
    require(true);
    for (int r = 0; r < 16; ++r)
        std::memcpy(static_cast<char*>(to) + r * stride, tiles[tile].word[r], 64);
}
static void multiply(int sums, int a, int b) {
    require(true);
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 16; ++j) {
            float sum;
            std::memcpy(&sum, &tiles[sums].word[i][j], 4);
            for (int k = 0; k < 16; ++k) {
                const uint32_t x = tiles[a].word[i][k], y = tiles[b].word[k][j];
                sum += low(x) * low(y) + high(x) * high(y);
            }
            std::memcpy(&tiles[sums].word[i][j], &sum, 4);
        }
}
}  // namespace emulated

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) (emulated::configured = (config) != nullptr)
#define _tile_release() (emulated::configured = false)
#define _tile_zero(tile) (emulated::tiles[tile] = emulated::Tile())
#define _tile_loadd(tile, from, stride) emulated::load(tile, from, stride)
#define _tile_stored(tile, to, stride) emulated::store(tile, to, stride)
#define _tile_dpbf16ps(sums, a, b) emulated::multiply(sums, a, b)

#define LIPFUSE_ISA emulated_tiles
#define LIPFUSE_VECTOR_BYTES 64
#define LIPFUSE_TILE_ROWS 8
#define LIPFUSE_TILE_VECTORS 2
#define LIPFUSE_TILE_UNIT
#include "cpu/kernels.inl"

using namespace lipfuse;
using namespace lipfuse::cpu;

static Kernels<float> kernels_in_use = emulated_tiles::float_kernels;
namespace lipfuse::cpu {
template <>
const Kernels<float>& kernels<float>() {
    return kernels_in_use;
}
}  // namespace lipfuse::cpu

namespace {

using Matrix = std::vector<float>;
std::mt19937 generator(0);
int right = 0;

Matrix drawn(int64_t count, double wide = 0) {
    std::normal_distribution<double> normal;
    Matrix x(static_cast<size_t>(count));
    for (auto& e : x) e = float(normal(generator) * std::exp(wide * normal(generator)));
    return x;
}

// Rows x cols elements in one of three ways: row-major, column-major, every other one of a wider matrix.
View<const float> view(const Matrix& data, int64_t rows, int64_t cols, int how) {
    if (how == 0) return {data.data(), rows, cols, cols, 1};
    if (how == 1) return {data.data(), rows, cols, 1, rows};
    return {data.data(), rows, cols, 2 * cols, 2};
}
double at(const View<const float>& x, int64_t i, int64_t j) {
    return x.data[i * x.row_stride + j * x.col_stride];
}

struct Exact {
    double value = 0, size = 0;  // size: the sum of the terms' magnitudes
    float rounded = 0;           // the value in float32 arithmetic
};
Exact element(const Product<float>& p, int64_t i, int64_t j) {
    Exact x;
    for (int t = 0; t < p.count; ++t)
        for (int64_t k = 0; k < p.terms[t].a.cols; ++k) {
            const double term = at(p.terms[t].a, i, k) * at(p.terms[t].b, k, j);
            x.value += term;
            x.size += std::fabs(term);
            x.rounded += float(at(p.terms[t].a, i, k)) * float(at(p.terms[t].b, k, j));
        }
    return x;
}

void compare(const char* what, double found, double exact, double size, int64_t i, int64_t j) {
    const double allowed = 64 * std::numeric_limits<float>::epsilon() * size;
    if (std::fabs(found - exact) <= allowed) return;
    std::fprintf(stderr,
                 "tile_unit: %s: element (%ld, %ld) is %.9g instead of %.9g, allowed %.2g\n", what,
                 long(i), long(j), found, exact, allowed);
    std::exit(1);
}

void run(const Product<float>& p, int tasks) {
    // So much work that there are that many tasks.
    SplitProduct<float>(kernels_in_use, Parallel{tasks, nullptr, nullptr}, Arena::of_this_thread())
        .compute(p, 1e12, tasks);
    emulated::require(false);
    ++right;
}

// Any product, through every kind of epilogue, into a result with a wider leading dimension.
void plain(int64_t m, int64_t depth, int64_t n, int how, int terms, int tasks, double wide = 0) {
    const int64_t deeper = depth + 37, stride = n + 5;
    const Matrix a = drawn(2 * m * deeper, wide), b = drawn(2 * deeper * n, wide),
                 c = drawn(2 * m * deeper, wide), d = drawn(2 * deeper * n, wide);
    const Matrix x[3] = {drawn(m * stride), drawn(m * stride), drawn(m * stride)};
    Matrix out[2] = {x[0], drawn(m * stride)};
    const Matrix before[2] = {out[0], out[1]};
    Product<float> p;
    p.count = terms;
    p.terms[0] = {view(a, m, depth, how), view(b, depth, n, (how + 1) % 3)};
    p.terms[1] = {view(c, m, deeper, (how + 2) % 3), view(d, deeper, n, how)};
    auto& e = p.epilogue;
    e.outputs = 2;
    e.stride = stride;
    for (int o = 0; o < 2; ++o) {
        e.out[o] = out[o].data();
        e.acc[o] = 0.5f + float(o);
        e.x0[o] = 2;
        e.x1[o] = float(-o);
        e.x2[o] = 0.25f;
        e.diagonal[o] = 3;
    }
    e.x[0] = out[0].data();  // read before it is written
    e.x[1] = x[1].data();
    e.x[2] = x[2].data();
    run(p, tasks);
    double off = 0, off_rounded = 0, square = 0;
    Exact kept;
    for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < stride; ++j)
            for (int o = 0; o < 2; ++o) {
                const auto k = size_t(i * stride + j);
                if (j >= n) {
                    compare("beside the result", out[o][k], before[o][k], 0, i, j);
                    continue;
                }
                const Exact sum = o ? kept : element(p, i, j);
                kept = sum;
                const double rest = 2 * double(x[0][k]) - o * double(x[1][k]) +
                                    0.25 * double(x[2][k]) + (i == j ? 3 : 0);
                compare("a product", out[o][k], (0.5 + o) * sum.value + rest,
                        2 * sum.size + std::fabs(x[0][k]) + std::fabs(x[1][k]) + 3, i, j);
                if (o == 1) continue;
                off += std::pow(out[o][k] - 0.5 * sum.value - rest, 2);
                off_rounded += std::pow(0.5 * (double(sum.rounded) - sum.value), 2);
                square += std::pow(0.5 * sum.value, 2) + rest * rest;
            }
    // No worse than float32 arithmetic as a whole: a part of the numbers left out would show.
    const double allowed =
        2 * std::sqrt(off_rounded) + 3 * std::numeric_limits<float>::epsilon() * std::sqrt(square);
    if (std::sqrt(off) > allowed) {
        std::fprintf(stderr, "tile_unit: %ld x %ld x %ld is off by %.3g, allowed %.3g\n", long(m),
                     long(depth), long(n), std::sqrt(off), allowed);
        std::exit(1);
    }
}

// XᵀX or X Xᵀ, exactly symmetric.
void symmetric(int64_t n, int64_t depth, bool transposed, int tasks) {
    const Matrix x = drawn(n * depth);
    Matrix out(size_t(n * n));
    Product<float> p;
    p.terms[0].a = view(x, n, depth, transposed ? 1 : 0);
    p.terms[0].b = p.terms[0].a.transposed();
    p.mirror = Mirror::symmetric;
    p.epilogue.out[0] = out.data();
    p.epilogue.diagonal[0] = -1;
    run(p, tasks);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < n; ++j) {
            const Exact sum = element(p, i, j);
            compare("a symmetric product", out[size_t(i * n + j)], sum.value - (i == j),
                    sum.size + 1, i, j);
            compare("its mirror image", out[size_t(i * n + j)], out[size_t(j * n + i)], 0, i, j);
        }
}

// 2 C + HK + KH, exactly skew-symmetric: as a product of two terms, and by way of HK.
void skew(int64_t n, int tasks) {
    Matrix h = drawn(n * n), k = drawn(n * n), c = drawn(n * n), known(size_t(n * n));
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j <= i; ++j) {
            const auto at = size_t(i * n + j), mirror = size_t(j * n + i);
            h[mirror] = h[at];
            k[mirror] = -k[at];
            c[mirror] = -c[at];
            if (i == j) k[at] = c[at] = 0;
        }
    Product<float> p;
    p.count = 2;
    p.terms[0] = {view(h, n, n, 0), view(k, n, n, 0)};
    p.terms[1] = {view(k, n, n, 0), view(h, n, n, 0)};
    p.mirror = Mirror::skew;
    Matrix out[2] = {c, c};
    for (int way = 0; way < 2; ++way) {
        p.epilogue.out[0] = out[way].data();
        p.epilogue.x[0] = out[way].data();
        p.epilogue.x0[0] = 2;
        if (way == 0)
            run(p, tasks);
        else
            SplitProduct<float>(kernels_in_use, Parallel{}, Arena::of_this_thread())
                .anticommutator(p.terms[0].a, p.terms[0].b, p.epilogue, known.data(), 1e12, tasks);
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < n; ++j) {
                const Exact sum = element(p, i, j);
                const auto at = size_t(i * n + j), mirror = size_t(j * n + i);
                compare("a skew product", out[way][at], sum.value + 2 * double(c[at]),
                        sum.size + 2 * std::fabs(c[at]), i, j);
                compare("its mirror image", out[way][at], -out[way][mirror], 0, i, j);
            }
    }
    ++right;
}

// The lower half of a matrix in blocks, and the element that stands for (i, j).
Matrix packed(const Matrix& whole, int64_t n) {
    Matrix blocks(size_t(n * (n + block_side) / 2));
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < (i / block_side + 1) * block_side; ++j)
            blocks[size_t(block_begin(Layout::lower_blocks, i, j, n) + i % block_side * block_side +
                          j % block_side)] = whole[size_t(i * n + j)];
    return blocks;
}
double in_blocks(const Matrix& blocks, int64_t n, int64_t i, int64_t j, int sign) {
    if (i / block_side < j / block_side) return sign * in_blocks(blocks, n, j, i, sign);
    return blocks[size_t(block_begin(Layout::lower_blocks, i, j, n) + i % block_side * block_side +
                         j % block_side)];
}

// With operands and results that are kept as half, in blocks: each against the same product of whole
// matrices.
void blocks(int64_t n, int tasks) {
    const int64_t m = 75;
    Matrix h = drawn(n * n), k = drawn(n * n), x = drawn(n * n);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j <= i; ++j) {
            const auto at = size_t(i * n + j), mirror = size_t(j * n + i);
            h[mirror] = h[at];
            x[mirror] = x[at];
            k[mirror] = -k[at];
            if (i == j) k[at] = 0;
        }
    const Matrix w = drawn(m * n), h_packed = packed(h, n), k_packed = packed(k, n),
                 x_packed = packed(x, n);
    const auto half = [&](const Matrix& data, Mirror mirror) {
        return View<const float>{data.data(), n, n, n, 1, mirror, Layout::lower_blocks};
    };
    const View<const float> h_half = half(h_packed, Mirror::symmetric),
                            k_half = half(k_packed, Mirror::skew);
    // The symmetric H² with X and I added, twice; blocks on the diagonal are whole.
    Product<float> p, same;
    same.terms[0] = {view(h, n, n, 0), view(h, n, n, 0)};
    p.terms[0] = {h_half, h_half.transposed()};
    p.mirror = Mirror::symmetric;
    p.half = true;
    p.layout = Layout::lower_blocks;
    Matrix out[2] = {x_packed, Matrix(x_packed.size())};
    p.epilogue.outputs = 2;
    p.epilogue.x[0] = out[0].data();  // read before it is written
    for (int o = 0; o < 2; ++o) {
        p.epilogue.out[o] = out[o].data();
        p.epilogue.acc[o] = 0.5f + float(o);
        p.epilogue.x0[o] = 2;
        p.epilogue.diagonal[o] = -1;
    }
    run(p, tasks);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < n; ++j)
            for (int o = 0; o < 2; ++o) {
                const Exact sum = element(same, i, j);
                const double rest = 2 * double(x[size_t(i * n + j)]) - (i == j),
                             found = in_blocks(out[o], n, i, j, 1);
                compare("a product in blocks", found, (0.5 + o) * sum.value + rest,
                        2 * sum.size + std::fabs(rest), i, j);
                compare("its mirror image", found, in_blocks(out[o], n, j, i, 1), 0, i, j);
            }
    // W H, H Wᵀ, W K: a half on either side of a matrix that is not.
    for (int which = 0; which < 3; ++which) {
        const bool left = which == 1;
        const View<const float> whole = view(w, m, n, 0);
        const Matrix& other = which == 2 ? k : h;
        Product<float> q;
        q.terms[0] = left ? Product<float>::Term{h_half, whole.transposed()}
                          : Product<float>::Term{whole, which == 2 ? k_half : h_half};
        same.terms[0] = left ? Product<float>::Term{view(h, n, n, 0), whole.transposed()}
                             : Product<float>::Term{whole, view(other, n, n, 0)};
        Matrix result(size_t(m * n));
        q.epilogue.out[0] = result.data();
        run(q, tasks);
        const int64_t rows = left ? n : m, cols = left ? m : n;
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < cols; ++j) {
                const Exact sum = element(same, i, j);
                compare("a product with a half", result[size_t(i * cols + j)], sum.value, sum.size,
                        i, j);
            }
    }
    // 2 K + HK + KH
    Matrix known(size_t(n * n)), skew_sum = k_packed;
    Epilogue<float> e;
    e.out[0] = skew_sum.data();
    e.x[0] = k_packed.data();
    e.x0[0] = 2;
    SplitProduct<float>(kernels_in_use, Parallel{}, Arena::of_this_thread())
        .anticommutator(h_half, k_half, e, known.data(), 1e12, tasks);
    same.count = 2;
    same.terms[0] = {view(h, n, n, 0), view(k, n, n, 0)};
    same.terms[1] = {view(k, n, n, 0), view(h, n, n, 0)};
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < n; ++j) {
            const Exact sum = element(same, i, j);
            const double found = in_blocks(skew_sum, n, i, j, -1),
                         rest = 2 * double(k[size_t(i * n + j)]);
            compare("a skew product in blocks", found, sum.value + rest, sum.size + std::fabs(rest),
                    i, j);
            compare("its mirror image", found, -in_blocks(skew_sum, n, j, i, -1), 0, i, j);
        }
    ++right;
}

// y = A x in two pieces, for a half in blocks.
void matvec(int64_t n) {
    Matrix a = drawn(n * n), x = drawn(n), y(static_cast<size_t>(n)), first(y.size());
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < i; ++j) a[size_t(j * n + i)] = a[size_t(i * n + j)];
    const Matrix blocks = packed(a, n);
    const View<const float> half{blocks.data(),       n, n, n, 1, Mirror::symmetric,
                                 Layout::lower_blocks};
    kernels_in_use.symmetric_matvec_of_half(half, x.data(), 0, 48, first.data());
    kernels_in_use.symmetric_matvec_of_half(half, x.data(), 48, n, y.data());
    for (int64_t i = 0; i < n; ++i) {
        double sum = 0, size = 0;
        for (int64_t j = 0; j < n; ++j) {
            const double term = double(a[size_t(i * n + j)]) * double(x[size_t(j)]);
            sum += term;
            size += std::fabs(term);
        }
        const auto k = static_cast<size_t>(i);
        compare("a matrix times a vector", double(first[k]) + double(y[k]), sum, size, i, 0);
    }
    ++right;
}

// What is no number stays none, in its row and its column alone; zeros stay exact.
void special() {
    const int64_t n = 40;
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        Matrix a = drawn(n * n), b = drawn(n * n), out(size_t(n * n));
        a[size_t(3 * n + 35)] = bad;
        for (int64_t k = 0; k < n; ++k) a[size_t(7 * n + k)] = 0;
        Product<float> p;
        p.terms[0] = {view(a, n, n, 0), view(b, n, n, 0)};
        p.epilogue.out[0] = out.data();
        run(p, 1);
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < n; ++j) {
                const float x = out[size_t(i * n + j)];
                if (std::isfinite(x) != (i != 3) || (i == 7 && x != 0)) {
                    std::fprintf(stderr, "tile_unit: element (%ld, %ld) is %g\n", long(i), long(j),
                                 x);
                    std::exit(1);
                }
            }
    }
}

// Q, (WᵀW)^(-1/2), the gradient's factor, W's gradient, exact and along the tangent, and what was found
// out.
struct Found {
    Matrix q, root, factor, exact, tangent;
    PolarInfo info;
};
Found found(const Matrix& w, const Matrix& g, int64_t rows, int64_t cols, int threads) {
    const int64_t small = std::min(rows, cols);
    const Matrix square(size_t(small * small));
    Found x{Matrix(w.size()), square, square, Matrix(w.size()), Matrix(w.size()), {}};
    const Parallel parallel{threads, nullptr, nullptr};
    Backend<float> backend(parallel);
    const PolarInfo info =
        polar(backend, w.data(), rows, cols, 1e-4, 1.0, x.q.data(), x.root.data(), x.factor.data());
    x.info = info;
    const float* factor = x.factor.data();
    for (const bool tangent : {false, true})
        polar_backward(backend, g.data(), w.data(), x.q.data(), x.root.data(), rows, cols, 1.0,
                       info.low, info.high, 2e-3, tangent, (tangent ? x.tangent : x.exact).data(),
                       factor);
    return x;
}
void close(const char* what, const Matrix& a, const Matrix& b, double allowed) {
    double off = 0, size = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        off += std::pow(double(a[i]) - double(b[i]), 2);
        size += std::pow(double(b[i]), 2);
    }
    if (std::sqrt(off) <= allowed * std::sqrt(size)) return;
    std::fprintf(stderr, "tile_unit: %s is off by %.3g, allowed %.3g\n", what,
                 std::sqrt(off / size), allowed);
    std::exit(1);
}

// With matrices kept in blocks: one stage and several, small singular values and none.
void algorithms(int64_t rows, int64_t cols, int threads) {
    const Matrix g = drawn(rows * cols);
    for (const char* kind : {"near", "gaussian", "deficient"}) {
        Matrix w = drawn(rows * cols);
        const bool near = kind[0] == 'n', deficient = kind[0] == 'd';
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < cols; ++j) {
                float& x = w[size_t(i * cols + j)];
                x *= (near ? 0.1f : 1.0f) / std::sqrt(float(std::max(rows, cols)));
                if (near && i == j) x += 1;
                if (deficient && std::min(rows, cols) == (rows <= cols ? i : j) + 1) x = 0;
            }
        const Found ours = found(w, g, rows, cols, threads);
        kernels_in_use.split_product = nullptr;
        const Found plain = found(w, g, rows, cols, threads);
        kernels_in_use = emulated_tiles::float_kernels;
        // Where all singular values are near 1; elsewhere they amplify rounding.
        close("Q", ours.q, plain.q, near ? 2e-5 : 2e-3);
        const auto same = [](const char* what, double a, double b) {
            if (std::fabs(a - b) <= 1e-2 * b + 1e-4) return;
            std::fprintf(stderr, "tile_unit: %s is %.3g instead of %.3g\n", what, a, b);
            std::exit(1);
        };
        same("the residual", ours.info.residual, plain.info.residual);
        same("the smallest singular value", ours.info.low, plain.info.low);
        same("the largest singular value", ours.info.high, plain.info.high);
        if (deficient) continue;
        close("the gradient", ours.exact, plain.exact, near ? 2e-4 : 2e-2);
        close("the tangent gradient", ours.tangent, plain.tangent, near ? 2e-5 : 2e-3);
        if (near) close("the factor", ours.factor, plain.factor, 1e-3);
        if (rows != cols) close("(WᵀW)^(-1/2)", ours.root, plain.root, near ? 2e-5 : 2e-3);
        ++right;
    }
}

}  // namespace

int main() {
    const int64_t shapes[][3] = {{1, 1, 1},    {32, 32, 32},  {33, 31, 65},  {64, 100, 7},
                                 {7, 64, 200}, {100, 17, 90}, {40, 700, 70}, {130, 1400, 40}};
    for (const auto& shape : shapes)
        for (int how = 0; how < 3; ++how)
            for (int tasks = 1; tasks <= 3; ++tasks)
                plain(shape[0], shape[1], shape[2], how, 1 + tasks % 2, tasks);
    plain(64, 64, 64, 0, 1, 1, 4);  // numbers of very different sizes
    for (const int64_t n : {1, 16, 31, 64, 130, 200})
        for (int tasks = 1; tasks <= 3; ++tasks) {
            symmetric(n, 90, false, tasks);
            symmetric(n, 90, true, tasks);
            skew(n, tasks);
        }
    for (const int64_t n : {32, 64, 160})
        for (int tasks = 1; tasks <= 3; ++tasks) blocks(n, tasks);
    symmetric(70, 1500, true, 2);  // in several pieces of the inner dimension
    matvec(96);
    special();
    for (int threads = 1; threads <= 2; ++threads) {
        algorithms(128, 128, threads);
        algorithms(192, 192, threads);
        algorithms(128, 192, threads);
        algorithms(270, 128, threads);
        algorithms(130, 130, threads);  // not in blocks
    }
    std::printf("%d products right\n", right);
    return 0;
}
