// Tiles of matrix products. 256 threads share the operands chunk by chunk of the inner dimension
// through shared memory; the next chunk is on its way to registers while one is in use.
#pragma once

#include <cstdint>

#include "../algorithms/mirror.h"
#include "execution.h"

namespace lipfuse::cuda {

constexpr int block_threads = 256;
constexpr int block_warps = block_threads / 32;

template <class T>
struct View {
    const T* data;
    int64_t rows, cols, row_stride, col_stride;
    T unit = T(1);  // a power of two that power iteration multiplies by

    LIPFUSE_DEVICE View transposed() const { return {data, cols, rows, col_stride, row_stride}; }
};

// What happens to a product's accumulator on its way to memory:
//   out[r] = acc[r] * (A B) + x0[r] * X0 + x1[r] * X1 + diagonal[r] * I,   r < outputs.
// out[0] may be X0 or X1 itself.
template <class T>
struct Epilogue {
    int outputs = 1;
    T* out[2] = {nullptr, nullptr};
    const T* x[2] = {nullptr, nullptr};
    T acc[2] = {1, 1};
    T x0[2] = {0, 0};
    T x1[2] = {0, 0};
    T diagonal[2] = {0, 0};

    // Element (i, j) of an m x n result. A symmetric or skew-symmetric one is written by its lower half.
    LIPFUSE_DEVICE void write(int64_t i, int64_t j, int64_t m, int64_t n, Mirror mirror,
                              T value) const {
        if (i >= m || j >= n || (mirror != Mirror::none && j > i)) return;
        const int64_t at = i * n + j;
        const T first = x[0] ? x[0][at] : T(0), second = x[1] ? x[1][at] : T(0);
        for (int o = 0; o < outputs; ++o) {
            T y = acc[o] * value + x0[o] * first + x1[o] * second;
            if (i == j) y += diagonal[o];
            out[o][at] = y;
            if (mirror != Mirror::none && i != j)
                out[o][j * n + i] = mirror == Mirror::skew ? -y : y;
        }
    }
};

// The lines of an operand that a tile needs: rows of A, columns of B.
template <class T>
struct Operand {
    const T* data;
    int64_t count, stride, depth_stride;
    bool along_depth;  // neighbours in memory are neighbours in depth

    static LIPFUSE_DEVICE Operand rows_of(const View<T>& a) {
        return {a.data, a.rows, a.row_stride, a.col_stride, a.col_stride == 1};
    }
    static LIPFUSE_DEVICE Operand columns_of(const View<T>& b) {
        return {b.data, b.cols, b.col_stride, b.row_stride, b.row_stride == 1 && b.col_stride != 1};
    }
    LIPFUSE_DEVICE T at(int64_t line, int64_t k, int64_t depth) const {
        return line < count && k < depth ? data[line * stride + k * depth_stride] : T(0);
    }
};

// 16 M x 16 M by fused multiply-adds: each thread has M x M sums.
template <class T, int M>
struct PlainTile {
    static constexpr int side = 16 * M, depth = 16, pitch = 68, sums = M * M;
    static constexpr int64_t bytes = int64_t(4) * depth * pitch * sizeof(T);

    static LIPFUSE_DEVICE int row(int thread, int q) { return thread / 16 * M + q / M; }
    static LIPFUSE_DEVICE int col(int thread, int q) { return thread % 16 * M + q % M; }

    // A's rows from i0 times B's columns from j0 over the depths [k0, k1).
    static LIPFUSE_DEVICE void multiply(unsigned char* memory, int, int thread, const View<T>& a,
                                        const View<T>& b, int64_t i0, int64_t j0, int64_t k0,
                                        int64_t k1, T (&sum)[sums]) {
        auto* chunks = reinterpret_cast<T(*)[2][depth][pitch]>(memory);
        const auto left = Operand<T>::rows_of(a), right = Operand<T>::columns_of(b);
        const int tx = thread % 16 * M, ty = thread / 16 * M;
        T next_a[M], next_b[M], own[M][M] = {};
        fetch(left, i0, k0, k1, thread, next_a);
        fetch(right, j0, k0, k1, thread, next_b);
        int turn = 0;
        for (int64_t k = k0; k < k1; k += depth, turn ^= 1) {
            auto& chunk_a = chunks[turn][0];
            auto& chunk_b = chunks[turn][1];
            stage(next_a, left.along_depth, thread, chunk_a);
            stage(next_b, right.along_depth, thread, chunk_b);
            sync_threads();
            if (k + depth < k1) {
                fetch(left, i0, k + depth, k1, thread, next_a);
                fetch(right, j0, k + depth, k1, thread, next_b);
            }
            LIPFUSE_UNROLL
            for (int d = 0; d < depth; ++d) {
                T x[M], y[M];
                LIPFUSE_UNROLL
                for (int q = 0; q < M; ++q) {
                    x[q] = chunk_a[d][ty + q];
                    y[q] = chunk_b[d][tx + q];
                }
                LIPFUSE_UNROLL
                for (int p = 0; p < M; ++p) LIPFUSE_UNROLL
                for (int q = 0; q < M; ++q) own[p][q] += x[p] * y[q];
            }
        }
        LIPFUSE_UNROLL
        for (int q = 0; q < sums; ++q) sum[q] = own[q / M][q % M];
        sync_threads();  // before the next tile overwrites what others may still read
    }

private:
    static LIPFUSE_DEVICE void place(int e, bool along_depth, int& line, int& d) {
        line = along_depth ? e / depth : e % side;
        d = along_depth ? e % depth : e / side;
    }
    static LIPFUSE_DEVICE void fetch(const Operand<T>& from, int64_t first, int64_t k, int64_t k1,
                                     int thread, T (&to)[M]) {
        LIPFUSE_UNROLL
        for (int q = 0; q < M; ++q) {
            int line, d;
            place(q * block_threads + thread, from.along_depth, line, d);
            to[q] = from.at(first + line, k + d, k1);
        }
    }
    static LIPFUSE_DEVICE void stage(const T (&from)[M], bool along_depth, int thread,
                                     T (&to)[depth][pitch]) {
        LIPFUSE_UNROLL
        for (int q = 0; q < M; ++q) {
            int line, d;
            place(q * block_threads + thread, along_depth, line, d);
            to[d][line] = from[q];
        }
    }
};

// 64 x 64 on tensor cores, to float32's own accuracy: each number is the sum of three bfloat16 ones,
// which have all of its 24 bits, and of the nine products of pieces the six that matter are formed.
// Two pieces (three products) leave 2^-16: torch's float32 matmul precision "high".
//
// Of each chunk of depth 32 four warps take the first half and four the second, which has them read
// less from shared memory than if each had a smaller tile; they add up their sums at the end. Each
// of 2 x 2 warps has 2 x 4 fragments of 16 x 8. In shared memory two neighbours in depth make a
// word, the words of a line follow each other, and their order is permuted from line to line so
// that neither writing nor reading fragments meets a bank conflict.
struct SplitTile {
    static constexpr int side = 64, depth = 32, sums = side * side / block_threads;
    static constexpr int line_words = depth / 2, words = side * line_words;
    static constexpr int64_t bytes = int64_t(2) * 2 * 3 * words * sizeof(uint32_t);

    static LIPFUSE_DEVICE int row(int thread, int q) {
        return thread / 64 % 2 * 32 + q / 4 % 2 * 16 + thread % 32 / 4 + q % 4 / 2 * 8;
    }
    static LIPFUSE_DEVICE int col(int thread, int q) {
        return thread / 32 % 2 * 32 + (thread / 128 * 2 + q / 8) * 8 + thread % 4 * 2 + q % 2;
    }

    static LIPFUSE_DEVICE void multiply(unsigned char* memory, int pieces, int thread,
                                        const View<float>& a, const View<float>& b, int64_t i0,
                                        int64_t j0, int64_t k0, int64_t k1, float (&sum)[sums]) {
        const int half = thread / 128;
        float own[4][2][4] = {};
        if (pieces == 3)
            add_up<3>(memory, thread, a, b, i0, j0, k0, k1, own);
        else
            add_up<2>(memory, thread, a, b, i0, j0, k0, k1, own);
        sync_threads();
        // The halves swap what they have of each other's columns.
        float* swap = reinterpret_cast<float*>(memory);
        LIPFUSE_UNROLL
        for (int q = 0; q < sums; ++q) {
            const int n = q / 8, m = q / 4 % 2, r = q % 4;
            swap[q * block_threads + thread] = half ? own[n][m][r] : own[n + 2][m][r];
        }
        sync_threads();
        LIPFUSE_UNROLL
        for (int q = 0; q < sums; ++q) {
            const int n = q / 8, m = q / 4 % 2, r = q % 4;
            sum[q] = (half ? own[n + 2][m][r] : own[n][m][r]) +
                     swap[q * block_threads + (thread + 128) % block_threads];
        }
        sync_threads();  // before the next tile overwrites what others may still read
    }

private:
    // What this thread's half of the warps takes of all chunks. The number of pieces is a constant:
    // registers that are only sometimes written would be taken for the whole of a kernel.
    template <int pieces>
    static LIPFUSE_DEVICE void add_up(unsigned char* memory, int thread, const View<float>& a,
                                      const View<float>& b, int64_t i0, int64_t j0, int64_t k0,
                                      int64_t k1, float (&own)[4][2][4]) {
        // two chunks of both operands in turn, each three pieces
        uint32_t* chunk = reinterpret_cast<uint32_t*>(memory);
        int other = 2 * pieces * words;
        Mover left(Operand<float>::rows_of(a), i0, k0, k1, thread);
        Mover right(Operand<float>::columns_of(b), j0, k0, k1, thread);
        const int lane = thread % 32, warp = thread / 32, half = warp / 4;
        const int first_a = at(warp / 2 % 2 * 32 + lane / 4, 8 * half + lane % 4),
                  first_b = at(warp % 2 * 32 + lane / 4, 8 * half + lane % 4) + pieces * words;
        left.fetch();
        right.fetch();
        for (int64_t k = k0; k < k1; k += depth) {
            left.stage<pieces>(chunk);
            right.stage<pieces>(chunk + pieces * words);
            sync_threads();
            if (k + depth < k1) {
                left.fetch();
                right.fetch();
            }
            uint32_t x[2][pieces][4], y[pieces][2];
            LIPFUSE_UNROLL
            for (int m = 0; m < 2; ++m) LIPFUSE_UNROLL
            for (int p = 0; p < pieces; ++p) LIPFUSE_UNROLL
            for (int r = 0; r < 4; ++r)
                x[m][p][r] =
                    chunk[p * words + (16 * m + r % 2 * 8) * line_words + (first_a ^ (r / 2 * 4))];
            LIPFUSE_UNROLL
            for (int n = 0; n < 4; ++n) {
                LIPFUSE_UNROLL
                for (int p = 0; p < pieces; ++p) LIPFUSE_UNROLL
                for (int r = 0; r < 2; ++r)
                    y[p][r] = chunk[p * words + 8 * n * line_words + (first_b ^ (r * 4))];
                multiply_split(own[n], x, y);
            }
            chunk += other;
            other = -other;
        }
    }

    // Where a word of a line is; other lines of the same place modulo 8 have it at the same place,
    // and toggling bits 2 and 3 of the word toggles those of the place.
    static LIPFUSE_DEVICE int at(int line, int word) {
        return line * line_words + (word ^ (line / 2 % 4 * 4));
    }

    struct alignas(2 * sizeof(float)) Two {
        float x, y;
    };

    // Takes one word of every 16th line of an operand from memory to registers, and from there, in
    // pieces, to shared memory. A warp has two whole lines, or eight lines of four words.
    struct Mover {
        static constexpr int mine = side / 16;

        const float* from;
        int64_t step, depth_stride;
        int valid, first, rest, place;  // lines; depth of its word; depths left; in shared memory
        bool two;
        float next[2 * mine];

        LIPFUSE_DEVICE Mover(const Operand<float>& o, int64_t line0, int64_t k0, int64_t k1,
                             int thread) {
            const int lane = thread % 32, warp = thread / 32;
            const int line = o.along_depth ? thread / line_words : warp / 4 * 8 + lane % 8;
            const int word = o.along_depth ? thread % line_words : warp % 4 * 4 + lane / 8;
            first = 2 * word;
            from = o.data + (line0 + line) * o.stride + (k0 + first) * o.depth_stride;
            step = 16 * o.stride;
            depth_stride = o.depth_stride;
            const int64_t lines = o.count - line0 - line;
            valid = lines >= side ? mine : lines > 0 ? int((lines + 15) / 16) : 0;
            rest = k1 - k0 < (1 << 30) ? int(k1 - k0) : 1 << 30;
            place = at(line, word);
            // Neighbours can be read together where all lines begin at a multiple of two.
            two = depth_stride == 1 && o.stride % 2 == 0 &&
                  reinterpret_cast<uintptr_t>(o.data + k0) % sizeof(Two) == 0;
        }
        LIPFUSE_DEVICE void fetch() {
            const float* p = from;
            if (two && rest >= depth) {
                LIPFUSE_UNROLL
                for (int q = 0; q < mine; ++q, p += step) {
                    const Two both = q < valid ? *reinterpret_cast<const Two*>(p) : Two{0, 0};
                    next[2 * q] = both.x;
                    next[2 * q + 1] = both.y;
                }
            } else {
                LIPFUSE_UNROLL
                for (int q = 0; q < mine; ++q, p += step) {
                    next[2 * q] = q < valid && first < rest ? p[0] : 0.0f;
                    next[2 * q + 1] = q < valid && first + 1 < rest ? p[depth_stride] : 0.0f;
                }
            }
            from += depth * depth_stride;
            rest -= depth;
        }
        template <int pieces>
        LIPFUSE_DEVICE void stage(uint32_t* chunk) const {
            LIPFUSE_UNROLL
            for (int q = 0; q < mine; ++q) {
                float x = next[2 * q], y = next[2 * q + 1];
                LIPFUSE_UNROLL
                for (int p = 0; p < pieces; ++p) {
                    const uint32_t both = pack_bf16(x, y);
                    chunk[p * words + 16 * q * line_words + place] = both;
                    x -= as_float(both << 16);  // exact, and so is the next piece's
                    y -= as_float(both & 0xffff0000u);
                }
            }
        }
    };
};

}  // namespace lipfuse::cuda
