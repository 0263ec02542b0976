// Sorting of pairs, and splitting into positive and negative parts. A row of pairs is `inner` first
// elements followed by `inner` second ones; with inner = 1 the elements of a pair are neighbours. One
// byte a pair says what the backward needs to know.

// One byte a lane, and back.
template <class T>
struct Flags {
    typedef typename IndexOf<T>::type I;
    typedef I Lanes __attribute__((vector_size(LIPFUSE_VECTOR_BYTES)));
    typedef int8_t Bytes
        __attribute__((vector_size(LIPFUSE_VECTOR_BYTES / sizeof(T)), aligned(1), may_alias));

    static inline void write(uint8_t* p, Lanes m, int64_t n) {
        if (n == Simd<T>::width)
            *reinterpret_cast<Bytes*>(p) = __builtin_convertvector(m, Bytes);
        else
            for (int64_t i = 0; i < n; ++i) p[i] = uint8_t(m[i]);
    }
    static inline Lanes read(const uint8_t* p, int64_t n) {
        if (n == Simd<T>::width)
            return __builtin_convertvector(*reinterpret_cast<const Bytes*>(p), Lanes);
        Lanes m = {};
        for (int64_t i = 0; i < n; ++i) m[i] = p[i];
        return m;
    }
};

// Calls f(first, second, flags, n) for vectors of pairs; it returns by reference what to write to
// out, and n is how many pairs there are.
template <class E, class F>
static inline void for_pairs(const E* in, int64_t rows, int64_t inner, int64_t length, E* out,
                             F f) {
    typedef C<E> T;
    constexpr int w = Simd<T>::width;
    if (inner == 1) {
        int64_t p = 0;
        for (; p + w <= rows; p += w) {
            const Vec<T> x = read(in + 2 * p), y = read(in + 2 * p + w);
            Vec<T> first = Neighbours<T>::even(x, y), second = Neighbours<T>::odd(x, y);
            f(first, second, p, int64_t(w));
            write(out + 2 * p, Neighbours<T>::low(first, second));
            write(out + 2 * p + w, Neighbours<T>::high(first, second));
        }
        if (p < rows) {
            E lanes[2 * w] = {};
            for (int64_t i = 0; i < 2 * (rows - p); ++i) lanes[i] = in[2 * p + i];
            const E* from = lanes;
            const Vec<T> x = read(from), y = read(from + w);
            Vec<T> first = Neighbours<T>::even(x, y), second = Neighbours<T>::odd(x, y);
            f(first, second, p, rows - p);
            write(static_cast<E*>(lanes), Neighbours<T>::low(first, second));
            write(lanes + w, Neighbours<T>::high(first, second));
            for (int64_t i = 0; i < 2 * (rows - p); ++i) out[2 * p + i] = lanes[i];
        }
        return;
    }
    for (int64_t r = 0; r < rows; ++r) {
        const E* a = in + 2 * r * inner;
        E* to = out + 2 * r * inner;
        int64_t i = 0;
        // Several vectors of a plane at a time, since memory likes few changes between planes.
        for (; i + 4 * w <= length; i += 4 * w) {
            Vec<T> first[4], second[4];
#pragma GCC unroll 4
            for (int q = 0; q < 4; ++q) first[q] = read(a + i + q * w);
#pragma GCC unroll 4
            for (int q = 0; q < 4; ++q) second[q] = read(a + inner + i + q * w);
#pragma GCC unroll 4
            for (int q = 0; q < 4; ++q) f(first[q], second[q], r * inner + i + q * w, int64_t(w));
#pragma GCC unroll 4
            for (int q = 0; q < 4; ++q) write(to + i + q * w, first[q]);
#pragma GCC unroll 4
            for (int q = 0; q < 4; ++q) write(to + inner + i + q * w, second[q]);
        }
        for (; i + w <= length; i += w) {
            Vec<T> first = read(a + i), second = read(a + inner + i);
            f(first, second, r * inner + i, int64_t(w));
            write(to + i, first);
            write(to + inner + i, second);
        }
        if (i < length) {
            const int64_t n = length - i;
            Vec<T> first = read_some<E>(a + i, n), second = read_some<E>(a + inner + i, n);
            f(first, second, r * inner + i, n);
            write_some<E>(to + i, first, n);
            write_some<E>(to + inner + i, second, n);
        }
    }
}

template <class T>
static inline void swap_where(typename Flags<T>::Lanes swap, Vec<T>& first, Vec<T>& second) {
    const Vec<T> low = swap ? second : first;
    second = swap ? first : second;
    first = low;
}

// A comparison with NaN is false: such a pair stays as it is.
template <class E>
static void sort_pairs(const E* in, int64_t rows, int64_t inner, int64_t length, double scale,
                       E* out, uint8_t* swapped) {
    typedef C<E> T;
    const Vec<T> factor = splat<T>(T(scale));
    for_pairs(in, rows, inner, length, out,
              [=](Vec<T>& first, Vec<T>& second, int64_t pair, int64_t n) LIPFUSE_INLINED {
                  const typename Flags<T>::Lanes swap = first > second;
                  if (swapped) Flags<T>::write(swapped + pair, swap & 1, n);
                  swap_where<T>(swap, first, second);
                  first *= factor;
                  second *= factor;
              });
}

template <class E>
static void swap_pairs(const E* in, const uint8_t* swapped, int64_t rows, int64_t inner,
                       int64_t length, double scale, E* out) {
    typedef C<E> T;
    const Vec<T> factor = splat<T>(T(scale));
    for_pairs(in, rows, inner, length, out,
              [=](Vec<T>& first, Vec<T>& second, int64_t pair, int64_t n) LIPFUSE_INLINED {
                  swap_where<T>(Flags<T>::read(swapped + pair, n) != 0, first, second);
                  first *= factor;
                  second *= factor;
              });
}

// A comparison with NaN is false: it has both parts.
template <class E>
static void max_min(const E* in, int64_t rows, int64_t inner, int64_t length, double scale, E* out,
                    uint8_t* signs) {
    typedef C<E> T;
    typedef typename Flags<T>::Lanes Lanes;
    const Vec<T> factor = splat<T>(T(scale)), zero = {};
    for (int64_t r = 0; r < rows; ++r) {
        const E* from = in + r * inner;
        E* to = out + 2 * r * inner;
        for_vectors<T>(length, [=](int64_t i, int64_t n) LIPFUSE_INLINED {
            const bool whole = n == Simd<T>::width;
            const Vec<T> x = whole ? read(from + i) : read_some<E>(from + i, n);
            const Lanes up = ~(x <= zero), down = ~(x >= zero);
            const Vec<T> positive = factor * (up ? x : zero),
                         negative = factor * (down ? -x : zero);
            if (signs) Flags<T>::write(signs + r * inner + i, (up & 1) | (down & 2), n);
            if (whole) {
                write(to + i, positive);
                write(to + inner + i, negative);
            } else {
                write_some<E>(to + i, positive, n);
                write_some<E>(to + inner + i, negative, n);
            }
        });
    }
}

template <class E>
static void max_min_backward(const E* in, const uint8_t* signs, int64_t rows, int64_t inner,
                             int64_t length, double scale, E* out) {
    typedef C<E> T;
    typedef typename Flags<T>::Lanes Lanes;
    const Vec<T> factor = splat<T>(T(scale)), zero = {};
    for (int64_t r = 0; r < rows; ++r) {
        const E* from = in + 2 * r * inner;
        E* to = out + r * inner;
        for_vectors<T>(length, [=](int64_t i, int64_t n) LIPFUSE_INLINED {
            const bool whole = n == Simd<T>::width;
            const E *a = from + i, *b = a + inner;
            const Vec<T> first = whole ? read(a) : read_some<E>(a, n);
            const Vec<T> second = whole ? read(b) : read_some<E>(b, n);
            const Lanes m = Flags<T>::read(signs + r * inner + i, n);
            const Vec<T> sum = ((m & 1) != 0 ? first : zero) - ((m & 2) != 0 ? second : zero);
            if (whole)
                write(to + i, factor * sum);
            else
                write_some<E>(to + i, factor * sum, n);
        });
    }
}
