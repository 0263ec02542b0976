// The inverse of a small symmetric positive definite matrix, in place.

// By elimination, which needs no pivoting here, on a copy padded by the identity. It leaves the factors of
// A = L D Lᵀ: L^(-1) to the left of the diagonal, D on it. X = D^(-1/2) L^(-1) is the inverse of Cholesky's
// factor, and XᵀX that of A. A pivot that is not positive leaves NaN, which callers see in what they make of
// it.
template <class T>
static void invert(T* a, int64_t n, int64_t stride, T* root, int64_t root_stride) {
    constexpr int N = invert_most, w = Simd<T>::width, V = N / w;
    alignas(64) T m[N][N];
    for (int i = 0; i < N; ++i)
        for (int j = 0; j < N; ++j) m[i][j] = i < n && j < n ? a[i * stride + j] : T(i == j);
    // Which lanes of a row are before, at and after column k: as masks, since a scalar store that a vector
    // load follows would stall.
    const auto blend = [](int k, int v, Vec<T> before, Vec<T> at, Vec<T> after) {
        typename Shuffle<T>::Mask lane = {};
        for (int l = 0; l < w; ++l) lane[l] = v * w + l;
        return (Vec<T>)(lane < k ? before : lane == k ? at : after);
    };
    const Vec<T> zero = {}, one = zero + T(1);
    for (int k = 0; k < n; ++k) {
        const T inverse = T(1) / m[k][k];
        Vec<T> keep[V], pivot[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
            const Vec<T> row = load(m[k] + v * w);
            keep[v] = blend(k, v, one, zero, one);
            pivot[v] = blend(k, v, row, one, row);
        }
        for (int i = k + 1; i < n; ++i) {
            const T f = m[i][k] * inverse;
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v)
                store(m[i] + v * w, keep[v] * load(m[i] + v * w) - f * pivot[v]);
        }
    }
    for (int k = 0; k < n; ++k) {
        const T size = T(1) / T(__builtin_sqrt(m[k][k]));
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v)
            store(m[k] + v * w, size * blend(k, v, load(m[k] + v * w), one, zero));
    }
    for (int i = 0; i < n; ++i) {
        alignas(64) Vec<T> row[V] = {};
        for (int k = i; k < n; ++k) {
            const T f = m[k][i];
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) row[v] += f * load(m[k] + v * w);
        }
        const T* const sums = reinterpret_cast<const T*>(row);
        for (int j = 0; j < n; ++j) a[i * stride + j] = sums[j];
        if (root)
            for (int j = 0; j < n; ++j) root[i * root_stride + j] = m[i][j];
    }
}
