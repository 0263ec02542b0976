// Matrix products on register tiles. The whole inner dimension runs in registers, so that the
// epilogue sees finished sums and no partial result ever touches memory.

template <class T>
struct Tile {
    static constexpr int rows = LIPFUSE_TILE_ROWS;
    static constexpr int vectors = LIPFUSE_TILE_VECTORS;
    static constexpr int cols = vectors * Simd<T>::width;
};

template <class T>
static void pack_b(const View<const T>& b, int64_t panel_begin, int64_t panel_end, T* packed) {
    constexpr int w = Tile<T>::cols;
    const int64_t depth = b.rows;
    for (int64_t p = panel_begin; p < panel_end; ++p) {
        T* out = packed + p * w * depth;
        const int64_t j0 = p * w, n = least(w, b.cols - j0);
        if (n < w)
            for (int64_t i = 0; i < w * depth; ++i) out[i] = 0;
        if (b.col_stride == 1 && n == w) {
            for (int64_t k = 0; k < depth; ++k) {
                const T* in = b.data + k * b.row_stride + j0;
#pragma GCC unroll 4
                for (int v = 0; v < Tile<T>::vectors; ++v)
                    store(out + k * w + v * Simd<T>::width, load(in + v * Simd<T>::width));
            }
        } else if (b.row_stride == 1) {
            transpose_block(b.data + j0 * b.col_stride, b.col_stride, out, w, n, depth);
        } else {
            for (int64_t k = 0; k < depth; ++k)
                for (int64_t j = 0; j < n; ++j)
                    out[k * w + j] = b.data[k * b.row_stride + (j0 + j) * b.col_stride];
        }
    }
}

template <class T>
static void pack_a(const View<const T>& a, int64_t panel_begin, int64_t panel_end, T* packed) {
    constexpr int w = Tile<T>::rows;
    const int64_t depth = a.cols;
    for (int64_t p = panel_begin; p < panel_end; ++p) {
        T* out = packed + p * w * depth;
        const int64_t i0 = p * w, m = least(w, a.rows - i0);
        if (m < w)
            for (int64_t i = 0; i < w * depth; ++i) out[i] = 0;
        if (a.row_stride == 1 && m == w) {
            for (int64_t k = 0; k < depth; ++k) {
                const T* in = a.data + k * a.col_stride + i0;
#pragma GCC unroll 16
                for (int i = 0; i < w; ++i) out[k * w + i] = in[i];
            }
        } else if (a.col_stride == 1 && m == w) {
            constexpr int v = Simd<T>::width;
            int64_t k = 0;
            // Blocks of v columns: v >= w rows would be needed to fill a square; missing rows are
            // loaded twice and their lanes dropped.
            for (; k + v <= depth; k += v) {
                Vec<T> r[v > w ? v : w];
#pragma GCC unroll 16
                for (int i = 0; i < v; ++i)
                    r[i] = load(a.data + (i0 + (i < w ? i : 0)) * a.row_stride + k);
                if constexpr (v >= w) {
                    transpose<T>(r);
#pragma GCC unroll 16
                    for (int l = 0; l < v; ++l)
#pragma GCC unroll 16
                        for (int i = 0; i < w; ++i) out[(k + l) * w + i] = r[l][i];
                } else {
                    for (int i = 0; i < w; ++i)
                        for (int l = 0; l < v; ++l)
                            out[(k + l) * w + i] = a.data[(i0 + i) * a.row_stride + k + l];
                }
            }
            for (; k < depth; ++k)
                for (int i = 0; i < w; ++i) out[k * w + i] = a.data[(i0 + i) * a.row_stride + k];
        } else {
            for (int64_t k = 0; k < depth; ++k)
                for (int64_t i = 0; i < m; ++i)
                    out[k * w + i] = a.data[(i0 + i) * a.row_stride + k * a.col_stride];
        }
    }
}

// acc(i, :) = sum over k of a(i, k) b(k, :). Packed: strides known to the compiler.
template <class T, int V, bool PackedA>
static inline __attribute__((always_inline)) void tile_product(int64_t depth, const T* a,
                                                               int64_t row_stride, int64_t k_stride,
                                                               const T* b, int64_t b_stride,
                                                               Vec<T> (&acc)[Tile<T>::rows][V]) {
    constexpr int R = Tile<T>::rows, w = Simd<T>::width;
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) acc[i][v] = Vec<T>{};
    for (int64_t k = 0; k < depth; ++k) {
        Vec<T> bv[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) bv[v] = load(b + v * w);
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i) {
            const T ai = PackedA ? a[i] : a[i * row_stride];
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) acc[i][v] += ai * bv[v];
        }
        a += PackedA ? R : k_stride;
        b += b_stride;
    }
}

// Where a tile stands and where its operands are.
template <class T>
struct Place {
    int64_t i, j;        // its first row and column
    int64_t rows, cols;  // how much of it lies inside the result
    const T* a;
    int64_t a_row_stride, a_k_stride;
    bool packed_a;
    const T* b;
    int64_t b_stride;
};

// One register tile of V vectors' width, from product to memory.
template <class T, int V>
static inline void tile(const Product<T>& p, const Place<T>& at) {
    constexpr int R = Tile<T>::rows, w = Simd<T>::width;
    const Epilogue<T>& e = p.epilogue;
    const int64_t n = p.b.cols, depth = p.a.cols;
    Vec<T> acc[R][V];
    if (at.packed_a)
        tile_product<T, V, true>(depth, at.a, 1, R, at.b, at.b_stride, acc);
    else
        tile_product<T, V, false>(depth, at.a, at.a_row_stride, at.a_k_stride, at.b, at.b_stride,
                                  acc);
    const int64_t corner = at.i * n + at.j;
    if (at.rows == R && at.cols >= V * w) {
        const T* x0 = e.x[0];
        const T* x1 = e.x[1];
        for (int o = e.outputs - 1; o >= 0; --o) {  // out[0] may be an X: it comes last
            T* out = e.out[o] + corner;
            const T f = e.acc[o], f0 = e.x0[o], f1 = e.x1[o];
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) {
                    const int64_t k = r * n + v * w;
                    Vec<T> y = f * acc[r][v];
                    if (x0) y += f0 * load(x0 + corner + k);
                    if (x1) y += f1 * load(x1 + corner + k);
                    store(out + k, y);
                }
        }
        return;
    }
    T sums[R * V * w];
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) store(sums + (r * V + v) * w, acc[r][v]);
    for (int64_t r = 0; r < at.rows; ++r)
        for (int64_t c = 0; c < least(at.cols, V * w); ++c) {
            const int64_t k = corner + r * n + c;
            const T x0 = e.x[0] ? e.x[0][k] : T(0), x1 = e.x[1] ? e.x[1][k] : T(0);
            for (int o = 0; o < e.outputs; ++o)
                e.out[o][k] = e.acc[o] * sums[r * V * w + c] + e.x0[o] * x0 + e.x1[o] * x1;
        }
}

template <class T>
static void product(const Product<T>& p, int64_t row_begin, int64_t row_end, int64_t col_begin,
                    int64_t col_end) {
    constexpr int R = Tile<T>::rows, V = Tile<T>::vectors, C = Tile<T>::cols, w = Simd<T>::width;
    const Epilogue<T>& e = p.epilogue;
    const int64_t depth = p.a.cols, n = p.b.cols;
    if (p.symmetric) col_end = row_end;
    for (int64_t j = col_begin; j < col_end; j += C) {
        Place<T> at;
        at.j = j;
        at.cols = least(C, n - j);
        const bool tail_b = p.tail_b && j + C > n;
        at.b = tail_b ? p.tail_b : p.packed_b ? p.packed_b + j * depth : p.b.data + j;
        at.b_stride = tail_b || p.packed_b ? C : p.b.row_stride;
        // A symmetric product needs no tile that lies wholly above the diagonal. What tiles on the
        // diagonal write above it is replaced by the mirror image below.
        for (int64_t i = p.symmetric ? most(row_begin, j / R * R) : row_begin; i < row_end;
             i += R) {
            at.i = i;
            at.rows = least(R, row_end - i);
            const bool tail_a = p.tail_a && i + R > p.a.rows;
            at.packed_a = tail_a || p.packed_a;
            at.a = tail_a       ? p.tail_a
                   : p.packed_a ? p.packed_a + i * depth
                                : p.a.data + i * p.a.row_stride;
            at.a_row_stride = p.a.row_stride;
            at.a_k_stride = p.a.col_stride;
            if (V > 1 && p.symmetric && i + R <= j + w)
                tile<T, 1>(p, at);  // only its first vector reaches below the diagonal
            else
                tile<T, V>(p, at);
        }
    }
    for (int o = 0; o < e.outputs; ++o) {
        T* out = e.out[o];
        if (e.diagonal[o] != T(0))
            for (int64_t i = most(row_begin, col_begin); i < least(row_end, col_end); ++i)
                out[i * n + i] += e.diagonal[o];
        if (!p.symmetric) continue;
        // No two callers write the same element: theirs are whole blocks of the diagonal.
        for (int64_t i = row_begin; i < row_end; i += w) {
            const int64_t rows = least(w, row_end - i);
            transpose_block(out + i * n, n, out + i, n, rows, i);
            if (rows == w && i + w <= n)
                mirror_diagonal_block(out + i * n + i, n);
            else
                for (int64_t r = 1; r < rows; ++r)
                    for (int64_t c = 0; c < r; ++c)
                        out[(i + c) * n + i + r] = out[(i + r) * n + i + c];
        }
    }
}
