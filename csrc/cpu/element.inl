// Elements in memory and the type they are computed in: half precision is widened to float on its
// way into a register and rounded once on its way out.

// For the bodies of loops, which are called from a loop over vectors and from its tail.
#define LIPFUSE_INLINED __attribute__((always_inline))

template <class E>
using C = typename WideType<E>::type;

typedef uint32_t Word __attribute__((vector_size(LIPFUSE_VECTOR_BYTES)));
typedef uint16_t HalfWord
    __attribute__((vector_size(LIPFUSE_VECTOR_BYTES / 2), aligned(2), may_alias));

template <class E>
static inline Vec<E> read(const E* p) {
    return load(p);
}
template <class E>
static inline void write(E* p, Vec<E> v) {
    store(p, v);
}

static inline Word read_half_words(const void* p) {
    return __builtin_convertvector(*static_cast<const HalfWord*>(p), Word);
}
static inline void write_half_words(void* p, Word w) {
    *static_cast<HalfWord*>(p) = __builtin_convertvector(w, HalfWord);
}

static inline Vec<float> read(const Bf16* p) {
    return (Vec<float>)(read_half_words(p) << 16);
}
static inline void write(Bf16* p, Vec<float> v) {
    const Word bits = (Word)v;
    const Word rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    write_half_words(p, (bits & 0x7fffffffu) > 0x7f800000u ? Word{} + 0x7fc0u : rounded);
}

// Conversions by integer arithmetic (M. Dukhan's FP16 library): exact, rounding to nearest even, and
// no operand is ever subnormal, so that they hold whatever the flush-to-zero mode is.
static inline Vec<float> read(const Fp16* p) {
    const Word w = read_half_words(p) << 16;
    const Word twice = w + w;
    const Vec<float> normal = (Vec<float>)((twice >> 4) + (0xe0u << 23)) * 0x1p-112f;
    const Vec<float> subnormal = (Vec<float>)((twice >> 17) + (126u << 23)) - 0.5f;
    const Word magnitude = twice < (1u << 27) ? (Word)subnormal : (Word)normal;
    return (Vec<float>)((w & 0x80000000u) | magnitude);
}
static inline void write(Fp16* p, Vec<float> v) {
    const Word w = (Word)v, twice = w + w;
    const Vec<float> magnitude = (Vec<float>)(w & 0x7fffffffu);
    const Word exponent = twice & 0xff000000u;
    const Word bias = exponent < 0x71000000u ? Word{} + 0x71000000u : exponent;
    // The first factor overflows to infinity what is beyond half precision, the second undoes it.
    const Vec<float> scaled = (magnitude * 0x1p+112f) * 0x1p-110f;
    const Word bits = (Word)((Vec<float>)((bias >> 1) + 0x07800000u) + scaled);
    const Word finite = ((bits >> 13) & 0x7c00u) + (bits & 0xfffu);
    write_half_words(p,
                     ((w & 0x80000000u) >> 16) | (twice > 0xff000000u ? Word{} + 0x7e00u : finite));
}

// The first n < width elements; the other lanes are zero.
template <class E>
static inline Vec<C<E>> read_some(const E* p, int64_t n) {
    E lanes[Simd<C<E>>::width] = {};
#ifdef __AVX512BW__  // for half precision; the other types have versions of their own
    _mm256_storeu_epi16(lanes, _mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p));
#else
    for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
#endif
    return read(static_cast<const E*>(lanes));
}
template <class E>
static inline void write_some(E* p, Vec<C<E>> v, int64_t n) {
    E lanes[Simd<C<E>>::width];
    write(static_cast<E*>(lanes), v);
#ifdef __AVX512BW__
    _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), _mm256_loadu_epi16(lanes));
#else
    for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
#endif
}

#if defined(__AVX512F__)
template <>
inline Vec<float> read_some<float>(const float* p, int64_t n) {
    return (Vec<float>)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
}
template <>
inline Vec<double> read_some<double>(const double* p, int64_t n) {
    return (Vec<double>)_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p);
}
template <>
inline void write_some<float>(float* p, Vec<float> v, int64_t n) {
    _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v);
}
template <>
inline void write_some<double>(double* p, Vec<double> v, int64_t n) {
    _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), (__m512d)v);
}
#elif defined(__AVX2__)
static inline __m256i first_lanes(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
template <>
inline Vec<float> read_some<float>(const float* p, int64_t n) {
    return (Vec<float>)_mm256_maskload_ps(p, first_lanes(n));
}
template <>
inline Vec<double> read_some<double>(const double* p, int64_t n) {
    return (Vec<double>)_mm256_maskload_pd(
        p, _mm256_cvtepi32_epi64(_mm256_castsi256_si128(first_lanes(n))));
}
template <>
inline void write_some<float>(float* p, Vec<float> v, int64_t n) {
    _mm256_maskstore_ps(p, first_lanes(n), (__m256)v);
}
template <>
inline void write_some<double>(double* p, Vec<double> v, int64_t n) {
    _mm256_maskstore_pd(p, _mm256_cvtepi32_epi64(_mm256_castsi256_si128(first_lanes(n))),
                        (__m256d)v);
}
#endif

// Calls f(i, n) for the vectors of [0, length): n is the width, or what remains in the last one.
template <class T, class F>
static inline void for_vectors(int64_t length, F f) {
    constexpr int w = Simd<T>::width;
    int64_t i = 0;
    for (; i + w <= length; i += w) f(i, int64_t(w));
    if (i < length) f(i, length - i);
}

// Neighbours: even(x, y) are the elements 0, 2, 4, ... of x followed by y, odd(x, y) the others;
// low(a, b) and high(a, b) lay them back side by side.
template <class T>
struct Neighbours {
    typedef typename Shuffle<T>::Mask Mask;
    typedef typename Shuffle<T>::Aligned A;
    static constexpr int w = Simd<T>::width;

    static inline Vec<T> pick(Vec<T> x, Vec<T> y, int offset) {
        Mask m = {};
        for (int l = 0; l < w; ++l) m[l] = 2 * l + offset;
        return (Vec<T>)__builtin_shuffle((A)x, (A)y, m);
    }
    static inline Vec<T> weave(Vec<T> a, Vec<T> b, int half) {
        Mask m = {};
        for (int l = 0; l < w; ++l) m[l] = half * (w / 2) + l / 2 + (l & 1) * w;
        return (Vec<T>)__builtin_shuffle((A)a, (A)b, m);
    }
    static inline Vec<T> even(Vec<T> x, Vec<T> y) { return pick(x, y, 0); }
    static inline Vec<T> odd(Vec<T> x, Vec<T> y) { return pick(x, y, 1); }
    static inline Vec<T> low(Vec<T> a, Vec<T> b) { return weave(a, b, 0); }
    static inline Vec<T> high(Vec<T> a, Vec<T> b) { return weave(a, b, 1); }
};
