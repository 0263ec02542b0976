// The CUDA backend of the algorithms. Every thread of a team of blocks runs the same algorithm in
// step: each method shares its work out over the team and ends with a barrier, and every thread
// gets the same sums, so that all take the same branches. No decision ever needs the host.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "../algorithms/minimax.h"
#include "../algorithms/spectrum.h"
#include "layout.h"
#include "tile.h"

namespace lipfuse::cuda {

constexpr int most_polynomials = 122;
constexpr int panel_width = 32;  // of Cholesky's factorisation

// The polynomials for one tolerance, made on the host and handed over with the launch: entry i
// serves singular values in [l, 1] for every l from low[i] up to low[i - 1].
struct Polynomials {
    int choices = 0, cubics = 0;
    double low[most_polynomials], cubic_low[24];
    Minimax choice[most_polynomials], cubic[24];
};

// Shared memory that the backend itself uses, in front of tiles and arrays.
template <class T>
struct Shared {
    double sums[2][block_warps];
    T rows[2][4][block_warps];  // of up to four rows at a time, by warps
};

constexpr int64_t array_gap =
#ifdef __CUDACC__
    0;
#else
    64;  // forbidden ground between arrays
#endif

inline constexpr int64_t array_bytes(int64_t count, int64_t item) {
    return (count * item + 15) / 16 * 16 + array_gap;
}
inline constexpr int64_t shared_bytes(int64_t fixed) {
    return (fixed + 15) / 16 * 16;
}

// Whether a team shares one tile's depth out, and over how many blocks: as many as have a share
// where each is rounded up to whole chunks.
inline LIPFUSE_DEVICE int depth_splits(int64_t tiles, int64_t blocks, int64_t depth) {
    if (depth < 256 || 2 * tiles > blocks) return 1;
    const int64_t most = depth / 128, splits = blocks / tiles < most ? blocks / tiles : most;
    const int64_t step =
        (depth / splits + SplitTile::depth - 1) / SplitTile::depth * SplitTile::depth;
    return static_cast<int>((depth + step - 1) / step);
}

struct Sum {
    static LIPFUSE_DEVICE double of(double a, double b) { return a + b; }
};
struct Largest {
    static LIPFUSE_DEVICE double of(double a, double b) { return a > b ? a : b; }
};

template <class T>
class Backend {
public:
    using Scalar = T;
    static constexpr bool inverts = false;      // n dependent steps with a barrier each
    static constexpr bool near_scratch = true;  // in shared memory, while it lasts
    struct Mark {
        int64_t shared, global;
    };

    LIPFUSE_DEVICE Backend(const Layout& layout, const Polynomials* polynomials)
        : role_(layout), polynomials_(polynomials), blocks_(role_.blocks), block_(role_.block) {
        thread_ = thread_index();
        rank_ = int64_t(block_) * block_threads + thread_;
        size_ = int64_t(blocks_) * block_threads;
        tile_bytes_ = layout.tile_bytes;
        shared_ = tiles_begin() + tile_bytes_;
        shared_size_ = blocks_ == 1 ? layout.shared_scratch : 0;
        global_ = role_.scratch(layout);
        global_size_ = role_.scratch_bytes(layout);
        counter_ = layout.counters + role_.leader();
        partial_ = layout.partial + int64_t(2) * role_.leader();
        pieces_ = layout.pieces;
        full_pieces_ = layout.pieces;
        rough_pieces_ = layout.rough_pieces;
        if (shared_size_ > 0) forbid(shared_, shared_size_);
    }
    LIPFUSE_DEVICE ~Backend() {
        if (shared_size_ > 0) permit(shared_, shared_size_);
    }

    LIPFUSE_DEVICE const Role& role() const { return role_; }
    LIPFUSE_DEVICE bool leads() const { return rank_ == 0; }
    LIPFUSE_DEVICE const Polynomials& polynomials() const { return *polynomials_; }
    // For threads that share work out themselves.
    LIPFUSE_DEVICE int thread() const { return thread_; }
    LIPFUSE_DEVICE int block() const { return block_; }
    LIPFUSE_DEVICE int blocks() const { return blocks_; }
    LIPFUSE_DEVICE int64_t rank() const { return rank_; }
    LIPFUSE_DEVICE int64_t size() const { return size_; }
    // A block's own memory, free between products.
    static LIPFUSE_DEVICE T* tile_memory() { return reinterpret_cast<T*>(tiles_begin()); }
    LIPFUSE_DEVICE int64_t tile_elements() const { return tile_bytes_ / int64_t(sizeof(T)); }

    // Whether products may from now on leave errors that a later step corrects, if the user allows
    // that at all.
    LIPFUSE_DEVICE void rough(bool on) { pieces_ = on ? rough_pieces_ : full_pieces_; }

    // Scratch memory: shared while it lasts, then global. All threads get the same.
    LIPFUSE_DEVICE Mark mark() const { return {shared_used_, global_used_}; }
    LIPFUSE_DEVICE void release(Mark mark) {
        forbid(shared_ + mark.shared, shared_used_ - mark.shared);
        shared_used_ = mark.shared;
        global_used_ = mark.global;
    }
    LIPFUSE_DEVICE LIPFUSE_NOINLINE T* allocate(int64_t count) {
        const int64_t bytes = array_bytes(count, sizeof(T));
        if (shared_used_ + bytes <= shared_size_) {
            T* p = reinterpret_cast<T*>(shared_ + shared_used_);
            shared_used_ += bytes;
            permit(p, count * int64_t(sizeof(T)));
            return p;
        }
        if (global_used_ + bytes > global_size_) fail();  // never a silent overlap
        T* p = reinterpret_cast<T*>(global_ + global_used_);
        global_used_ += bytes;
        return p;
    }

    static LIPFUSE_DEVICE View<T> view(const T* data, int64_t rows, int64_t cols) {
        return {data, rows, cols, cols, 1};
    }
    static LIPFUSE_DEVICE Epilogue<T> epilogue(T* out) {
        Epilogue<T> e;
        e.out[0] = out;
        return e;
    }

    LIPFUSE_DEVICE void multiply(const View<T>& a, const View<T>& b, T* out, bool symmetric) {
        multiply(a, b, epilogue(out), symmetric);
    }
    LIPFUSE_DEVICE void multiply(const View<T>& a, const View<T>& b, const Epilogue<T>& e,
                                 bool symmetric) {
        multiply(a, b, e, symmetric ? Mirror::symmetric : Mirror::none);
    }
    LIPFUSE_DEVICE LIPFUSE_NOINLINE void multiply(const View<T>& a, const View<T>& b,
                                                  const Epilogue<T>& e, Mirror mirror) {
        if (a.rows <= 32 && b.cols <= 32) return product<PlainTile<T, 2>>(a, b, e, mirror, 1);
        if constexpr (LIPFUSE_SPLIT_PRODUCTS && std::is_same_v<T, float>) {
            if (pieces_ > 0) {
                const int64_t count = tiles<SplitTile>(a.rows, b.cols, mirror != Mirror::none);
                product<SplitTile>(a, b, e, mirror, depth_splits(count, blocks_, a.cols));
                return;
            }
        }
        if (tiles<PlainTile<T, 4>>(a.rows, b.cols, false) >= blocks_)
            product<PlainTile<T, 4>>(a, b, e, mirror, 1);
        else
            product<PlainTile<T, 2>>(a, b, e, mirror, 1);
    }

    // Symmetric and skew-symmetric matrices are kept whole.
    static LIPFUSE_DEVICE View<T> half(const T* data, int64_t n,
                                       Mirror mirror = Mirror::symmetric) {
        static_cast<void>(mirror);
        return view(data, n, n);
    }
    LIPFUSE_DEVICE void multiply_half(const View<T>& a, const View<T>& b, const Epilogue<T>& e,
                                      Mirror mirror = Mirror::symmetric) {
        multiply(a, b, e, mirror);
    }
    LIPFUSE_DEVICE void complete(T*, int64_t, Mirror = Mirror::symmetric) {}
    LIPFUSE_DEVICE void keep_half(T*, int64_t) {}
    static LIPFUSE_DEVICE int64_t size_of_half(int64_t n) { return n * n; }
    LIPFUSE_DEVICE double square_of_half(const T* x, int64_t n) { return dot(n * n, x, x); }

    // y = A x for a symmetric A: a warp a row.
    LIPFUSE_DEVICE LIPFUSE_NOINLINE void symmetric_matvec(const View<T>& a, const T* x, T* y) {
        const int64_t n = a.rows;
        const int lane = thread_ % 32;
        for (int64_t i = rank_ / 32; i < n; i += size_ / 32) {
            const double sum = warp_dot(n, a.data + i * n, x, lane);
            if (lane == 0) y[i] = T(sum);
        }
        barrier();
    }

    // next <- next - <next, v> v - beta previous; *alpha = <next, v>, *length = ‖next‖
    LIPFUSE_DEVICE LIPFUSE_NOINLINE void lanczos_step(int64_t n, const T* v, const T* previous,
                                                      double beta, T* next, double* alpha,
                                                      double* length) {
        const double along = dot(n, next, v);
        const T a = T(along), b = T(beta);
        double squares = 0;
        for (int64_t i = rank_; i < n; i += size_) {
            const T x = next[i] - a * v[i] - b * previous[i];
            next[i] = x;
            squares += double(x) * double(x);
        }
        *alpha = along;
        *length = std::sqrt(reduce<Sum>(squares));  // its barrier serves `next` too
    }

    LIPFUSE_DEVICE LIPFUSE_NOINLINE double dot(int64_t n, const T* x, const T* y) {
        return sum_over(n, [=](int64_t i) { return x[i] * y[i]; });
    }
    LIPFUSE_DEVICE LIPFUSE_NOINLINE double distance(int64_t n, const T* x, const T* y) {
        return sum_over(n, [=](int64_t i) { return (x[i] - y[i]) * (x[i] - y[i]); });
    }

    LIPFUSE_DEVICE LIPFUSE_NOINLINE void axpby(int64_t n, T a, const T* x, T b, const T* y,
                                               T* out) {
        if (y)
            for (int64_t i = rank_; i < n; i += size_) out[i] = a * x[i] + b * y[i];
        else
            for (int64_t i = rank_; i < n; i += size_) out[i] = a * x[i];
        barrier();
    }

    // out = a X + d I
    LIPFUSE_DEVICE LIPFUSE_NOINLINE void combine(T a, const T* x, int64_t n, T d, T* out) {
        for (int64_t i = rank_; i < n * n; i += size_) out[i] = a * x[i] + (i % (n + 1) ? T(0) : d);
        barrier();
    }
    LIPFUSE_DEVICE LIPFUSE_NOINLINE void add_diagonal(T* x, int64_t n, T d) {
        for (int64_t i = rank_; i < n; i += size_) x[i * n + i] += d;
        barrier();
    }
    LIPFUSE_DEVICE LIPFUSE_NOINLINE void fill(T* x, int64_t n, T value) {
        for (int64_t i = rank_; i < n; i += size_) x[i] = value;
        barrier();
    }

    // A measure of the magnitude: the Euclidean norm, or where that leaves the range of T the
    // largest element; NaN if there is one.
    LIPFUSE_DEVICE LIPFUSE_NOINLINE double largest(const T* x, int64_t n) {
        const double squares = dot(n, x, x);
        if (std::isfinite(squares) && squares > 1e-12 && squares < 1e12) return std::sqrt(squares);
        return largest_element(x, n);
    }
    LIPFUSE_DEVICE LIPFUSE_NOINLINE double largest_element(const T* x, int64_t n) {
        double most = 0, nan = 0;
        for (int64_t i = rank_; i < n; i += size_) {
            const double y = std::fabs(double(x[i]));
            if (y != y) nan = 1;
            if (y > most) most = y;
        }
        nan = reduce<Largest>(nan);
        most = reduce<Largest>(most);
        return nan > 0 ? std::numeric_limits<double>::quiet_NaN() : most;
    }

    // out = a - aᵀ; returns the sum of squares.
    LIPFUSE_DEVICE LIPFUSE_NOINLINE double skew(const T* a, int64_t n, T* out) {
        double total = 0;
        over_pairs(n, [&](int64_t at, int64_t mirror) {
            const T x = a[at] - a[mirror];
            out[at] = x;
            total += double(x) * double(x);
        });
        return reduce<Sum>(total);  // its barrier serves `out` too
    }
    // previous <- k + fd (k - previous) + fr (c - (H K + K H)) for a symmetric h and skew-symmetric k,
    // previous and c, of which KH = -(HK)ᵀ. `product` has room for HK.
    LIPFUSE_DEVICE LIPFUSE_NOINLINE void sylvester_step(const T* h, const T* k, const T* c, T fd,
                                                        T fr, T* previous, T* product, int64_t n) {
        multiply(view(h, n, n), view(k, n, n), product, false);
        over_pairs(n, [&](int64_t at, int64_t mirror) {
            previous[at] = k[at] + fd * (k[at] - previous[at]) +
                           fr * (c[at] - (product[at] - product[mirror]));
        });
        barrier();
    }
    // out = alpha (a + aᵀ)
    LIPFUSE_DEVICE LIPFUSE_NOINLINE void symmetrize(const T* a, T alpha, int64_t n, T* out) {
        over_pairs(n, [&](int64_t at, int64_t mirror) { out[at] = alpha * (a[at] + a[mirror]); });
        barrier();
    }

    // out = alpha a + beta u vᵀ; a may be null, or out.
    LIPFUSE_DEVICE LIPFUSE_NOINLINE void rank_one_update(const T* a, T alpha, T beta, const T* u,
                                                         const T* v, int64_t rows, int64_t cols,
                                                         T* out) {
        const int64_t row_step = cols ? size_ / cols : 0, col_step = cols ? size_ % cols : 0;
        int64_t r = cols ? rank_ / cols : 0, c = cols ? rank_ % cols : 0;
        for (int64_t i = rank_; i < rows * cols; i += size_) {
            const T x = beta * u[r] * v[c];
            out[i] = a ? alpha * a[i] + x : x;
            r += row_step;
            c += col_step;
            if (c >= cols) {
                c -= cols;
                ++r;
            }
        }
        barrier();
    }

    // Element i of the start vector: the state after i + 1 steps of x <- 1664525 x + 1013904223.
    static LIPFUSE_DEVICE T start_vector(int64_t i, int64_t n) {
        uint32_t state = 0x9e3779b9u, factor = 1664525u, step = 1013904223u;
        for (uint64_t left = uint64_t(i) + 1; left; left /= 2) {
            if (left % 2) state = factor * state + step;
            step *= factor + 1;
            factor *= factor;
        }
        return T(start_element(state, i, n));
    }
    LIPFUSE_DEVICE LIPFUSE_NOINLINE void fill_start_vector(T* v, int64_t n) {
        for (int64_t i = rank_; i < n; i += size_) v[i] = start_vector(i, n);
        barrier();
    }

    // Whether every eigenvalue of S lies below c: Cholesky's factorisation of c I - S by panels. The
    // block on the diagonal is factorised by every block of the team for itself.
    LIPFUSE_DEVICE LIPFUSE_NOINLINE bool proves_below(const T* s, int64_t n, double c) {
        constexpr int width = panel_width;
        const Mark begin = mark();
        T* l = allocate(n * n);
        T* panel = allocate(n * width);
        double* top = reinterpret_cast<double*>(tile_memory());
        double* roots = top + width * width;
        T* factor = reinterpret_cast<T*>(roots + width);
        bool positive = true;
        for (int64_t first = 0; first < n && positive; first += width) {
            const int64_t rest = n - first, own = rest < width ? rest : width;
            T* const rows = l + first * n;  // of which the columns before `first` are known
            if (first > 0)
                multiply({rows, rest, first, n, 1}, {rows, first, own, 1, n}, panel, false);
            const auto value = [&](int64_t i, int64_t j) {
                return -double(s[(first + i) * n + first + j]) -
                       (first > 0 ? double(panel[i * own + j]) : 0.0);
            };
            for (int e = thread_; e < width * width; e += block_threads) {
                const int i = e / width, j = e % width;
                top[e] = i < own && j < own ? value(i, j) + (i == j ? c : 0) : i == j ? 1 : 0;
            }
            sync_threads();
            for (int k = 0; k < width && positive; ++k) {
                const double pivot = top[k * width + k];
                positive = pivot > 0;
                for (int e = thread_; e < width * width && positive; e += block_threads) {
                    const int i = e / width, j = e % width;
                    if (j > k && i >= j) top[e] -= top[i * width + k] * top[j * width + k] / pivot;
                }
                sync_threads();
            }
            if (!positive) break;
            if (thread_ < width) roots[thread_] = 1 / std::sqrt(top[thread_ * width + thread_]);
            sync_threads();
            for (int e = thread_; e < width * width; e += block_threads)
                factor[e] = T(top[e] * roots[e % width]);
            sync_threads();
            for (int64_t i = width + rank_; i < rest; i += size_) {
                T x[width];
                LIPFUSE_UNROLL
                for (int j = 0; j < width; ++j) {
                    T y = T(value(i, j));
                    LIPFUSE_UNROLL
                    for (int k = 0; k < j; ++k) y -= x[k] * factor[j * width + k];
                    x[j] = y * T(roots[j]);
                    rows[i * n + first + j] = x[j];
                }
            }
            barrier();
        }
        barrier();  // before others get the memory
        release(begin);
        return positive;
    }

    LIPFUSE_DEVICE void barrier() {
        sync_threads();
        if (blocks_ == 1) return;
        target_ += unsigned(blocks_);
        if (thread_ == 0) arrive_and_wait(counter_, target_);
        sync_threads();
    }

    // Sums over all threads, of the team or of the block alone, for every one of them.
    LIPFUSE_DEVICE double sum(double x) { return reduce<Sum>(x); }
    LIPFUSE_DEVICE double block_sum(double x) { return reduce_block<Sum>(x); }

    static LIPFUSE_DEVICE Shared<T>& shared() {
        return *reinterpret_cast<Shared<T>*>(shared_memory());
    }

private:
    // Not kept in a pointer, so that compilers see that it is shared memory.
    static LIPFUSE_DEVICE unsigned char* tiles_begin() {
        return shared_memory() + shared_bytes(sizeof(Shared<T>));
    }

    // The same value in every lane. Each lane sums in T over a bounded number of elements and
    // carries on in double.
    static LIPFUSE_DEVICE double warp_dot(int64_t n, const T* x, const T* y, int lane) {
        double total = 0;
        for (int64_t i = lane; i < n;) {
            T part = T(0);
            const int64_t end = i + 32 * 64 < n ? i + 32 * 64 : n;
            for (; i < end; i += 32) part += x[i] * y[i];
            total += double(part);
        }
        for (int mask = 16; mask; mask /= 2) total += shuffle_xor(total, mask);
        return total;
    }

    template <class F>
    LIPFUSE_DEVICE double sum_over(int64_t n, F f) {
        double total = 0;
        for (int64_t i = rank_; i < n;) {
            T part = T(0);
            for (int q = 0; q < 32 && i < n; ++q, i += size_) part += f(i);
            total += double(part);
        }
        return reduce<Sum>(total);
    }

    // The same result, bit for bit, in all threads of the block. Slots alternate: a thread that
    // writes to one again has passed a barrier that all have reached after reading it.
    template <class Op>
    LIPFUSE_DEVICE double reduce_block(double x) {
        for (int mask = 16; mask; mask /= 2) x = Op::of(x, shuffle_xor(x, mask));
        double* sums = shared().sums[turn_];
        turn_ ^= 1;
        if (thread_ % 32 == 0) sums[thread_ / 32] = x;
        sync_threads();
        x = sums[0];
        for (int w = 1; w < block_warps; ++w) x = Op::of(x, sums[w]);
        return x;
    }
    // The same of the team; the largest of numbers that are not negative.
    template <class Op>
    LIPFUSE_DEVICE LIPFUSE_NOINLINE double reduce(double x) {
        x = reduce_block<Op>(x);
        if (blocks_ == 1) return x;
        double* all = partial_ + team_turn_ * blocks_;
        team_turn_ ^= 1;
        if (thread_ == 0) all[block_] = x;
        barrier();
        x = 0;
        for (int b = thread_ % 32; b < blocks_; b += 32) x = Op::of(x, all[b]);
        for (int mask = 16; mask; mask /= 2) x = Op::of(x, shuffle_xor(x, mask));
        return x;
    }

    // Calls f(i n + j, j n + i) for all i, j. Even n: along diagonals, where both run through
    // shared memory without bank conflicts; odd n: along rows, where they do anyway.
    template <class F>
    LIPFUSE_DEVICE void over_pairs(int64_t n, F f) {
        const bool diagonals = blocks_ == 1 && n % 2 == 0;
        for (int64_t e = rank_; e < n * n; e += size_) {
            int64_t i = e / n, j = e - i * n;
            if (diagonals) {
                const int64_t offset = i;
                i = j;
                j = i + offset < n ? i + offset : i + offset - n;
            }
            f(i * n + j, j * n + i);
        }
    }

    template <class Tile>
    static LIPFUSE_DEVICE int64_t tiles(int64_t rows, int64_t cols, bool symmetric) {
        const int64_t down = (rows + Tile::side - 1) / Tile::side,
                      across = (cols + Tile::side - 1) / Tile::side;
        return symmetric ? down * (down + 1) / 2 : down * across;
    }

    // Calls f(i, j) for the tiles, by their first row and column, as it is their turn; `turns`: how
    // many turns each has. Of those with a mirror image only the lower tiles are computed.
    template <class Tile, class F>
    LIPFUSE_DEVICE void over_tiles(int64_t rows, int64_t cols, bool mirrored, int turns, F f) {
        int turn = 0;
        for (int64_t i = 0; i < rows; i += Tile::side)
            for (int64_t j = 0; j < cols && !(mirrored && j > i); j += Tile::side)
                for (int part = 0; part < turns; ++part) {
                    if (turn == block_) f(i, j, part);
                    if (++turn == blocks_) turn = 0;
                }
    }

    // With `splits` several blocks share the depth of each tile; they leave their sums in scratch
    // memory, to be added in a fixed order.
    template <class Tile>
    LIPFUSE_DEVICE void product(const View<T>& a, const View<T>& b, const Epilogue<T>& e,
                                Mirror mirror, int splits) {
        constexpr int64_t area = int64_t(Tile::side) * Tile::side;
        const bool mirrored = mirror != Mirror::none;
        const int64_t m = a.rows, n = b.cols, depth = a.cols;
        const int64_t step = (depth / splits + Tile::depth - 1) / Tile::depth * Tile::depth;
        const Mark begin = mark();
        T* const parts = splits > 1 ? allocate(blocks_ * area) : nullptr;
        over_tiles<Tile>(m, n, mirrored, splits, [&](int64_t i, int64_t j, int part) {
            T sums[Tile::sums];
            const int64_t k0 = part * step, k1 = part + 1 < splits ? k0 + step : depth;
            Tile::multiply(tiles_begin(), pieces_, thread_, a, b, i, j, k0, k1, sums);
            LIPFUSE_UNROLL
            for (int q = 0; q < Tile::sums; ++q) {
                if (parts)
                    parts[block_ * area + q * block_threads + thread_] = sums[q];
                else
                    e.write(i + Tile::row(thread_, q), j + Tile::col(thread_, q), m, n, mirror,
                            sums[q]);
            }
        });
        barrier();
        if (!parts) return;
        int64_t tile = 0;
        for (int64_t i = 0; i < m; i += Tile::side)
            for (int64_t j = 0; j < n && !(mirrored && j > i); j += Tile::side, ++tile)
                for (int q = 0; q < Tile::sums; ++q) {
                    if ((tile * Tile::sums + q) % blocks_ != block_) continue;
                    T value = T(0);
                    for (int part = 0; part < splits; ++part)
                        value += parts[(tile * splits + part) * area + q * block_threads + thread_];
                    e.write(i + Tile::row(thread_, q), j + Tile::col(thread_, q), m, n, mirror,
                            value);
                }
        barrier();
        release(begin);
    }

    const Role role_;
    const Polynomials* polynomials_;
    int blocks_, block_, thread_, turn_ = 0, team_turn_ = 0;
    int pieces_, full_pieces_, rough_pieces_;
    unsigned target_ = 0;
    int64_t rank_, size_;
    unsigned char* shared_;
    int64_t tile_bytes_, shared_size_, shared_used_ = 0;
    char* global_;
    int64_t global_size_, global_used_ = 0;
    unsigned* counter_;
    double* partial_;
};

template <class T>
LIPFUSE_DEVICE void allow_rough_products(Backend<T>& backend, bool on) {
    backend.rough(on);
}

// The algorithms' choices, from the table that came with the launch.
template <class T>
LIPFUSE_DEVICE const Minimax& choose_polynomial(Backend<T>& backend, double l, double) {
    const Polynomials& p = backend.polynomials();
    int i = 0;
    while (i + 1 < p.choices && p.low[i] > l) ++i;
    return p.choice[i];
}
template <class T>
LIPFUSE_DEVICE const Minimax& choose_cubic(Backend<T>& backend, double l) {
    const Polynomials& p = backend.polynomials();
    int i = 0;
    while (i + 1 < p.cubics && p.cubic_low[i] > l) ++i;
    return p.cubic[i];
}
template <class T>
LIPFUSE_DEVICE bool lies_below(Backend<T>& backend, const T* s, int64_t n, double c) {
    return backend.proves_below(s, n, c);
}

}  // namespace lipfuse::cuda
