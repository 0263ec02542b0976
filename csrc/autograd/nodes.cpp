// The Python module lipfuse._nodes.
#include <torch/csrc/Exceptions.h>

#include "activations.h"
#include "weights.h"

namespace lipfuse {
namespace {

// Two functions of the module: `name` applies the node, and `name`_again takes the Python function.
template <class Node, class... Arguments>
void define(pybind11::module_& m, const char* name) {
    // Without the interpreter's lock, and with torch's errors as Python knows them.
    m.def(name, torch::wrap_pybind_function_no_gil(
                    [](const Tensor& input, Arguments... arguments) -> Tensor {
                        return Node::apply(input, arguments...);
                    }));
    m.def((std::string(name) + "_again").c_str(),
          [](pybind11::function function) { Node::again = function; });
}

}  // namespace
}  // namespace lipfuse

PYBIND11_MODULE(_nodes, m) {
    using namespace lipfuse;
    m.attr("torch_version") = LIPFUSE_TORCH_VERSION;
    define<OrthogonalWeight, int64_t, double, double, double, bool>(m, "orthogonal_weight");
    define<SpectralWeight, Tensor, Tensor, int64_t, double>(m, "spectral_weight");
    define<FrobeniusWeight, double, double, int64_t>(m, "frobenius_weight");
    define<SortPairs, int64_t, double>(m, "sort_pairs");
    define<MaxMin, int64_t, double>(m, "max_min");
    define<L2NormPool2d, int64_t, int64_t, bool, double>(m, "l2_norm_pool2d");
    define<ScaledAvgPool2d, int64_t, int64_t, bool, double>(m, "scaled_avg_pool2d");
}
