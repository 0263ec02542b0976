// The Python module lipfuse._nodes.
#include <torch/csrc/Exceptions.h>

#include "activations.h"
#include "no_gradient.h"
#include "weights.h"

namespace lipfuse {
namespace {

// Lists of tensors have to look like that to find their gradients.
const Tensor& argument(const Tensor& tensor) {
    return tensor;
}
at::TensorList argument(const std::vector<Tensor>& tensors) {
    return tensors;
}

// Two functions of the module: `name` applies the node, and `name`_again takes the Python function.
template <class Node, class First, class... Rest>
void define(pybind11::module_& m, const char* name) {
    // Without the interpreter's lock, and with torch's errors as Python knows them.
    m.def(name, torch::wrap_pybind_function_no_gil([](const First& first, const Rest&... rest) {
              return Node::apply(argument(first), rest...);
          }));
    m.def((std::string(name) + "_again").c_str(),
          [](pybind11::function function) { Node::again = function; });
}

}  // namespace
}  // namespace lipfuse

PYBIND11_MODULE(_nodes, m) {
    using namespace lipfuse;
    m.attr("torch_version") = LIPFUSE_TORCH_VERSION;
    m.def("pass_on_without_gradient", &pass_on_without_gradient);
    define<OrthogonalWeight, Tensor, int64_t, double, double, double, bool>(m, "orthogonal_weight");
    define<OrthogonalWeights, std::vector<Tensor>, std::vector<int64_t>, std::vector<double>,
           double, double, bool>(m, "orthogonal_weights");
    define<SpectralWeight, Tensor, Tensor, Tensor, int64_t, double>(m, "spectral_weight");
    define<FrobeniusWeight, Tensor, double, double, int64_t>(m, "frobenius_weight");
    define<SortPairs, Tensor, int64_t, double>(m, "sort_pairs");
    define<MaxMin, Tensor, int64_t, double>(m, "max_min");
    define<L2NormPool2d, Tensor, int64_t, int64_t, bool, double>(m, "l2_norm_pool2d");
    define<ScaledAvgPool2d, Tensor, int64_t, int64_t, bool, double>(m, "scaled_avg_pool2d");
}
