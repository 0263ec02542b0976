// lipfuse._kernels: the kernels on numpy arrays, without torch, and what this build is.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <stdexcept>
#include <string>

#include "algorithms/bjorck.h"
#include "algorithms/conv_factor.h"
#include "algorithms/polar.h"
#include "algorithms/power_iteration.h"
#include "cpu/backend.h"

namespace py = pybind11;
using namespace lipfuse;

namespace {

// Copies are made of arrays whose elements are not aligned.
constexpr int aligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;
template <class T>
using Array = py::array_t<T, py::array::c_style | aligned>;
template <class T>
using StridedArray = py::array_t<T, aligned>;

template <class T>
void require_matrix(const Array<T>& a, const char* name) {
    if (a.ndim() != 2)
        throw py::value_error(std::string(name) + " must have 2 dimensions, got " +
                              std::to_string(a.ndim()));
}

// Matrix multiplication with any strides of a and b, to test the product kernels.
template <class T>
py::array_t<T> matmul(const StridedArray<T>& a, const StridedArray<T>& b, bool symmetric) {
    if (a.ndim() != 2 || b.ndim() != 2 || a.shape(1) != b.shape(0))
        throw py::value_error("a and b must be matrices with a.shape[1] == b.shape[0]");
    if (symmetric && a.shape(0) != b.shape(1))
        throw py::value_error("a symmetric product must be square");
    const auto item = static_cast<int64_t>(sizeof(T));
    py::array_t<T> out({a.shape(0), b.shape(1)});
    cpu::View<const T> va{a.data(), a.shape(0), a.shape(1), a.strides(0) / item,
                          a.strides(1) / item};
    cpu::View<const T> vb{b.data(), b.shape(0), b.shape(1), b.strides(0) / item,
                          b.strides(1) / item};
    cpu::Backend<T> backend;
    T* to = out.mutable_data();
    py::gil_scoped_release release;
    backend.multiply(va, vb, to, symmetric);
    return out;
}

void require_count(int n, const char* name) {
    if (n < 0) throw py::value_error(std::string(name) + " must not be negative");
}

template <class T>
py::tuple power(const Array<T>& weight, const Array<T>& v, int n_iterations, double eps) {
    require_matrix(weight, "weight");
    require_count(n_iterations, "n_iterations");
    if (v.ndim() != 1 || v.shape(0) != weight.shape(1))
        throw py::value_error("v must have shape (weight.shape[1],)");
    Array<T> new_u(weight.shape(0)), new_v(weight.shape(1));
    std::fill(new_u.mutable_data(), new_u.mutable_data() + new_u.size(), T(0));
    std::copy(v.data(), v.data() + v.size(), new_v.mutable_data());
    cpu::Backend<T> backend;
    const double sigma = power_iteration(
        backend, cpu::Backend<T>::view(weight.data(), weight.shape(0), weight.shape(1)),
        new_u.mutable_data(), new_v.mutable_data(), n_iterations, eps);
    return py::make_tuple(sigma, new_u, new_v);
}

template <class T>
py::tuple bjorck_array(const Array<T>& weight, double beta, int max_iterations, double eps) {
    require_matrix(weight, "weight");
    require_count(max_iterations, "max_iterations");
    Array<T> out({weight.shape(0), weight.shape(1)});
    cpu::Backend<T> backend;
    double shrink;
    const int steps =
        bjorck(backend, weight.data(), weight.shape(0), weight.shape(1), beta, max_iterations, eps,
               1.0, false, out.mutable_data(), static_cast<T*>(nullptr), &shrink);
    return py::make_tuple(out, steps);
}

template <class T>
py::tuple polar_array(const Array<T>& weight, double tol) {
    require_matrix(weight, "weight");
    if (!(tol >= 0)) throw py::value_error("tol must not be negative");
    Array<T> out({weight.shape(0), weight.shape(1)});
    cpu::Backend<T> backend;
    const PolarInfo info = polar(backend, weight.data(), weight.shape(0), weight.shape(1), tol, 1.0,
                                 out.mutable_data(), static_cast<T*>(nullptr));
    py::dict d;
    d["low"] = info.low;
    d["high"] = info.high;
    d["residual"] = info.residual;
    d["bound"] = info.bound;
    d["stages"] = info.stages;
    return py::make_tuple(out, d);
}

int64_t largest_use_by_name(int64_t kernel, int64_t stride, int64_t before, int64_t after,
                            int64_t dilation, const std::string& mode, int64_t length) {
    static const std::map<std::string, Padding> modes = {{"zeros", Padding::zeros},
                                                         {"circular", Padding::circular},
                                                         {"reflect", Padding::reflect},
                                                         {"replicate", Padding::replicate},
                                                         {"symmetric", Padding::symmetric}};
    const auto found = modes.find(mode);
    if (found == modes.end()) throw py::value_error("unknown padding mode '" + mode + "'");
    if (kernel < 1 || stride < 1 || before < 0 || after < 0 || dilation < 1 || length < 0)
        throw py::value_error("sizes must be positive, padding and length not negative");
    return largest_use(kernel, stride, before, after, dilation, found->second, length);
}

}  // namespace

PYBIND11_MODULE(_kernels, m) {
    m.doc() = "The native kernels on numpy arrays, without torch, and what this build is.";
    m.def("build_info", [] {
        return std::map<std::string, std::string>{
            {"version", LIPFUSE_VERSION},
            {"compiler", LIPFUSE_COMPILER},
            {"flags", LIPFUSE_FLAGS},
            {"cuda_architectures", LIPFUSE_CUDA_ARCHITECTURES},
            {"torch_target", "2.11"}};
    });
    m.def("cpu_features", [] {
        cpu::InstructionSet sets[cpu::instruction_sets];
        const int count = cpu::available_instruction_sets(sets);
        py::list available;
        for (int i = 0; i < count; ++i) available.append(cpu::name_of(sets[i]));
        py::dict d;
        d["available"] = available;
        d["selected"] = cpu::name_of(cpu::selected_instruction_set());
        return d;
    });
    m.def(
        "select_instruction_set",
        [](const std::string& name) { cpu::select_instruction_set(name.c_str()); }, py::arg("name"),
        "Choose the kernels that everything in this process uses from now on, operators included.");

    m.def("matmul", &matmul<float>, py::arg("a"), py::arg("b"), py::arg("symmetric") = false);
    m.def("matmul", &matmul<double>, py::arg("a"), py::arg("b"), py::arg("symmetric") = false);
    m.def("power_iteration", &power<float>, py::arg("weight"), py::arg("v"),
          py::arg("n_iterations") = 1, py::arg("eps") = 1e-12);
    m.def("power_iteration", &power<double>, py::arg("weight"), py::arg("v"),
          py::arg("n_iterations") = 1, py::arg("eps") = 1e-12);
    m.def("bjorck", &bjorck_array<float>, py::arg("weight"), py::arg("beta") = 0.5,
          py::arg("max_iterations") = 15, py::arg("eps") = 1e-3);
    m.def("bjorck", &bjorck_array<double>, py::arg("weight"), py::arg("beta") = 0.5,
          py::arg("max_iterations") = 15, py::arg("eps") = 1e-3);
    m.def("orthogonalize", &polar_array<float>, py::arg("weight"), py::arg("tol") = 1e-4);
    m.def("orthogonalize", &polar_array<double>, py::arg("weight"), py::arg("tol") = 1e-4);
    m.def("largest_use", &largest_use_by_name, py::arg("kernel"), py::arg("stride"),
          py::arg("before"), py::arg("after"), py::arg("dilation"), py::arg("mode"),
          py::arg("length") = 0,
          "How often a convolution uses one pixel of an axis at most; length 0: any length.");
}
