// Every operator of the library. Implementations: cpu/<name>.cpp, cuda/<name>.cu; algorithms:
// algorithms/; Python side (fake version, autograd, autocast): src/lipfuse/ops/<name>.py.
//
// Operators are functional: they return new u and v and never change an argument. Weights are
// (..., m, n), a batch of matrices, float32 or float64. `save` asks for what the backward needs.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(lipfuse, m) {
    m.def(
        "power_iteration(Tensor weight, Tensor u, Tensor? v, int n_iterations, float eps)"
        " -> (Tensor sigma, Tensor u, Tensor v)");
    m.def("power_iteration_backward(Tensor grad_sigma, Tensor u, Tensor v) -> Tensor");

    m.def(
        "spectral_normalize(Tensor weight, Tensor u, Tensor? v, int n_iterations, float eps,"
        " float scale) -> (Tensor weight, Tensor sigma, Tensor u, Tensor v)");
    m.def(
        "spectral_normalize_backward(Tensor grad, Tensor? grad_sigma, Tensor normalized,"
        " Tensor sigma, Tensor u, Tensor v, float eps, float scale) -> Tensor");

    m.def(
        "bjorck(Tensor weight, float beta, int max_iterations, float eps, bool save)"
        " -> (Tensor weight, Tensor history, Tensor steps)");
    m.def("bjorck_backward(Tensor grad, Tensor history, Tensor steps, float beta) -> Tensor");

    m.def(
        "spectral_bjorck(Tensor weight, Tensor u, Tensor? v, int n_iterations, float eps,"
        " float beta, int max_iterations, float eps_bjorck, float scale, bool save)"
        " -> (Tensor weight, Tensor sigma, Tensor u, Tensor v, Tensor history, Tensor steps)");
    m.def(
        "spectral_bjorck_backward(Tensor grad, Tensor sigma, Tensor u, Tensor v, Tensor history,"
        " Tensor steps, float eps, float beta, float scale) -> Tensor");

    m.def(
        "orthogonalize(Tensor weight, float tol, float scale, bool save)"
        " -> (Tensor weight, Tensor saved, Tensor info)");
    m.def(
        "orthogonalize_backward(Tensor grad, Tensor weight, Tensor orthogonal, Tensor saved,"
        " Tensor info, float tol, float scale, bool tangent) -> Tensor");

    // Many weights in one call. Weight i is (out, ...), taken as groups[i] matrices of
    // out / groups[i] rows; info is (number of matrices, 5).
    m.def(
        "foreach_orthogonalize(Tensor[] weights, int[] groups, float[] scales, float tol,"
        " bool save) -> (Tensor[] weights, Tensor[] saved, Tensor info)");
    m.def(
        "foreach_orthogonalize_backward(Tensor[] grads, Tensor[] weights, Tensor[] orthogonal,"
        " Tensor[] saved, Tensor info, int[] groups, float[] scales, float tol,"
        " bool tangent) -> Tensor[]");

    // The same of spectral_normalize, each weight as one matrix; `vs` may be empty. Only for devices
    // where a call is dear: there is no CPU kernel.
    m.def(
        "foreach_spectral_normalize(Tensor[] weights, Tensor[] us, Tensor[] vs, int n_iterations,"
        " float eps, float[] scales) -> (Tensor[] weights, Tensor sigmas, Tensor[] us, Tensor[] "
        "vs)");
    m.def(
        "foreach_spectral_normalize_backward(Tensor[] grads, Tensor? grad_sigmas,"
        " Tensor[] normalized, Tensor sigmas, Tensor[] us, Tensor[] vs, float eps, float[] scales)"
        " -> Tensor[]");

    m.def(
        "frobenius_normalize(Tensor weight, float eps, float scale) -> (Tensor weight, Tensor "
        "norm)");
    m.def(
        "frobenius_normalize_backward(Tensor grad, Tensor normalized, Tensor norm, float eps,"
        " float scale) -> Tensor");

    m.def("spectral_bound(Tensor weight, int squarings) -> Tensor");

    // Gram matrices of convolutions' symbols, sum over terms of even cos + i odd sin, for every
    // frequency and matrix of the batch: even and odd (batch, n, n, terms), cosines and sines
    // (terms, frequencies); results (frequencies, batch).
    m.def(
        "symbol_scores(Tensor even, Tensor odd, Tensor cosines, Tensor sines, Tensor start,"
        " int steps) -> Tensor");
    m.def(
        "symbol_exceeds(Tensor even, Tensor odd, Tensor cosines, Tensor sines, Tensor thresholds)"
        " -> Tensor");

    // Activations and pools: any floating-point type and layout, which the results keep.
    m.def(
        "sort_pairs(Tensor input, int dim, float scale, bool save)"
        " -> (Tensor sorted, Tensor swapped)");
    m.def("sort_pairs_backward(Tensor grad, Tensor swapped, int dim, float scale) -> Tensor");
    m.def("max_min(Tensor input, int dim, float scale, bool save) -> (Tensor parts, Tensor signs)");
    m.def("max_min_backward(Tensor grad, Tensor signs, int dim, float scale) -> Tensor");
    m.def(
        "l2_norm_pool2d(Tensor input, int kernel_height, int kernel_width, bool ceil_mode,"
        " float scale) -> Tensor");
    m.def(
        "l2_norm_pool2d_backward(Tensor grad, Tensor input, int kernel_height, int kernel_width,"
        " bool ceil_mode, float scale) -> Tensor");
    m.def(
        "scaled_avg_pool2d(Tensor input, int kernel_height, int kernel_width, bool ceil_mode,"
        " float scale) -> Tensor");
    m.def(
        "scaled_avg_pool2d_backward(Tensor grad, int height, int width, int kernel_height,"
        " int kernel_width, bool ceil_mode, float scale) -> Tensor");
}
