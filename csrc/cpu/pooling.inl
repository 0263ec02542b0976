// Pooling over windows that lie side by side. A row of an image is width * channels elements (the
// channels are 1 where every channel is an image of its own); the unit of work is one row of outputs.
// Work is done in chunks of whole windows: the windows' rows are added up by vectors into a buffer
// that stays in the first cache, which is then added up along the rows, so one loop serves every
// kernel, and the tail of a row is padding. A chunk is a part of a row of windows, or several rows.

static inline float root(float x) {
    return __builtin_sqrtf(x);
}
static inline double root(double x) {
    return __builtin_sqrt(x);
}

struct Chunk {
    int64_t lines;     // rows of windows; if several, each is whole and `elements` long
    int64_t stride;    // elements of the input from one to the next
    int64_t rows;      // of the image, in a row of windows; fewer where they are cut off
    int64_t windows;   // in all lines; the last one may be cut off
    int64_t elements;  // of a row of the image
    bool cut;          // the last window is narrower than the others
};

template <class T>
static inline void add_along(const Pool& p, const Chunk& c, const T* columns, T* sums) {
    constexpr int w = Simd<T>::width;
    const int64_t kw = p.kernel_width, channels = p.channels;
    if (channels == 1 && kw == 2) {
        for (int64_t o = 0; o < c.windows; o += w) {
            const Vec<T> x = load(columns + 2 * o), y = load(columns + 2 * o + w);
            store(sums + o, Neighbours<T>::even(x, y) + Neighbours<T>::odd(x, y));
        }
    } else if (channels == 1) {
        for (int64_t o = 0; o < c.windows; ++o) {
            const T* q = columns + o * kw;
            Vec<T> many{};
            int64_t t = 0;
            for (; t + w <= kw; t += w) many += load(q + t);
            T s = sum<T>(many);
            for (; t < kw; ++t) s += q[t];
            sums[o] = s;
        }
    } else {
        for (int64_t o = 0; o < c.windows; ++o) {
            const T* q = columns + o * kw * channels;
            T* to = sums + o * channels;
            // Vectors may reach into the next window, whose sums are written after these.
            for (int64_t j = 0; j < channels; j += w) {
                Vec<T> s = load(q + j);
                for (int64_t t = 1; t < kw; ++t) s += load(q + t * channels + j);
                store(to + j, s);
            }
        }
    }
}

// The value of a window at each of its elements of a row.
template <class T>
static inline void spread_along(const Pool& p, const Chunk& c, const T* values, T* columns) {
    constexpr int w = Simd<T>::width;
    const int64_t kw = p.kernel_width, channels = p.channels;
    if (channels == 1 && kw == 2) {
        for (int64_t o = 0; o < c.windows; o += w) {
            const Vec<T> v = load(values + o);
            store(columns + 2 * o, Neighbours<T>::low(v, v));
            store(columns + 2 * o + w, Neighbours<T>::high(v, v));
        }
    } else if (channels == 1) {
        for (int64_t o = 0; o < c.windows; ++o)
            for (int64_t t = 0; t < kw; ++t) columns[o * kw + t] = values[o];
    } else {
        for (int64_t o = 0; o < c.windows; ++o) {
            const T* v = values + o * channels;
            for (int64_t t = 0; t < kw; ++t)
                for (int64_t j = 0; j < channels; j += w)
                    store(columns + (o * kw + t) * channels + j, load(v + j));
        }
    }
}

// columns[j] = sum over the rows of f(x), zero where the last window is cut off and somewhat beyond.
template <class E, class F>
static inline void add_rows(const Pool& p, const Chunk& c, const E* in, C<E>* columns, F f) {
    typedef C<E> T;
    constexpr int w = Simd<T>::width;
    const int64_t stride = p.width * p.channels;
    for (int64_t line = 0; line < c.lines; ++line) {
        const E* from = in + line * c.stride;
        T* to = columns + line * c.elements;
        for_vectors<T>(c.elements, [=](int64_t j, int64_t n) LIPFUSE_INLINED {
            const E* x = from + j;
            Vec<T> s{};
            if (n == w)
                for (int64_t i = 0; i < c.rows; ++i) s += f(read(x + i * stride));
            else
                for (int64_t i = 0; i < c.rows; ++i) s += f(read_some<E>(x + i * stride, n));
            store(to + j, s);
        });
    }
    const int64_t whole = c.windows * p.kernel_width * p.channels;
    for (int64_t j = c.lines * c.elements; j < whole + 2 * w; ++j) columns[j] = 0;
}

// Calls f(chunk, in offset, out offset) for the chunks of the rows of outputs [begin, end).
template <class F>
static inline void for_chunks(const Pool& p, int64_t begin, int64_t end, F f) {
    const int64_t row = p.width * p.channels, window = p.kernel_width * p.channels;
    const int64_t at_once = most(1, p.buffer / window);
    const int64_t most_lines =
        p.out_width * p.kernel_width <= p.width ? most(1, at_once / p.out_width) : 1;
    // Without a rest below its windows, an image goes on in the next.
    const bool seamless = p.out_height * p.kernel_height == p.height;
    for (int64_t u = begin; u < end;) {
        const int64_t image = u / p.out_height, line = u % p.out_height;
        const int64_t top = line * p.kernel_height;
        const int64_t from = (image * p.height + top) * row;
        Chunk c;
        c.stride = p.kernel_height * row;
        c.rows = least(p.kernel_height, p.height - top);
        c.lines = least(most_lines, end - u);
        if (!seamless)
            c.lines = c.rows < p.kernel_height
                          ? 1
                          : least(c.lines, most(1, p.height / p.kernel_height - line));
        if (c.lines > 1) {
            c.windows = c.lines * p.out_width;
            c.elements = p.out_width * window;
            c.cut = false;
            f(c, from, u * p.out_width * p.channels);
        } else {
            for (int64_t o = 0; o < p.out_width; o += at_once) {
                c.windows = least(at_once, p.out_width - o);
                c.elements = least(c.windows * window, row - o * window);
                c.cut = c.elements < c.windows * window;
                f(c, from + o * window, (u * p.out_width + o) * p.channels);
            }
        }
        u += c.lines;
    }
}

// Room for a chunk, past whose ends vectors may read and write.
template <class T>
static inline int64_t padded(const Pool& p) {
    constexpr int w = Simd<T>::width;
    const int64_t window = p.kernel_width * p.channels;
    return (most(1, p.buffer / window) * window + 3 * w) / w * w;
}

template <class E>
static inline void write_all(const C<E>* values, int64_t n, E* out) {
    for_vectors<C<E>>(n, [=](int64_t i, int64_t m) LIPFUSE_INLINED {
        if (m == Simd<C<E>>::width)
            write(out + i, load(values + i));
        else
            write_some<E>(out + i, load(values + i), m);
    });
}

// in -> out over the rows of a chunk: out = f(in, columns).
template <class E, class F>
static inline void map_rows(const E* in, int64_t stride, const Chunk& c, const C<E>* columns,
                            E* out, F f) {
    typedef C<E> T;
    for (int64_t line = 0; line < c.lines; ++line)
        for (int64_t i = 0; i < c.rows; ++i) {
            const int64_t at = line * c.stride + i * stride;
            const T* values = columns + line * c.elements;
            for_vectors<T>(c.elements, [=](int64_t j, int64_t n) LIPFUSE_INLINED {
                const Vec<T> y = f(in + at + j, load(values + j), n);
                if (n == Simd<T>::width)
                    write(out + at + j, y);
                else
                    write_some<E>(out + at + j, y, n);
            });
        }
}

// Zeros where no window is: right of the last one, and below.
template <class E>
static inline void clear_rest(const Pool& p, int64_t begin, int64_t end, E* out) {
    const int64_t row = p.width * p.channels;
    const int64_t used = least(p.width, p.out_width * p.kernel_width) * p.channels;
    const int64_t bottom = least(p.height, p.out_height * p.kernel_height);
    for (int64_t u = begin; u < end; ++u) {
        const int64_t image = u / p.out_height, o = u % p.out_height;
        const int64_t first = image * p.height + o * p.kernel_height;
        if (used < row) {
            const int64_t rows = least(p.kernel_height, p.height - o * p.kernel_height);
            for (int64_t i = first; i < first + rows; ++i)
                for (int64_t j = used; j < row; ++j) out[i * row + j] = E{};
        }
        if (o == p.out_height - 1)
            for (int64_t j = (image * p.height + bottom) * row; j < (image + 1) * p.height * row;
                 ++j)
                out[j] = E{};
    }
}

// scale / sqrt(number of elements) of the whole windows of a chunk and of its last, cut one.
struct Factors {
    double whole, cut;
};
static inline Factors factors(const Pool& p, const Chunk& c) {
    const int64_t last = c.cut ? c.elements - (c.windows - 1) * p.kernel_width * p.channels
                               : p.kernel_width * p.channels;
    return {p.scale / __builtin_sqrt(double(c.rows * p.kernel_width)),
            p.scale / __builtin_sqrt(double(c.rows * (last / p.channels)))};
}

// values[i] of the windows, times the factor of each.
template <class T>
static inline void times_factors(const Pool& p, const Chunk& c, T* values) {
    const Factors f = factors(p, c);
    const int64_t whole = (c.windows - (c.cut ? 1 : 0)) * p.channels;
    const T factor = T(f.whole), cut = T(f.cut);
    for (int64_t i = 0; i < whole; ++i) values[i] *= factor;
    for (int64_t i = whole; i < c.windows * p.channels; ++i) values[i] *= cut;
}

template <class E>
static void average_pool(const Pool& p, int64_t begin, int64_t end, const E* in, C<E>* scratch,
                         E* out) {
    typedef C<E> T;
    const int64_t size = padded<T>(p);
    T *columns = scratch, *sums = scratch + size;
    for_chunks(p, begin, end, [=](const Chunk& c, int64_t from, int64_t to) {
        add_rows(p, c, in + from, columns, [](Vec<T> x) { return x; });
        add_along(p, c, columns, sums);
        times_factors(p, c, sums);
        write_all(sums, c.windows * p.channels, out + to);
    });
}

template <class E>
static void average_pool_backward(const Pool& p, int64_t begin, int64_t end, const E* grad,
                                  C<E>* scratch, E* out) {
    typedef C<E> T;
    const int64_t size = padded<T>(p);
    T *columns = scratch, *values = scratch + size;
    for_chunks(p, begin, end, [=](const Chunk& c, int64_t to, int64_t from) {
        for_vectors<T>(c.windows * p.channels, [=](int64_t i, int64_t n) {
            store(values + i,
                  n == Simd<T>::width ? read(grad + from + i) : read_some<E>(grad + from + i, n));
        });
        times_factors(p, c, values);
        spread_along(p, c, values, columns);
        map_rows(out + to, p.width * p.channels, c, columns, out + to,
                 [](const E*, Vec<T> value, int64_t) { return value; });
    });
    clear_rest(p, begin, end, out);
}

template <class E>
static void l2_pool(const Pool& p, int64_t begin, int64_t end, const E* in, C<E>* scratch, E* out) {
    typedef C<E> T;
    const int64_t size = padded<T>(p);
    const T scale = T(p.scale);
    T *columns = scratch, *sums = scratch + size;
    for_chunks(p, begin, end, [=](const Chunk& c, int64_t from, int64_t to) {
        add_rows(p, c, in + from, columns, [](Vec<T> x) { return x * x; });
        add_along(p, c, columns, sums);
        for (int64_t i = 0; i < c.windows * p.channels; ++i) sums[i] = root(sums[i]) * scale;
        write_all(sums, c.windows * p.channels, out + to);
    });
}

// The norms are computed again: that costs nothing while the input is read anyway, and they need
// not be saved, nor are they rounded to half precision.
template <class E>
static void l2_pool_backward(const Pool& p, int64_t begin, int64_t end, const E* grad, const E* in,
                             C<E>* scratch, E* out) {
    typedef C<E> T;
    constexpr int w = Simd<T>::width;
    const int64_t size = padded<T>(p);
    const T scale = T(p.scale), smallest = T(p.smallest);
    T *columns = scratch, *sums = scratch + size;
    for_chunks(p, begin, end, [=](const Chunk& c, int64_t from, int64_t to) {
        add_rows(p, c, in + from, columns, [](Vec<T> x) { return x * x; });
        add_along(p, c, columns, sums);
        const int64_t n = c.windows * p.channels;
        for (int64_t i = 0; i < n; ++i) sums[i] = root(sums[i]);
        for_vectors<T>(n, [=](int64_t i, int64_t m) LIPFUSE_INLINED {
            const Vec<T> norm = load(sums + i);
            const Vec<T> g = m == w ? read(grad + to + i) : read_some<E>(grad + to + i, m);
            store(sums + i, norm >= smallest ? g * scale / norm : Vec<T>{});
        });
        spread_along(p, c, sums, columns);
        map_rows(in + from, p.width * p.channels, c, columns, out + from,
                 [](const E* x, Vec<T> value, int64_t m) LIPFUSE_INLINED {
                     return value * (m == Simd<T>::width ? read(x) : read_some<E>(x, m));
                 });
    });
    clear_rest(p, begin, end, out);
}
