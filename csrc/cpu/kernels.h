// The table of CPU kernels. One body (kernels.inl) is compiled once an instruction set; each build
// fills such a table, and dispatch.cpp picks one at run time. Nothing here knows of torch.
#pragma once

#include <cstdint>

#include "../algorithms/half.h"
#include "../algorithms/mirror.h"

#define LIPFUSE_EXPORT __attribute__((visibility("default")))

namespace lipfuse::cpu {

// Products on a tile unit go by blocks of 32 x 32: split_product.inl. What is inline here is so
// everywhere: no copy of it that was compiled for a wide instruction set may be left to other code.
constexpr int64_t block_side = 32, block_size = block_side * block_side;
static inline __attribute__((always_inline)) int64_t blocks_of(int64_t n) {
    return (n + block_side - 1) / block_side;
}

// Row by row, or in blocks, each row by row and without a gap to the next in its row of blocks: those
// of the lower half, or all of them. What is in blocks consists of whole ones.
enum class Layout { rows, lower_blocks, all_blocks };

// Where the block begins that has (i, j) in its corner, in a matrix of rows `stride` apart.
static inline __attribute__((always_inline)) int64_t block_begin(Layout layout, int64_t i,
                                                                 int64_t j, int64_t stride) {
    if (layout == Layout::rows) return i * stride + j;
    const int64_t row = i / block_side, col = j / block_side,
                  before =
                      layout == Layout::all_blocks ? row * blocks_of(stride) : row * (row + 1) / 2;
    return (before + col) * block_size;
}

// A matrix in memory: element (i, j) stands at data[i * row_stride + j * col_stride]. Of one that is
// `half` only the lower half is there, row-major, with whole blocks of a vector's width on the diagonal, or
// in blocks; the rest of the upper one is its mirror image.
template <class T>
struct View {
    T* data;
    int64_t rows, cols, row_stride, col_stride;
    Mirror half = Mirror::none;
    Layout layout = Layout::rows;

    // Of a half that is skew there is none.
    View transposed() const {
        if (half != Mirror::none) return *this;
        return {data, cols, rows, col_stride, row_stride};
    }
    operator View<const T>() const {
        return {data, rows, cols, row_stride, col_stride, half, layout};
    }
};

// An element of the lower half, in the corner of some that stand in one block.
template <class T>
static inline __attribute__((always_inline)) T* lower_corner(const View<T>& a, int64_t i,
                                                             int64_t j) {
    if (a.layout == Layout::rows) return a.data + i * a.row_stride + j;
    return a.data + block_begin(a.layout, i, j, a.row_stride) + i % block_side * block_side +
           j % block_side;
}
// How far apart rows are in a block.
template <class T>
static inline __attribute__((always_inline)) int64_t block_stride(const View<T>& a) {
    return a.layout == Layout::rows ? a.row_stride : block_side;
}

// What happens to a product's accumulator on its way to memory, while it is still in registers:
//   out[r] = acc[r] * (A B) + sum over t of factor[t][r] * X[t] + diagonal[r] * I,   r < outputs.
// Outputs and X have the product's layout and, where that is row-major, the same leading dimension; X are
// set from the first on. out[0] may be an X itself: every element is read before it is written.
template <class T>
struct Epilogue {
    int outputs = 1;
    int64_t stride = 0;  // the leading dimension; 0: the number of columns
    T* out[2] = {nullptr, nullptr};
    const T* x[3] = {nullptr, nullptr, nullptr};
    T acc[2] = {1, 1};
    T x0[2] = {0, 0};
    T x1[2] = {0, 0};
    T x2[2] = {0, 0};
    T diagonal[2] = {0, 0};
};

template <class T>
struct Product {
    // Packed operands stand in panels, k-major: of tile_cols columns of B, of tile_rows rows of A. Tails
    // are the last panel of operands that are read in place, where it is not a whole one.
    struct Term {
        View<const T> a, b;
        const T* packed_a = nullptr;
        const T* packed_b = nullptr;
        int64_t packed_from = 0;  // the column of B that packed_b begins with
        const T* tail_a = nullptr;
        const T* tail_b = nullptr;
    };
    Term terms[2];  // A B of the first, plus that of the second where there are two
    int count = 1;
    Mirror mirror = Mirror::none;
    bool half = false;  // of a mirrored product: what stands above the diagonal may be anything
    Layout layout = Layout::rows;  // of the outputs and of X
    Epilogue<T> epilogue;
};

constexpr int64_t block_parts = 3 * block_size;  // operands are split in three

// Some of the blocks, counted in blocks: rows [row_begin, row_end) and columns [col_begin, col_end), of
// a mirrored product those that are not above the diagonal. Of the first row those from first_col on,
// of the last one those before last_col.
struct Blocks {
    int64_t row_begin, row_end, col_begin, col_end, first_col = 0, last_col = INT64_MAX;
};

// How a split product, which has an inner dimension, goes through them: so much of that at once that the
// operand of about eight rows fills half of a core's cache, and as many rows as do.
struct SplitPlan {
    int64_t depth = 0, chunk, rows;  // in blocks

    template <class T>
    __attribute__((always_inline)) explicit SplitPlan(const Product<T>& p) {
        constexpr int64_t cached = (int64_t(1) << 20) / (block_parts * int64_t(sizeof(uint16_t)));
        for (int t = 0; t < p.count; ++t) depth += blocks_of(p.terms[t].a.cols);
        const int64_t chunks = (depth * 8 + cached - 1) / cached;
        chunk = (depth + chunks - 1) / chunks;
        rows = cached / chunk;
    }
    // Elements of scratch for so many columns of blocks: two panels of B, those of A, and sums.
    __attribute__((always_inline)) int64_t scratch(int64_t cols) const {
        const int64_t sums = chunk < depth ? rows * cols * block_side * block_side : 0;
        return (2 + rows) * chunk * block_parts + sums * int64_t(sizeof(float) / sizeof(uint16_t));
    }
};

constexpr int64_t invert_most = 32;

template <class T>
struct Kernels {
    int tile_rows, tile_cols;  // of the register tile

    // Panels of tile_rows rows (a) or tile_cols columns (b), k-major, zero-padded. Of a half matrix b's
    // only.
    void (*pack_a)(const View<const T>& a, int64_t panel_begin, int64_t panel_end, T* packed);
    void (*pack_b)(const View<const T>& b, int64_t panel_begin, int64_t panel_end, T* packed);
    // Panels of A (rows x depth) from those of B = sign Aᵀ.
    void (*narrow)(const T* packed, int64_t rows, int64_t depth, int64_t panel_begin,
                   int64_t panel_end, T sign, T* out);
    // Rows [row_begin, row_end) and columns [col_begin, col_end) of a product; tile-aligned begins.
    // A mirrored product takes whole rows: columns up to the diagonal, then, unless half of it is
    // enough, the mirror image.
    void (*product)(const Product<T>& product, int64_t row_begin, int64_t row_end,
                    int64_t col_begin, int64_t col_end);

    // On a tile unit, or null: some blocks of a product, with the plan's scratch.
    void (*split_product)(const Product<T>& product, const Blocks& blocks, uint16_t* scratch);
    // Rows of blocks of P - Pᵀ, P known, through the epilogue of a skew-symmetric product.
    void (*finish_skew)(const Product<T>& product, const View<const T>& known, int64_t row_begin,
                        int64_t row_end);

    double (*dot)(int64_t n, const T* x, const T* y);
    // out = a * x + b * y; y may be null.
    void (*axpby)(int64_t n, T a, const T* x, T b, const T* y, T* out);
    // sum of (x - y)²
    double (*distance)(int64_t n, const T* x, const T* y);
    // elements [begin, end) of y = A x, A symmetric n x n
    void (*symmetric_matvec)(const T* a, int64_t n, const T* x, int64_t begin, int64_t end, T* y);
    // What rows [begin, end) of the lower half of A add to y = A x: to the elements before them, and
    // the elements of these rows, which are only written.
    void (*symmetric_matvec_of_half)(const View<const T>& a, const T* x, int64_t begin, int64_t end,
                                     T* y);
    // The squares of rows [begin, end) of a lower half and of their mirror image; in blocks, of whole
    // rows of those.
    double (*square_of_half)(const View<const T>& a, int64_t begin, int64_t end);
    // Rows of blocks [begin, end) of a lower half in blocks: from a matrix that is whole, and the other
    // way round.
    void (*pack_blocks)(const T* a, int64_t n, int64_t begin, int64_t end, T* out);
    void (*unpack_blocks)(const View<const T>& a, int64_t begin, int64_t end, T* out);
    // The upper half of the rows [begin, end) of the lower one, with the opposite sign for skew.
    void (*mirror)(T* a, int64_t n, int64_t stride, int64_t begin, int64_t end, bool skew);
    // next <- next - <next, v> v - beta previous; *alpha = <next, v>, *length = ‖next‖
    void (*lanczos_step)(int64_t n, const T* v, const T* previous, double beta, T* next,
                         double* alpha, double* length);
    // At most `steps` steps of Lanczos's process from v, previous being zero: the tridiagonal matrix
    // it finds, and its size. All three vectors are overwritten.
    int (*lanczos)(const View<const T>& a, int steps, T* v, T* previous, T* next, double* diagonal,
                   double* beside);
    // One sweep over the rows r of a (row-major, `stride` apart): t[r] = <a_r, v> and
    // s += t[r] * a_r while the row is in cache. s (length cols) must be set by the caller.
    void (*sweep)(const T* a, int64_t cols, int64_t stride, const T* v, int64_t row_begin,
                  int64_t row_end, T* t, T* s);
    // Rows of out = alpha * a + beta * u vᵀ; a null means zero.
    void (*rank_one_update)(const T* a, T alpha, T beta, const T* u, const T* v, int64_t cols,
                            int64_t row_begin, int64_t row_end, T* out);
    // In place: a symmetric positive definite matrix of at most `invert_most` rows, `stride` apart,
    // becomes its inverse. root (n x n as well, may be null): the inverse of its Cholesky factor, with
    // zeros above the diagonal.
    void (*invert)(T* a, int64_t n, int64_t stride, T* root, int64_t root_stride);
    // out(j, i) = in(i, j) for rows x cols elements of in
    void (*transpose)(const T* in, int64_t in_stride, T* out, int64_t out_stride, int64_t rows,
                      int64_t cols);
    // Rows of the lower half: out <- a - aᵀ, and unless it is kept as half its mirror image; returns
    // the sum of squares of both.
    double (*skew)(const T* a, int64_t row_begin, int64_t row_end, const View<T>& out);
    // Rows of the lower half: out <- alpha (a + aᵀ) and its mirror image.
    void (*symmetrize)(const T* a, T alpha, int64_t n, int64_t row_begin, int64_t row_end, T* out);
    // Rows of out (row-major) copied from any strided view.
    void (*gather)(const View<const T>& a, int64_t row_begin, int64_t row_end, T* out);

    // Hermitian matrices of `lanes` frequencies at once: waves.inl. Scratch: n (n + 1) vectors, and
    // 4 n (scores) or n (exceeds) more.
    int lanes;
    void (*wave_scores)(const T* even, const T* odd, int64_t n, int64_t terms, const T* cosines,
                        const T* sines, const T* start, int steps, T* scratch, T* scores);
    void (*wave_exceeds)(const T* even, const T* odd, int64_t n, int64_t terms, const T* cosines,
                         const T* sines, T threshold, T* scratch, uint8_t* flags);
};

// Windows side by side over images of height x width x channels, row-major.
struct Pool {
    int64_t height, width, channels, kernel_height, kernel_width, out_height, out_width;
    double scale;
    double smallest = 0;    // the gradient of a norm below this is zero
    int64_t buffer = 2048;  // how many elements of a row to take at once

    int64_t scratch() const {
        const int64_t window = kernel_width * channels;
        return 2 * ((buffer < window ? window : buffer) + 64);
    }
};

// Passes of activations and pools, on elements of any floating-point type.
template <class E>
struct LayerKernels {
    using Wide = typename WideType<E>::type;
    // Rows of `inner` first and `inner` second elements, the first `length` of each; inner = 1:
    // neighbours. out = scale * the pairs in ascending order; swapped (may be null): one byte a pair.
    void (*sort_pairs)(const E* in, int64_t rows, int64_t inner, int64_t length, double scale,
                       E* out, uint8_t* swapped);
    // out = scale * the pairs, exchanged where swapped.
    void (*swap_pairs)(const E* in, const uint8_t* swapped, int64_t rows, int64_t inner,
                       int64_t length, double scale, E* out);
    // Rows of `inner` numbers x, the first `length` of each: out has rows of scale * max(x, 0) and
    // of scale * max(-x, 0) in turn. signs (may be null): one byte a number, 1 where x is not
    // below or at zero, plus 2 where it is not above or at it.
    void (*max_min)(const E* in, int64_t rows, int64_t inner, int64_t length, double scale, E* out,
                    uint8_t* signs);
    // Its adjoint: out = scale * (first row where signs have 1 - second row where they have 2).
    void (*max_min_backward)(const E* in, const uint8_t* signs, int64_t rows, int64_t inner,
                             int64_t length, double scale, E* out);
    // The rows of outputs [begin, end), counted over all images. Backward passes write all rows of
    // the input that belong to them.
    void (*average_pool)(const Pool& pool, int64_t begin, int64_t end, const E* in, Wide* scratch,
                         E* out);
    void (*average_pool_backward)(const Pool& pool, int64_t begin, int64_t end, const E* grad,
                                  Wide* scratch, E* out);
    void (*l2_pool)(const Pool& pool, int64_t begin, int64_t end, const E* in, Wide* scratch,
                    E* out);
    void (*l2_pool_backward)(const Pool& pool, int64_t begin, int64_t end, const E* grad,
                             const E* in, Wide* scratch, E* out);
};

enum class InstructionSet { generic = 0, avx2 = 1, avx512 = 2, amx = 3 };
constexpr int instruction_sets = 4;

template <class T>
LIPFUSE_EXPORT const Kernels<T>& kernels();  // the set in use
template <class E>
LIPFUSE_EXPORT const LayerKernels<E>& layer_kernels();

// Instruction sets that were compiled and that this processor has, best last.
LIPFUSE_EXPORT int available_instruction_sets(InstructionSet out[instruction_sets]);
LIPFUSE_EXPORT InstructionSet selected_instruction_set();
// Throws std::invalid_argument for a name that is unknown or not available here.
LIPFUSE_EXPORT void select_instruction_set(const char* name);
LIPFUSE_EXPORT const char* name_of(InstructionSet set);

}  // namespace lipfuse::cpu
