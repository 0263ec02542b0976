// What operators on all weights of a network share: weights (out, ...), each taken as some matrices.
#pragma once

#include "operators.h"

namespace lipfuse::cuda {

using Tensors = std::vector<Tensor>;

inline void check_weights(const Tensors& weights, const std::vector<int64_t>& groups,
                          const std::vector<double>& scales) {
    STD_TORCH_CHECK(!weights.empty(), "lipfuse: weights must not be empty");
    STD_TORCH_CHECK(groups.size() == weights.size() && scales.size() == weights.size(),
                    "lipfuse: weights, groups and scales must have the same length");
    for (size_t i = 0; i < weights.size(); ++i) {
        check_device(weights[0], weights[i], "every weight");
        check_same_dtype(weights[0], weights[i], "every weight");
        STD_TORCH_CHECK(
            weights[i].dim() >= 2 && groups[i] > 0 && weights[i].size(0) % groups[i] == 0,
            "lipfuse: weight ", i,
            " must have at least 2 dimensions and a first dimension that its groups divide");
    }
}

struct Group {
    int64_t matrices, rows, cols;

    Group(const Tensor& w, int64_t groups)
        : matrices(groups), rows(w.size(0) / groups), cols(w.size(0) ? w.numel() / w.size(0) : 0) {}
    int64_t small() const { return std::min(rows, cols); }
};

}  // namespace lipfuse::cuda
