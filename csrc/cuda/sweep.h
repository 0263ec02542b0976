// Power iteration at the speed of memory: every element of W goes to a register once an iteration
// and serves both t = Wv and s = Wᵀt from there.
#pragma once

#include <cmath>
#include <cstdint>

#include "backend.h"

namespace lipfuse::cuda {

// How many elements of W a thread has in registers.
template <class T>
constexpr int sweep_elements = 96 / sizeof(T);

// Of this block's rows: t = W (factor v) and own = their part of Wᵀt; where v is null t is given,
// where own is null it is not wanted. Returns the part of the sum of t² of this thread. A thread has
// C columns; a row belongs to a warp, or to all of them together. v is read from shared memory, and
// the next rows are on their way while some are in use.
template <int C, bool together, class T>
LIPFUSE_DEVICE LIPFUSE_NOINLINE double sweep_rows(Backend<T>& backend, const View<T>& w, const T* v,
                                                  T factor, T* t, T* own) {
    constexpr int R = sweep_elements<T> / C, width = together ? block_threads : 32;
    const int64_t first = w.rows * backend.block() / backend.blocks(),
                  last = w.rows * (backend.block() + 1) / backend.blocks();
    const int lane = backend.thread() % width, warp = backend.thread() / 32;
    T* const x = backend.tile_memory();
    if (v) {
        for (int64_t j = backend.thread(); j < w.cols; j += block_threads) x[j] = factor * v[j];
        sync_threads();
    }
    const auto load = [&](int64_t r, T(&to)[R][C]) {
        LIPFUSE_UNROLL
        for (int q = 0; q < R; ++q) LIPFUSE_UNROLL
        for (int c = 0; c < C; ++c) {
            const int64_t j = lane + c * width;
            to[q][c] = r + q < last && j < w.cols ? w.data[(r + q) * w.row_stride + j] : T(0);
        }
    };
    const int64_t step = together ? R : R * block_warps;
    int64_t r = first + (together ? 0 : warp * R);
    T y[R][C], next[R][C], sum[C] = {};
    load(r, next);
    double squares = 0;
    for (int turn = 0; r < last; r += step, turn ^= 1) {
        T part[R] = {};
        LIPFUSE_UNROLL
        for (int q = 0; q < R; ++q) LIPFUSE_UNROLL
        for (int c = 0; c < C; ++c) y[q][c] = w.unit * next[q][c];
        load(r + step, next);
        if (v) {
            LIPFUSE_UNROLL
            for (int q = 0; q < R; ++q) {
                LIPFUSE_UNROLL
                for (int c = 0; c < C; ++c)
                    if (lane + c * width < w.cols) part[q] += y[q][c] * x[lane + c * width];
                for (int mask = 16; mask; mask /= 2) part[q] += shuffle_xor(part[q], mask);
            }
            if (together) {
                auto& rows = backend.shared().rows[turn];
                LIPFUSE_UNROLL
                for (int q = 0; q < R; ++q)
                    if (lane % 32 == 0) rows[q][warp] = part[q];
                sync_threads();
                LIPFUSE_UNROLL
                for (int q = 0; q < R; ++q) {
                    part[q] = T(0);
                    for (int i = 0; i < block_warps; ++i) part[q] += rows[q][i];
                }
            }
            LIPFUSE_UNROLL
            for (int q = 0; q < R; ++q)
                if (lane == 0 && r + q < last) {
                    t[r + q] = part[q];
                    squares += double(part[q]) * double(part[q]);
                }
        } else {
            LIPFUSE_UNROLL
            for (int q = 0; q < R; ++q) part[q] = r + q < last ? t[r + q] : T(0);
        }
        LIPFUSE_UNROLL
        for (int q = 0; q < R; ++q) LIPFUSE_UNROLL
        for (int c = 0; c < C; ++c) sum[c] += part[q] * y[q][c];
    }
    if (!own) return squares;
    if (together) {
        LIPFUSE_UNROLL
        for (int c = 0; c < C; ++c) {
            const int64_t j = lane + c * width;
            if (j < w.cols) own[j] = sum[c];
        }
        return squares;
    }
    sync_threads();  // before x is overwritten
    T* const sums = x;
    LIPFUSE_UNROLL
    for (int c = 0; c < C; ++c) {
        const int64_t j = lane + c * width;
        if (j < w.cols) sums[warp * w.cols + j] = sum[c];
    }
    sync_threads();
    for (int64_t j = backend.thread(); j < w.cols; j += block_threads) {
        T total = T(0);
        for (int i = 0; i < block_warps; ++i) total += sums[i * w.cols + j];
        own[j] = total;
    }
    sync_threads();
    return squares;
}

// The same for rows too long for registers: one after the other, from cache the second time.
template <class T>
LIPFUSE_DEVICE LIPFUSE_NOINLINE double sweep_long_rows(Backend<T>& backend, const View<T>& w,
                                                       const T* v, T factor, T* t, T* own) {
    const int64_t first = w.rows * backend.block() / backend.blocks(),
                  last = w.rows * (backend.block() + 1) / backend.blocks();
    double squares = 0;
    if (own)
        for (int64_t j = backend.thread(); j < w.cols; j += block_threads) own[j] = T(0);
    for (int64_t r = first; r < last; ++r) {
        const T* row = w.data + r * w.row_stride;
        T value = v ? T(0) : t[r];
        if (v) {
            double total = 0;
            for (int64_t j = backend.thread(); j < w.cols;) {
                T part = T(0);
                for (int q = 0; q < 32 && j < w.cols; ++q, j += block_threads)
                    part += w.unit * row[j] * (factor * v[j]);
                total += double(part);
            }
            value = T(backend.block_sum(total));
            if (backend.thread() == 0) {
                t[r] = value;
                squares += double(value) * double(value);
            }
        }
        if (own)
            for (int64_t j = backend.thread(); j < w.cols; j += block_threads)
                own[j] += value * (w.unit * row[j]);
    }
    return squares;
}

template <class T>
LIPFUSE_DEVICE double sweep(Backend<T>& backend, const View<T>& w, const T* v, T factor, T* t,
                            T* own) {
    constexpr int most = sweep_elements<T>;
    if (w.cols <= 32 * 8) return sweep_rows<8, false>(backend, w, v, factor, t, own);
    if (w.cols <= 32 * most) return sweep_rows<most, false>(backend, w, v, factor, t, own);
    if (w.cols <= block_threads * 8) return sweep_rows<8, true>(backend, w, v, factor, t, own);
    if (w.cols <= block_threads * most)
        return sweep_rows<most, true>(backend, w, v, factor, t, own);
    return sweep_long_rows(backend, w, v, factor, t, own);
}

// s = the sum of the blocks' parts; returns the part of the sum of s² of this thread.
template <class T>
LIPFUSE_DEVICE double add_parts(Backend<T>& backend, const T* parts, int64_t n, T* s) {
    double squares = 0;
    for (int64_t j = backend.rank(); j < n; j += backend.size()) {
        T total = T(0);
        for (int b = 0; b < backend.blocks(); ++b) total += parts[b * n + j];
        s[j] = total;
        squares += double(total) * double(total);
    }
    return squares;
}

// algorithms/power_iteration.h with two barriers an iteration: the norms come with the products, and
// v is divided by its norm while it is read.
template <class T>
LIPFUSE_DEVICE double power_iteration_in_range(Backend<T>& backend, const View<T>& w, T* u, T* v,
                                               int n_iterations, double eps, bool* leaves_range) {
    const auto mark = backend.mark();
    T* t = backend.allocate(w.rows);
    T* s = backend.allocate(w.cols);
    T* parts = backend.allocate(w.cols * backend.blocks());
    T* own = parts + w.cols * backend.block();
    const int64_t first = w.rows * backend.block() / backend.blocks(),
                  last = w.rows * (backend.block() + 1) / backend.blocks();
    const T* from = v;
    T factor = T(1);
    double sigma = 0;
    *leaves_range = false;
    if (n_iterations == 0) {
        sweep<T>(backend, w, v, factor, t, nullptr);
        backend.barrier();
        sigma = backend.dot(w.rows, u, t);
    }
    for (int i = 0; i < n_iterations; ++i) {
        const double t_norm = std::sqrt(backend.sum(sweep(backend, w, from, factor, t, own)));
        const double s_norm = std::sqrt(backend.sum(add_parts(backend, parts, w.cols, s)));
        if (t_norm > eps && !(s_norm > 1e-18 && s_norm < 1e18)) {
            *leaves_range = true;
            break;
        }
        sigma = t_norm > eps ? s_norm / t_norm : t_norm;
        if (!(t_norm > eps) || !(s_norm > 0) || !std::isfinite(sigma)) break;
        // Its own rows of t: other blocks' may already be those of the next iteration.
        for (int64_t r = first + backend.thread(); r < last; r += block_threads)
            u[r] = T(1 / t_norm) * t[r];
        factor = T(1 / s_norm);
        from = s;
        for (int64_t j = backend.rank(); j < w.cols; j += backend.size()) v[j] = factor * s[j];
        sync_threads();
    }
    backend.barrier();
    backend.release(mark);
    return sigma;
}

// v = Wᵀu / ‖Wᵀu‖; where that vanishes or is not finite, a vector of equal components.
template <class T>
LIPFUSE_DEVICE void normalized_product_of_transpose(Backend<T>& backend, const View<T>& w, T* u,
                                                    T* v, double eps) {
    const auto mark = backend.mark();
    T* parts = backend.allocate(w.cols * backend.blocks());
    sweep<T>(backend, w, nullptr, T(1), u, parts + w.cols * backend.block());
    backend.barrier();
    const double norm = std::sqrt(backend.sum(add_parts(backend, parts, w.cols, v)));
    backend.release(mark);
    if (norm > eps && std::isfinite(norm))
        backend.axpby(w.cols, T(1 / norm), v, T(0), nullptr, v);
    else
        backend.fill(v, w.cols, T(1 / std::sqrt(double(w.cols))));
}

}  // namespace lipfuse::cuda
