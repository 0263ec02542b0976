// Passes of activations and pools: each element is read once and written once, by vectors of 16
// bytes where the layout has them, and computed in float32 (float64 stays float64).
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../algorithms/half.h"
#include "execution.h"

namespace lipfuse::cuda {

template <class E>
using Wide = typename WideType<E>::type;

constexpr int layer_threads = 256;

template <class E>
LIPFUSE_DEVICE inline Wide<E> widened(E x) {
    if constexpr (std::is_same_v<E, Bf16>)
        return as_float(uint32_t(x.bits) << 16);
    else if constexpr (std::is_same_v<E, Fp16>)
        return from_fp16(x.bits);
    else
        return x;
}
template <class E>
LIPFUSE_DEVICE inline E narrowed(Wide<E> x) {
    if constexpr (std::is_same_v<E, Bf16>)
        return {to_bf16(x)};
    else if constexpr (std::is_same_v<E, Fp16>)
        return {to_fp16(x)};
    else
        return x;
}

template <class E, int V>
struct alignas(V * sizeof(E)) Pack {
    E element[V];
};
template <class E, int V>
LIPFUSE_DEVICE inline Pack<E, V> load(const E* p) {
    return *reinterpret_cast<const Pack<E, V>*>(p);
}
template <class E, int V>
LIPFUSE_DEVICE inline void store(E* p, const Pack<E, V>& x) {
    *reinterpret_cast<Pack<E, V>*>(p) = x;
}
template <class E>
constexpr int whole_pack = 16 / int(sizeof(E));

struct Quotient {
    uint32_t quotient, remainder;
};
LIPFUSE_DEVICE inline Quotient divide(uint32_t a, uint32_t b) {
    return {a / b, a % b};
}

// A launch counts in 32 bits, since its divisions would else take longer than its memory.
constexpr int64_t most_units = int64_t(1) << 31;

// Calls f(i) for all i < n, from all threads.
template <class F>
LIPFUSE_DEVICE void over_all(uint32_t n, F f) {
    const uint32_t threads = uint32_t(grid_blocks()) * layer_threads;
    for (uint32_t i = uint32_t(block_index()) * layer_threads + uint32_t(thread_index()); i < n;
         i += threads)
        f(i);
}

// ---- sorted pairs --------------------------------------------------------------------------------

// A row of pairs is `inner` first elements followed by `inner` second ones, of which `length` are
// taken; inner = 1: neighbours.
template <class E>
struct SortArguments {
    const E* in;
    E* out;
    uint8_t* flags;           // one for each pair, written if not null
    const uint8_t* exchange;  // if not null, pairs are exchanged where this says so, not sorted
    int64_t rows, inner, length;
    double scale;
};

// V pairs: neighbours in a row of first elements with what they are paired with, or all in a line.
template <class E, int V, bool line>
LIPFUSE_DEVICE void sort_some(const SortArguments<E>& a, uint32_t index) {
    Pack<E, V> in[2], out[2];
    int64_t pair = index, at = 2 * int64_t(index), second = V;
    if (!line) {
        const Quotient q = divide(index, uint32_t(a.length));
        pair = q.quotient * a.inner + q.remainder;
        at = 2 * q.quotient * a.inner + q.remainder;
        second = a.inner;
    }
    in[0] = load<E, V>(a.in + at);
    in[1] = load<E, V>(a.in + at + second);
    Pack<uint8_t, V> flags;
    if (a.exchange) flags = load<uint8_t, V>(a.exchange + pair);
    const Wide<E> scale = Wide<E>(a.scale);
    LIPFUSE_UNROLL
    for (int i = 0; i < V; ++i) {
        constexpr auto place = [](int i, int which) {
            return line ? 2 * i + which : V * which + i;
        };
        const int x = place(i, 0), y = place(i, 1);
        const Wide<E> first = widened(in[x / V].element[x % V]),
                      other = widened(in[y / V].element[y % V]);
        // A comparison with NaN is false: such a pair stays as it is.
        const bool swap = a.exchange ? flags.element[i] != 0 : first > other;
        out[x / V].element[x % V] = narrowed<E>((swap ? other : first) * scale);
        out[y / V].element[y % V] = narrowed<E>((swap ? first : other) * scale);
        flags.element[i] = swap;
    }
    store<E, V>(a.out + at, out[0]);
    store<E, V>(a.out + at + second, out[1]);
    if (a.flags) store<uint8_t, V>(a.flags + pair, flags);
}

template <class E, int V>
LIPFUSE_DEVICE void sort_pairs_kernel(const SortArguments<E>& a) {
    const uint32_t pairs = uint32_t(a.rows * a.length), whole = pairs / V;
    if (a.inner == 1) {
        over_all(whole, [&](uint32_t i) { sort_some<E, V, true>(a, i * V); });
        over_all(pairs - whole * V, [&](uint32_t i) { sort_some<E, 1, true>(a, whole * V + i); });
    } else {
        over_all(whole, [&](uint32_t i) { sort_some<E, V, false>(a, i * V); });
    }
}

// ---- pools ---------------------------------------------------------------------------------------

enum class Pooling { average, norm };

// Windows side by side over images of height x width x channels.
template <class E>
struct PoolArguments {
    const E *in, *grad;  // of the passes that need them
    E* out;
    int64_t images, height, width, channels, kernel_height, kernel_width, out_height, out_width;
    double scale;
    double smallest;  // the gradient of a norm below this is zero
    // scale over the root of a window's size: whole, cut off at the right, at the bottom, at both
    double factor, right, bottom, corner;

    // As many windows as cover an image, whether they are used or not.
    constexpr int64_t rows_of_windows() const {
        return (height + kernel_height - 1) / kernel_height;
    }
    constexpr int64_t columns_of_windows() const {
        return (width + kernel_width - 1) / kernel_width;
    }

    void set_factors() {
        const auto rest = [](int64_t size, int64_t kernel) {
            return double(size % kernel ? size % kernel : kernel);
        };
        const double rows = rest(height, kernel_height), cols = rest(width, kernel_width);
        factor = scale / std::sqrt(double(kernel_height) * double(kernel_width));
        right = scale / std::sqrt(double(kernel_height) * cols);
        bottom = scale / std::sqrt(rows * double(kernel_width));
        corner = scale / std::sqrt(rows * cols);
    }
};

// V channels of one window. `two`: windows are two elements wide and begin at an even one.
template <class E, int V, bool two>
struct Window {
    const PoolArguments<E>& a;
    int64_t at, out_at;  // its first element, its result
    int64_t rows, cols;  // fewer at the border
    bool used;           // false: beyond the last one

    // Of `down` x `across` windows an image.
    LIPFUSE_DEVICE Window(const PoolArguments<E>& arguments, uint32_t index, uint32_t down,
                          uint32_t across)
        : a(arguments) {
        const Quotient channel = divide(index, uint32_t(a.channels / V));
        const Quotient column = divide(channel.quotient, across);
        const Quotient row = divide(column.quotient, down);
        const int64_t top = row.remainder * a.kernel_height,
                      left = column.remainder * a.kernel_width;
        rows = a.height - top < a.kernel_height ? a.height - top : a.kernel_height;
        cols = a.width - left < a.kernel_width ? a.width - left : a.kernel_width;
        used = row.remainder < a.out_height && column.remainder < a.out_width;
        at =
            ((row.quotient * a.height + top) * a.width + left) * a.channels + channel.remainder * V;
        out_at = ((row.quotient * a.out_height + row.remainder) * a.out_width + column.remainder) *
                     a.channels +
                 channel.remainder * V;
    }

    LIPFUSE_DEVICE Wide<E> factor() const {
        const bool tall = rows == a.kernel_height, wide = cols == a.kernel_width;
        return Wide<E>(tall ? wide ? a.factor : a.right : wide ? a.bottom : a.corner);
    }
    // Calls f(offset) for all its elements, by packs: of V channels, or of both columns.
    template <class F>
    LIPFUSE_DEVICE void over(F f) const {
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = 0; c < cols; c += two ? 2 : 1) f(at + (r * a.width + c) * a.channels);
    }
};

template <class E, int V, bool two>
constexpr int window_pack = two ? 2 : V;

// Sums over a window of x or x², for V channels.
template <Pooling kind, class E, int V, bool two>
LIPFUSE_DEVICE void sum_window(const Window<E, V, two>& w, Wide<E> (&sum)[V]) {
    constexpr int P = window_pack<E, V, two>;
    LIPFUSE_UNROLL
    for (int i = 0; i < V; ++i) sum[i] = 0;
    w.over([&](int64_t offset) {
        const Pack<E, P> p = load<E, P>(w.a.in + offset);
        LIPFUSE_UNROLL
        for (int i = 0; i < P; ++i) {
            const Wide<E> x = widened(p.element[i]);
            sum[two ? 0 : i] += kind == Pooling::norm ? x * x : x;
        }
    });
}

template <Pooling kind, class E, int V, bool two>
LIPFUSE_DEVICE void pool_kernel(const PoolArguments<E>& a) {
    using T = Wide<E>;
    const uint32_t down = uint32_t(a.out_height), across = uint32_t(a.out_width);
    over_all(uint32_t(a.images * down * across * (a.channels / V)), [&](uint32_t i) {
        const Window<E, V, two> w(a, i, down, across);
        T sum[V];
        sum_window<kind>(w, sum);
        const T factor = kind == Pooling::norm ? T(a.scale) : w.factor();
        Pack<E, V> out;
        LIPFUSE_UNROLL
        for (int c = 0; c < V; ++c)
            out.element[c] =
                narrowed<E>((kind == Pooling::norm ? T(std::sqrt(sum[c])) : sum[c]) * factor);
        store<E, V>(a.out + w.out_at, out);
    });
}

// Every element of the input's gradient is written, those beyond the last window with zero. Norms
// are computed again: that costs nothing while the input is read anyway.
template <Pooling kind, class E, int V, bool two>
LIPFUSE_DEVICE void pool_backward_kernel(const PoolArguments<E>& a) {
    using T = Wide<E>;
    constexpr int P = window_pack<E, V, two>;
    const uint32_t down = uint32_t(a.rows_of_windows()), across = uint32_t(a.columns_of_windows());
    over_all(uint32_t(a.images * down * across * (a.channels / V)), [&](uint32_t i) {
        const Window<E, V, two> w(a, i, down, across);
        T value[V] = {};
        if (w.used) {
            T norm[V];
            if constexpr (kind == Pooling::norm) sum_window<kind>(w, norm);
            const Pack<E, V> g = load<E, V>(a.grad + w.out_at);
            LIPFUSE_UNROLL
            for (int c = 0; c < V; ++c) {
                const T grad = widened(g.element[c]);
                if constexpr (kind == Pooling::norm) {
                    norm[c] = T(std::sqrt(norm[c]));
                    value[c] = norm[c] >= T(a.smallest) ? grad * T(a.scale) / norm[c] : T(0);
                } else {
                    value[c] = grad * w.factor();
                }
            }
        }
        w.over([&](int64_t offset) {
            Pack<E, P> x;
            if constexpr (kind == Pooling::norm) x = load<E, P>(a.in + offset);
            LIPFUSE_UNROLL
            for (int e = 0; e < P; ++e) {
                const T v = value[two ? 0 : e];
                const bool times = kind == Pooling::norm && w.used;
                x.element[e] = narrowed<E>(times ? v * widened(x.element[e]) : v);
            }
            store<E, P>(a.out + offset, x);
        });
    });
}

// ---- which vectors the layout has ----------------------------------------------------------------

inline bool is_aligned(const void* p, int64_t bytes) {
    return reinterpret_cast<uintptr_t>(p) % uintptr_t(bytes) == 0;
}
template <class E>
bool takes_packs(const SortArguments<E>& a) {
    constexpr int V = whole_pack<E>;
    return (a.inner == 1 || (a.inner % V == 0 && a.length % V == 0)) && is_aligned(a.in, 16) &&
           is_aligned(a.out, 16) && is_aligned(a.flags, V) && is_aligned(a.exchange, V);
}
// 0: one element at a time, 1: whole packs of channels, 2: two columns.
template <class E>
int vectors_of(const PoolArguments<E>& a) {
    const auto all_aligned = [&](int64_t bytes) {
        return is_aligned(a.in, bytes) && is_aligned(a.grad, bytes) && is_aligned(a.out, bytes);
    };
    if (a.channels % whole_pack<E> == 0 && all_aligned(16)) return 1;
    return a.channels == 1 && a.kernel_width == 2 && a.width % 2 == 0 &&
                   all_aligned(2 * int64_t(sizeof(E)))
               ? 2
               : 0;
}

}  // namespace lipfuse::cuda
