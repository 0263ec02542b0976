// Vectors of the width this translation unit is compiled for, by the compiler's vector extension:
// the same source becomes SSE, AVX2, AVX-512 or NEON. Included inside an instruction set's own
// namespace; uses no standard template, so that no wide instruction can leak through a shared
// inline function into code that runs on every machine.

template <class T>
struct Simd {
    static constexpr int width = LIPFUSE_VECTOR_BYTES / int(sizeof(T));
    typedef T Vector
        __attribute__((vector_size(LIPFUSE_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
};
template <class T>
using Vec = typename Simd<T>::Vector;

template <class T>
static inline Vec<T> load(const T* p) {
    return *reinterpret_cast<const Vec<T>*>(p);
}
template <class T>
static inline void store(T* p, Vec<T> v) {
    *reinterpret_cast<Vec<T>*>(p) = v;
}
template <class T>
static inline Vec<T> splat(T x) {
    return Vec<T>{} + x;
}
static inline int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static inline int64_t most(int64_t a, int64_t b) {
    return a > b ? a : b;
}

// Index vectors of the transposition network: at distance d, lanes swap halves of 2d-blocks.
template <class T>
struct IndexOf;
template <>
struct IndexOf<float> {
    typedef int32_t type;
};
template <>
struct IndexOf<double> {
    typedef int64_t type;
};
template <class T>
struct Shuffle {
    typedef typename IndexOf<T>::type I;
    typedef I Mask __attribute__((vector_size(LIPFUSE_VECTOR_BYTES)));
    typedef T Aligned __attribute__((vector_size(LIPFUSE_VECTOR_BYTES)));
    static inline Mask mask(int d, int high) {
        Mask m = {};
        for (int l = 0; l < Simd<T>::width; ++l) {
            const bool upper = (l & d) != 0;
            m[l] =
                high ? (upper ? l + Simd<T>::width : l + d) : (upper ? l - d + Simd<T>::width : l);
        }
        return m;
    }
};

// The sum of all lanes, by halves.
template <class T>
static inline T sum(Vec<T> v) {
    typedef typename Shuffle<T>::Aligned A;
    A x = (A)v;
#pragma GCC unroll 8
    for (int d = Simd<T>::width / 2; d >= 1; d /= 2) {
        typename Shuffle<T>::Mask m = {};
        for (int l = 0; l < Simd<T>::width; ++l) m[l] = l ^ d;
        x += __builtin_shuffle(x, m);
    }
    return x[0];
}

// Transposes a width x width block held in registers.
template <class T>
static inline void transpose(Vec<T>* r) {
    constexpr int w = Simd<T>::width;
    typedef typename Shuffle<T>::Aligned A;
#pragma GCC unroll 8
    for (int d = 1; d < w; d *= 2) {
        const auto low = Shuffle<T>::mask(d, 0), high = Shuffle<T>::mask(d, 1);
#pragma GCC unroll 16
        for (int i = 0; i < w; ++i) {
            if (i & d) continue;
            const A x = (A)r[i], y = (A)r[i + d];
            r[i] = (Vec<T>)__builtin_shuffle(x, y, low);
            r[i + d] = (Vec<T>)__builtin_shuffle(x, y, high);
        }
    }
}

// Makes a width x width block on the diagonal, held in registers, symmetric or skew-symmetric: its upper
// half becomes the lower's mirror.
template <class T, bool Skew>
static inline void mirror_diagonal(Vec<T>* r) {
    constexpr int w = Simd<T>::width;
    typedef typename Shuffle<T>::Mask Mask;
    Vec<T> t[w];
    Mask lane = {};
    for (int l = 0; l < w; ++l) lane[l] = l;
#pragma GCC unroll 16
    for (int l = 0; l < w; ++l) t[l] = r[l];
    transpose<T>(t);
#pragma GCC unroll 16
    for (int l = 0; l < w; ++l) {
        if (Skew)
            r[l] = (Vec<T>)(lane < l ? r[l] : (lane == l ? Vec<T>{} : -t[l]));
        else
            r[l] = (Vec<T>)(lane <= l ? r[l] : t[l]);
    }
}

// out(j, i) = in(i, j), or its negative, for a rows x cols block, both with unit inner stride.
template <class T, bool Negate = false>
static inline void transpose_block(const T* in, int64_t in_stride, T* out, int64_t out_stride,
                                   int64_t rows, int64_t cols) {
    constexpr int w = Simd<T>::width;
    int64_t i = 0;
    for (; i + w <= rows; i += w) {
        int64_t j = 0;
        for (; j + w <= cols; j += w) {
            Vec<T> r[w];
#pragma GCC unroll 16
            for (int l = 0; l < w; ++l) r[l] = load(in + (i + l) * in_stride + j);
            transpose<T>(r);
#pragma GCC unroll 16
            for (int l = 0; l < w; ++l)
                store(out + (j + l) * out_stride + i, Negate ? -r[l] : r[l]);
        }
        for (; j < cols; ++j)
            for (int l = 0; l < w; ++l) {
                const T x = in[(i + l) * in_stride + j];
                out[j * out_stride + i + l] = Negate ? -x : x;
            }
    }
    for (; i < rows; ++i)
        for (int64_t j = 0; j < cols; ++j) {
            const T x = in[i * in_stride + j];
            out[j * out_stride + i] = Negate ? -x : x;
        }
}
