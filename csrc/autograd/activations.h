// Nodes of activations and pools.
#pragma once

#include <tuple>

#include "node.h"

namespace lipfuse {

// Activations that keep where the elements went. Op has the names of the operators.
template <class Op>
struct Rearranged : torch::autograd::Function<Rearranged<Op>> {
    static inline Again again;

    static Tensor forward(AutogradContext* ctx, const Tensor& input, int64_t dim, double scale) {
        static const auto op =
            find<std::tuple<Tensor, Tensor>(const Tensor&, int64_t, double, bool)>(Op::forward);
        const Below below;
        const auto [out, places] = op.call(input, dim, scale, true);
        ctx->set_materialize_grads(false);
        ctx->save_for_backward({places});
        ctx->saved_data["dim"] = dim;
        ctx->saved_data["scale"] = scale;
        return out;
    }
    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
        refuse_forward_mode(grads);
        if (!grads[0].defined()) return of_first(3, {});
        const Tensor places = ctx->get_saved_variables()[0];
        const int64_t dim = ctx->saved_data["dim"].toInt();
        const double scale = ctx->saved_data["scale"].toDouble();
        if (Again::wanted()) return of_first(3, again(grads[0], places, dim, scale));
        static const auto op =
            find<Tensor(const Tensor&, const Tensor&, int64_t, double)>(Op::backward);
        const Below below;
        return of_first(3, op.call(grads[0], places, dim, scale));
    }
};

struct SortPairsNames {
    static constexpr auto forward = "lipfuse::sort_pairs";
    static constexpr auto backward = "lipfuse::sort_pairs_backward";
};
struct MaxMinNames {
    static constexpr auto forward = "lipfuse::max_min";
    static constexpr auto backward = "lipfuse::max_min_backward";
};
using SortPairs = Rearranged<SortPairsNames>;
using MaxMin = Rearranged<MaxMinNames>;

// Windows side by side.
struct Windows {
    int64_t height, width;
    bool ceil_mode;
    double scale;

    void save(AutogradContext* ctx) const {
        ctx->saved_data["height"] = height;
        ctx->saved_data["width"] = width;
        ctx->saved_data["ceil_mode"] = ceil_mode;
        ctx->saved_data["scale"] = scale;
    }
    static Windows of(AutogradContext* ctx) {
        return {ctx->saved_data["height"].toInt(), ctx->saved_data["width"].toInt(),
                ctx->saved_data["ceil_mode"].toBool(), ctx->saved_data["scale"].toDouble()};
    }
};

struct L2NormPool2d : torch::autograd::Function<L2NormPool2d> {
    static inline Again again;

    static Tensor forward(AutogradContext* ctx, const Tensor& input, int64_t height, int64_t width,
                          bool ceil_mode, double scale) {
        static const auto op =
            find<Tensor(const Tensor&, int64_t, int64_t, bool, double)>("lipfuse::l2_norm_pool2d");
        const Below below;
        ctx->set_materialize_grads(false);
        ctx->save_for_backward({input});
        Windows{height, width, ceil_mode, scale}.save(ctx);
        return op.call(input, height, width, ceil_mode, scale);
    }
    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
        refuse_forward_mode(grads);
        if (!grads[0].defined()) return of_first(5, {});
        const Tensor input = ctx->get_saved_variables()[0];
        const auto [height, width, ceil_mode, scale] = Windows::of(ctx);
        if (Again::wanted())
            return of_first(5, again(grads[0], input, height, width, ceil_mode, scale));
        static const auto op =
            find<Tensor(const Tensor&, const Tensor&, int64_t, int64_t, bool, double)>(
                "lipfuse::l2_norm_pool2d_backward");
        const Below below;
        return of_first(5, op.call(grads[0], input, height, width, ceil_mode, scale));
    }
};

struct ScaledAvgPool2d : torch::autograd::Function<ScaledAvgPool2d> {
    static inline Again again;

    static Tensor forward(AutogradContext* ctx, const Tensor& input, int64_t height, int64_t width,
                          bool ceil_mode, double scale) {
        static const auto op = find<Tensor(const Tensor&, int64_t, int64_t, bool, double)>(
            "lipfuse::scaled_avg_pool2d");
        const Below below;
        ctx->set_materialize_grads(false);
        ctx->saved_data["rows"] = input.size(-2);
        ctx->saved_data["columns"] = input.size(-1);
        Windows{height, width, ceil_mode, scale}.save(ctx);
        return op.call(input, height, width, ceil_mode, scale);
    }
    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
        refuse_forward_mode(grads);
        if (!grads[0].defined()) return of_first(5, {});
        const int64_t rows = ctx->saved_data["rows"].toInt();
        const int64_t columns = ctx->saved_data["columns"].toInt();
        const auto [height, width, ceil_mode, scale] = Windows::of(ctx);
        if (Again::wanted())
            return of_first(5, again(grads[0], rows, columns, height, width, ceil_mode, scale));
        static const auto op =
            find<Tensor(const Tensor&, int64_t, int64_t, int64_t, int64_t, bool, double)>(
                "lipfuse::scaled_avg_pool2d_backward");
        const Below below;
        return of_first(5, op.call(grads[0], rows, columns, height, width, ceil_mode, scale));
    }
};

}  // namespace lipfuse
