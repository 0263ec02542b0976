// Matrix products on register tiles. The whole inner dimension runs in registers, so that the
// epilogue sees finished sums and no partial result ever touches memory.

template <class T>
struct Tile {
    static constexpr int rows = LIPFUSE_TILE_ROWS;
    static constexpr int vectors = LIPFUSE_TILE_VECTORS;
    static constexpr int cols = vectors * Simd<T>::width;
};

// A panel of B, Tile::cols wide, of which `cols` columns are there.
template <class T>
static inline void pack_b_panel(const View<const T>& b, int64_t j0, int64_t cols, T* out) {
    constexpr int w = Tile<T>::cols;
    const int64_t depth = b.rows;
    if (b.col_stride == 1 && cols == w) {
        for (int64_t k = 0; k < depth; ++k) {
            const T* in = b.data + k * b.row_stride + j0;
#pragma GCC unroll 4
            for (int v = 0; v < Tile<T>::vectors; ++v)
                store(out + k * w + v * Simd<T>::width, load(in + v * Simd<T>::width));
        }
    } else if (b.row_stride == 1) {
        transpose_block(b.data + j0 * b.col_stride, b.col_stride, out, w, cols, depth);
    } else {
        for (int64_t k = 0; k < depth; ++k)
            for (int64_t j = 0; j < cols; ++j)
                out[k * w + j] = b.data[k * b.row_stride + (j0 + j) * b.col_stride];
    }
}

// The same of a matrix of which the lower half is there, a vector's width of columns at a time: above
// the diagonal their mirror image, below it a copy.
template <class T, bool Skew>
static inline void pack_b_panel_of_half(const View<const T>& b, int64_t j0, int64_t cols, T* out) {
    constexpr int w = Tile<T>::cols, v = Simd<T>::width;
    const int64_t n = b.rows, stride = b.row_stride;
    for (int64_t j = j0; j < j0 + cols; j += v, out += v) {
        const int64_t own = least(v, j0 + cols - j);
        transpose_block<T, Skew>(b.data + j * stride, stride, out, w, own, j);
        if (own == v) {
            Vec<T> r[v];
#pragma GCC unroll 16
            for (int l = 0; l < v; ++l) r[l] = load(b.data + (j + l) * stride + j);
            mirror_diagonal<T, Skew>(r);
#pragma GCC unroll 16
            for (int l = 0; l < v; ++l) store(out + (j + l) * w, r[l]);
            for (int64_t k = j + v; k < n; ++k) store(out + k * w, load(b.data + k * stride + j));
            continue;
        }
        for (int64_t k = j; k < n; ++k)
            for (int64_t c = 0; c < own; ++c) {
                const T* lower =
                    k >= j + c ? b.data + k * stride + j + c : b.data + (j + c) * stride + k;
                out[k * w + c] = Skew && k < j + c ? -*lower : *lower;
                if (Skew && k == j + c) out[k * w + c] = 0;
            }
    }
}

template <class T>
static void pack_b(const View<const T>& b, int64_t panel_begin, int64_t panel_end, T* packed) {
    constexpr int w = Tile<T>::cols;
    const int64_t depth = b.rows;
    for (int64_t p = panel_begin; p < panel_end; ++p) {
        T* out = packed + p * w * depth;
        const int64_t j0 = p * w, n = least(w, b.cols - j0);
        if (n < w)
            for (int64_t i = 0; i < w * depth; ++i) out[i] = 0;
        if (b.half == Mirror::none)
            pack_b_panel(b, j0, n, out);
        else if (b.half == Mirror::symmetric)
            pack_b_panel_of_half<T, false>(b, j0, n, out);
        else
            pack_b_panel_of_half<T, true>(b, j0, n, out);
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

// Panels of A, which has `rows` rows, from those of B = sign Aᵀ.
template <class T>
static void narrow(const T* packed, int64_t rows, int64_t depth, int64_t panel_begin,
                   int64_t panel_end, T sign, T* out) {
    constexpr int R = Tile<T>::rows, C = Tile<T>::cols;
    for (int64_t p = panel_begin; p < panel_end; ++p) {
        const int64_t i = p * R, there = least(R, rows - i), whole = least(there, C - i % C);
        const T* in = packed + i / C * C * depth + i % C;
        T* to = out + i * depth;
        if (whole == R) {
            for (int64_t k = 0; k < depth; ++k)
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) to[k * R + r] = sign * in[k * C + r];
            continue;
        }
        // What is left stands in the next panel.
        const T* next = packed + (i / C + 1) * C * depth;
        for (int64_t k = 0; k < depth; ++k)
            for (int64_t r = 0; r < R; ++r)
                to[k * R + r] = r < whole   ? sign * in[k * C + r]
                                : r < there ? sign * next[k * C + r - whole]
                                            : T(0);
    }
}

// acc(i, :) += sum over k of a(i, k) b(k, :). Packed: strides known to the compiler.
template <class T, int V, bool PackedA>
static inline __attribute__((always_inline)) void tile_product(int64_t depth, const T* a,
                                                               int64_t row_stride, int64_t k_stride,
                                                               const T* b, int64_t b_stride,
                                                               Vec<T> (&acc)[Tile<T>::rows][V]) {
    constexpr int R = Tile<T>::rows, w = Simd<T>::width;
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

// Where a tile stands: its first row and column, and how much of it lies inside the result.
struct Place {
    int64_t i, j, rows, cols;
};

// One register tile of V vectors' width, from product to memory.
template <class T, int V>
static inline void tile(const Product<T>& p, const Place& at) {
    constexpr int R = Tile<T>::rows, C = Tile<T>::cols, w = Simd<T>::width;
    const Epilogue<T>& e = p.epilogue;
    const int64_t n = e.stride;
    Vec<T> acc[R][V];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) acc[i][v] = Vec<T>{};
    for (int t = 0; t < p.count; ++t) {
        const auto& term = p.terms[t];
        const int64_t depth = term.a.cols;
        const bool tail_b = term.tail_b && at.j + C > term.b.cols;
        const T* b = tail_b          ? term.tail_b
                     : term.packed_b ? term.packed_b + (at.j - term.packed_from) * depth
                                     : term.b.data + at.j;
        const int64_t b_stride = tail_b || term.packed_b ? C : term.b.row_stride;
        const bool tail_a = term.tail_a && at.i + R > term.a.rows;
        if (tail_a || term.packed_a) {
            const T* a = tail_a ? term.tail_a : term.packed_a + at.i * depth;
            tile_product<T, V, true>(depth, a, 1, R, b, b_stride, acc);
        } else {
            tile_product<T, V, false>(depth, term.a.data + at.i * term.a.row_stride,
                                      term.a.row_stride, term.a.col_stride, b, b_stride, acc);
        }
    }
    const int64_t corner = at.i * n + at.j;
    if (at.rows == R && at.cols >= V * w) {
        const T* x0 = e.x[0];
        const T* x1 = e.x[1];
        const T* x2 = e.x[2];
        for (int o = e.outputs - 1; o >= 0; --o) {  // out[0] may be an X: it comes last
            T* out = e.out[o] + corner;
            const T f = e.acc[o], f0 = e.x0[o], f1 = e.x1[o], f2 = e.x2[o];
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) {
                    const int64_t k = r * n + v * w;
                    Vec<T> y = f * acc[r][v];
                    if (x0) y += f0 * load(x0 + corner + k);
                    if (x1) y += f1 * load(x1 + corner + k);
                    if (x2) y += f2 * load(x2 + corner + k);
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
            const T x0 = e.x[0] ? e.x[0][k] : T(0), x1 = e.x[1] ? e.x[1][k] : T(0),
                    x2 = e.x[2] ? e.x[2][k] : T(0);
            for (int o = 0; o < e.outputs; ++o)
                e.out[o][k] =
                    e.acc[o] * sums[r * V * w + c] + e.x0[o] * x0 + e.x1[o] * x1 + e.x2[o] * x2;
        }
}

// The upper half of the rows [row_begin, row_end) of the lower one. No two callers write the same
// element: theirs are whole blocks of the diagonal.
template <class T, bool Skew>
static void mirror_rows(T* out, int64_t size, int64_t stride, int64_t row_begin, int64_t row_end) {
    constexpr int w = Simd<T>::width;
    for (int64_t i = row_begin; i < row_end; i += w) {
        const int64_t rows = least(w, row_end - i);
        transpose_block<T, Skew>(out + i * stride, stride, out + i, stride, rows, i);
        T* block = out + i * stride + i;
        if (rows == w && i + w <= size) {
            Vec<T> r[w];
#pragma GCC unroll 16
            for (int l = 0; l < w; ++l) r[l] = load(block + l * stride);
            mirror_diagonal<T, Skew>(r);
#pragma GCC unroll 16
            for (int l = 0; l < w; ++l) store(block + l * stride, r[l]);
            continue;
        }
        for (int64_t r = 0; r < rows; ++r) {
            for (int64_t c = 0; c < r; ++c) {
                const T x = block[r * stride + c];
                block[c * stride + r] = Skew ? -x : x;
            }
            if (Skew) block[r * stride + r] = 0;
        }
    }
}

template <class T>
static void mirror(T* a, int64_t n, int64_t stride, int64_t begin, int64_t end, bool skew) {
    if (skew)
        mirror_rows<T, true>(a, n, stride, begin, end);
    else
        mirror_rows<T, false>(a, n, stride, begin, end);
}

// What is left to do once all tiles of these rows and columns stand in memory.
template <class T>
static void finish_product(const Product<T>& p, int64_t row_begin, int64_t row_end,
                           int64_t col_begin, int64_t col_end) {
    const Epilogue<T>& e = p.epilogue;
    const int64_t n = p.terms[0].b.cols;
    for (int o = 0; o < e.outputs; ++o) {
        T* out = e.out[o];
        if (e.diagonal[o] != T(0))
            for (int64_t i = most(row_begin, col_begin); i < least(row_end, col_end); ++i)
                out[i * e.stride + i] += e.diagonal[o];
        if (p.half) continue;
        if (p.mirror == Mirror::symmetric)
            mirror_rows<T, false>(out, n, e.stride, row_begin, row_end);
        if (p.mirror == Mirror::skew) mirror_rows<T, true>(out, n, e.stride, row_begin, row_end);
    }
}

template <class T>
static void product(const Product<T>& p, int64_t row_begin, int64_t row_end, int64_t col_begin,
                    int64_t col_end) {
    constexpr int R = Tile<T>::rows, V = Tile<T>::vectors, C = Tile<T>::cols, w = Simd<T>::width;
    const int64_t n = p.terms[0].b.cols;
    const bool half = p.mirror != Mirror::none;
    if (half) col_end = row_end;
    for (int64_t j = col_begin; j < col_end; j += C) {
        // A mirrored product needs no tile that lies wholly above the diagonal. What tiles on the
        // diagonal write above it is replaced by the mirror image below.
        for (int64_t i = half ? most(row_begin, j / R * R) : row_begin; i < row_end; i += R) {
            const Place at{i, j, least(R, row_end - i), least(C, n - j)};
            if (V > 1 && half && i + R <= j + w)
                tile<T, 1>(p, at);  // only its first vector reaches below the diagonal
            else
                tile<T, V>(p, at);
        }
    }
    finish_product(p, row_begin, row_end, col_begin, col_end);
}
