// The inverse of a small symmetric positive definite matrix, in place.

// Gauss and Jordan's elimination, which needs no pivoting here, on a copy padded by the identity. A
// pivot that is not positive leaves infinities and NaN, which callers see in what they make of it.
template <class T>
static void invert(T* a, int64_t n, int64_t stride) {
    constexpr int N = invert_most, w = Simd<T>::width, V = N / w;
    alignas(64) T m[N][N];
    for (int i = 0; i < N; ++i)
        for (int j = 0; j < N; ++j) m[i][j] = i < n && j < n ? a[i * stride + j] : T(i == j);
    for (int k = 0; k < n; ++k) {
        const T inverse = T(1) / m[k][k];
        Vec<T> keep[V], pivot[V];  // column k is replaced; by a mask, since a scalar store that a
                                   // vector load follows would stall
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
            typename Shuffle<T>::Mask lane = {};
            for (int l = 0; l < w; ++l) lane[l] = v * w + l;
            const Vec<T> one = Vec<T>{} + T(1);
            keep[v] = (Vec<T>)(lane == k ? Vec<T>{} : one);
            pivot[v] = inverse * (keep[v] * load(m[k] + v * w) + (one - keep[v]));
        }
        for (int i = 0; i < n; ++i) {
            const T f = m[i][k];
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v)
                store(m[i] + v * w, keep[v] * load(m[i] + v * w) - f * pivot[v]);
        }
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) store(m[k] + v * w, pivot[v]);
    }
    for (int i = 0; i < n; ++i)
        for (int j = 0; j < n; ++j) a[i * stride + j] = m[i][j];
}
