// Products on the vector units: operands are packed where that pays, then the result is shared out.
#pragma once

#include <algorithm>
#include <cstdint>

#include "arena.h"
#include "kernels.h"
#include "shares.h"

namespace lipfuse::cpu {

template <class T>
class PackedProduct {
public:
    PackedProduct(const Kernels<T>& kernels, const Shares<T>& shares, Arena& arena)
        : kernels_(kernels), shares_(shares), arena_(arena) {}

    // Packs the operands where that pays, then shares the result out.
    void compute(Product<T>& p, int tasks) {
        const int64_t m = p.terms[0].a.rows, n = p.terms[0].b.cols, depth = p.terms[0].a.cols;
        const int64_t width = kernels_.tile_cols, height = kernels_.tile_rows,
                      b_panels = Shares<T>::panels(n, width),
                      a_panels = Shares<T>::panels(m, height);
        const bool mirrored = p.mirror != Mirror::none;
        // A wide result is cut by columns: whoever computes some packs his own panels of B, one at a
        // time, and finds them in his cache. Of a half no columns can be cut out.
        const bool half_b =
            p.terms[0].b.half != Mirror::none || (p.count > 1 && p.terms[1].b.half != Mirror::none);
        const bool by_columns = !mirrored && !half_b && (n >= 2 * m || a_panels < 2 * tasks);
        const bool by_rows = !by_columns && (!mirrored || p.half);
        if (p.epilogue.stride == 0) p.epilogue.stride = n;
        const auto mark = arena_.mark();
        T* strips[2] = {nullptr, nullptr};
        Packed packed;
        for (int i = 0; i < p.count; ++i) {
            auto& term = p.terms[i];
            // Operands are copied into panels only where reading them in place would be slow:
            // columns that are not contiguous, or strides that exhaust the cache's associativity.
            const bool pack_b = term.b.half != Mirror::none || term.b.col_stride != 1 ||
                                term.b.row_stride * depth > 160 * 160;
            const bool pack_a =
                term.a.half != Mirror::none ||
                (term.a.col_stride != 1 && (term.a.row_stride != 1 || m * depth > 96 * 96));
            if (pack_b && by_columns)
                strips[i] = arena_.allocate<T>(tasks * width * depth);
            else if (pack_b)
                packed.b[i] = packed.find_or_add(term.b, true);
            if (pack_a) {
                term.packed_a = arena_.allocate<T>(a_panels * height * depth);
                packed.a[i] = term.a.half == Mirror::none ? packed.find(term.a.transposed())
                                                          : packed.find_or_add(term.a, false);
            }
            // Reading whole register tiles past the last row or column must stay inside the matrix.
            if (!pack_a && m % height != 0) {
                T* tail = arena_.allocate<T>(height * depth);
                kernels_.pack_a(rows_from(term.a, a_panels - 1), 0, 1, tail);
                term.tail_a = tail;
            }
            if (!pack_b && n % width != 0) {
                T* tail = arena_.allocate<T>(width * depth);
                kernels_.pack_b(cols_from(term.b, b_panels - 1), 0, 1, tail);
                term.tail_b = tail;
            }
        }
        int64_t size = 0;
        for (int i = 0; i < packed.count; ++i) {
            auto& matrix = packed.of[i];
            matrix.panels = Shares<T>::panels(matrix.view.cols, width);
            size += matrix.copy = matrix.panels * width * matrix.view.rows;
        }
        // Cut by rows, every task packs small operands for itself: what another core has written is
        // then read once, not twice, and nobody waits.
        const bool copies = by_rows && size <= own_copy_most;
        for (int i = 0; i < packed.count; ++i) {
            auto& matrix = packed.of[i];
            matrix.to = arena_.allocate<T>((copies ? tasks : 1) * matrix.copy);
            if (!copies) matrix.copy = 0;
        }
        const auto pack_rows_of_a = [&](int task, int64_t begin, int64_t end) {
            for (int i = 0; i < p.count; ++i) {
                const auto& a = p.terms[i].a;
                T* to = const_cast<T*>(p.terms[i].packed_a);
                if (packed.a[i] >= 0) {
                    const auto& matrix = packed.of[packed.a[i]];
                    kernels_.narrow(matrix.to + task * matrix.copy, m, depth, begin, end,
                                    a.half == Mirror::skew ? T(-1) : T(1), to);
                } else if (to) {
                    kernels_.pack_a(a, begin, end, to);
                }
            }
        };
        if (packed.count && !copies)
            shares_.parallel().for_each(tasks, [&](int t) {
                for (int i = 0; i < packed.count; ++i) {
                    const auto& matrix = packed.of[i];
                    kernels_.pack_b(matrix.view, Shares<T>::part(matrix.panels, t, tasks),
                                    Shares<T>::part(matrix.panels, t + 1, tasks), matrix.to);
                }
            });
        if (!by_rows && (p.terms[0].packed_a || p.terms[1].packed_a))
            shares_.parallel().for_each(tasks, [&](int t) {
                pack_rows_of_a(0, Shares<T>::part(a_panels, t, tasks),
                               Shares<T>::part(a_panels, t + 1, tasks));
            });
        // The rows [begin, end), of whose columns those up to `col_end` are wanted.
        const auto rows = [&](int t, int64_t begin, int64_t end, int64_t col_end) {
            if (begin >= end) return;
            for (int i = 0; copies && i < packed.count; ++i) {
                const auto& matrix = packed.of[i];
                kernels_.pack_b(matrix.view, matrix.as_b ? 0 : begin / width,
                                Shares<T>::panels(matrix.as_b ? col_end : end, width),
                                matrix.to + t * matrix.copy);
            }
            if (by_rows) pack_rows_of_a(t, begin / height, Shares<T>::panels(end, height));
            Product<T> own = p;
            for (int i = 0; i < p.count; ++i)
                if (packed.b[i] >= 0) {
                    const auto& matrix = packed.of[packed.b[i]];
                    own.terms[i].packed_b = matrix.to + t * matrix.copy;
                }
            kernels_.product(own, begin, end, 0, n);
        };
        if (by_columns) {
            shares_.parallel().for_each(tasks, [&](int t) {
                columns(p, strips, t, Shares<T>::part(b_panels, t, tasks),
                        Shares<T>::part(b_panels, t + 1, tasks));
            });
        } else if (p.half) {
            shares_.over_rows_of_half(
                m, shares_.fine_step(), tasks,
                [&](int t, int64_t begin, int64_t end) { rows(t, begin, end, end); });
        } else if (mirrored) {
            shares_.over_triangle(m, tasks,
                                  [&](int, int64_t begin, int64_t end) { rows(0, begin, end, n); });
        } else {
            shares_.parallel().for_each(tasks, [&](int t) {
                rows(t, Shares<T>::part(a_panels, t, tasks) * height,
                     std::min(m, Shares<T>::part(a_panels, t + 1, tasks) * height), n);
            });
        }
        arena_.release(mark);
    }

private:
    static constexpr int64_t own_copy_most = 160 * 1024;  // elements

    // Matrices that a product has packed as B wants them, once or by every task for itself, and which of
    // them its operands are. -1: none, the operand is read in place or packed for itself.
    struct Packed {
        struct Matrix {
            View<const T> view;
            bool as_b = false;
            T* to = nullptr;
            int64_t panels = 0, copy = 0;
        };
        Matrix of[4];
        int count = 0, a[2] = {-1, -1}, b[2] = {-1, -1};

        int find(const View<const T>& view) const {
            for (int i = 0; i < count; ++i)
                if (of[i].view.data == view.data && of[i].view.row_stride == view.row_stride &&
                    of[i].view.col_stride == view.col_stride && of[i].view.half == view.half)
                    return i;
            return -1;
        }
        int find_or_add(const View<const T>& view, bool as_b) {
            int i = find(view);
            if (i < 0) of[i = count++].view = view;
            of[i].as_b = of[i].as_b || as_b;
            return i;
        }
    };

    // The panels [begin, end) of a product; strips have room for one of each operand and task.
    void columns(Product<T> p, T* const (&strips)[2], int task, int64_t begin, int64_t end) {
        const int64_t m = p.terms[0].a.rows, n = p.terms[0].b.cols, width = kernels_.tile_cols;
        if (!strips[0] && !strips[1])
            return kernels_.product(p, 0, m, begin * width, std::min(n, end * width));
        for (int64_t panel = begin; panel < end; ++panel) {
            for (int i = 0; i < p.count; ++i) {
                if (!strips[i]) continue;
                auto& term = p.terms[i];
                T* strip = strips[i] + task * width * term.b.rows;
                kernels_.pack_b(cols_from(term.b, panel), 0, 1, strip);
                term.packed_b = strip;
                term.packed_from = panel * width;
            }
            kernels_.product(p, 0, m, panel * width, std::min(n, (panel + 1) * width));
        }
    }

    View<const T> rows_from(View<const T> a, int64_t panel) const {
        const int64_t i = panel * kernels_.tile_rows;
        return {a.data + i * a.row_stride, a.rows - i, a.cols, a.row_stride, a.col_stride};
    }
    View<const T> cols_from(View<const T> b, int64_t panel) const {
        const int64_t j = panel * kernels_.tile_cols;
        return {b.data + j * b.col_stride, b.rows, b.cols - j, b.row_stride, b.col_stride};
    }

    const Kernels<T>& kernels_;
    const Shares<T>& shares_;
    Arena& arena_;
};

}  // namespace lipfuse::cpu
