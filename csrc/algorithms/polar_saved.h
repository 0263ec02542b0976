// What the forward of the polar factor leaves for the gradient of each matrix, below each other:
// (WᵀW)^(-1/2), unless the matrix is square, and the factor of separable.h, if there is any.
#pragma once

#include <algorithm>
#include <cstdint>

#include "device.h"
#include "separable.h"

namespace lipfuse {

// How many square matrices that are.
inline int64_t polar_saved_count(int64_t rows, int64_t cols, double tolerance) {
    return (rows != cols) + (tolerance >= separable_tolerance);
}

// Those of matrix i, of `count` each, or null. T may be const.
template <class T>
struct PolarSaved {
    T *inverse_root = nullptr, *factor = nullptr;

    LIPFUSE_DEVICE PolarSaved(T* saved, int64_t count, int64_t rows, int64_t cols, int64_t i) {
        if (count == 0) return;
        const int64_t small = rows < cols ? rows : cols, size = small * small;
        T* first = saved + i * count * size;
        const bool tall = rows != cols;
        if (tall) inverse_root = first;
        if (count == 1 + tall) factor = first + (count - 1) * size;
    }
};

}  // namespace lipfuse
