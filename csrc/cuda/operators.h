// What the CUDA operators share: tensors to pointers, the current stream, scratch memory.
#pragma once

#include "../cpu/checks.h"
#include "launch.h"

// Only a torch with CUDA has it; elsewhere no CUDA tensor exists and nothing here is ever called.
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

// Not part of the stable interface: whether float32 products may be less precise than float32, which
// torch.set_float32_matmul_precision and torch.backends.cuda.matmul decide. Where a torch does not
// have them, products are precise.
namespace lipfuse::cuda::settings {
__attribute__((weak)) void* global_context() __asm__("_ZN2at13globalContextEv");
__attribute__((weak)) bool allows_tf32(const void* context) __asm__(
    "_ZNK2at7Context15allowTF32CuBLASEv");
}  // namespace lipfuse::cuda::settings

namespace lipfuse::cuda {

inline bool allows_rough_products() {
    if (settings::global_context == nullptr || settings::allows_tf32 == nullptr) return false;
    try {
        return settings::allows_tf32(settings::global_context());
    } catch (...) {  // torch's old and new ways to say it contradict each other
        return false;
    }
}

using cpu::batch_sizes;
using cpu::by_dtype;
using cpu::check_chain;
using cpu::check_count;
using cpu::check_device;
using cpu::check_history;
using cpu::check_info;
using cpu::check_lengths;
using cpu::check_like;
using cpu::check_polar;
using cpu::check_rows;
using cpu::check_sigma;
using cpu::check_tolerance;
using cpu::check_vectors;
using cpu::check_weights;
using cpu::data;
using cpu::data_or_null;
using cpu::device_of;
using cpu::make;
using cpu::make_double;
using cpu::make_int64;
using cpu::make_saved;
using cpu::Matrices;
using cpu::packed;
using cpu::Rows;
using cpu::saved_count;
using cpu::Sizes;
using cpu::sizes_of;
using cpu::Tensor;
using cpu::Tensors;

// For one operator: makes the tensor's device the current one, and keeps the scratch memory of its
// launches until they are enqueued. The allocator hands it on only to later work on this stream.
class Scope {
public:
    explicit Scope(const Tensor& like) : like_(like) {
        // A later argument on a CUDA device is enough to come here.
        STD_TORCH_CHECK(like.is_cuda(), "lipfuse: all arguments must be on one device");
        STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                        "lipfuse: this torch has no CUDA streams");
        stream_.device = device_of(like).second;
        STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_create_device_guard(stream_.device, &guard_));
        STABLE_TORCH_ERROR_CODE_CHECK(
            aoti_torch_get_current_cuda_stream(stream_.device, &stream_.stream));
        stream_.context = this;
        stream_.rough_products = allows_rough_products();
        stream_.allocate = [](void* self, int64_t bytes) {
            auto* scope = static_cast<Scope*>(self);
            scope->scratch_.push_back(make(scope->like_, Sizes{bytes}, aoti_torch_dtype_uint8()));
            return data<char>(scope->scratch_.back());
        };
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    ~Scope() { aoti_torch_delete_device_guard(guard_); }

    const Stream& stream() const { return stream_; }

private:
    const Tensor& like_;
    DeviceGuardHandle guard_ = nullptr;
    Stream stream_{};
    std::vector<Tensor> scratch_;
};

inline void pack(std::initializer_list<Tensors*> lists) {
    for (Tensors* list : lists)
        for (Tensor& t : *list) t = packed(t);
}

inline void check(Error error, const char* name) {
    STD_TORCH_CHECK(error == nullptr, "lipfuse: ", name, ": ", error ? error : "");
}

// Arguments of the kernels that begin with a power iteration, and the tensors they write.
struct PowerTensors {
    Tensor weight, u, v, new_u, new_v, sigma;
    bool given_v;

    // `values`: how many numbers stand for one sigma
    PowerTensors(const Tensor& w, const Tensor& u_in, const std::optional<Tensor>& v_in,
                 const Matrices& m, std::initializer_list<int64_t> values)
        : weight(packed(w)),
          u(packed(u_in)),
          v(v_in ? packed(*v_in) : u),
          new_u(u),
          new_v(u),
          sigma(u),
          given_v(v_in.has_value()) {
        check_vectors(weight, m, u, v_in);
        new_u = make(weight, batch_sizes(weight, {m.rows}));
        new_v = make(weight, batch_sizes(weight, {m.cols}));
        sigma = make(weight, batch_sizes(weight, values));
    }

    // Without the normalisation's part.
    template <class T>
    PowerArguments<T> arguments(const Matrices& m, int n_iterations, double eps,
                                int sigma_step) const {
        PowerArguments<T> a{};
        a.weight = data<T>(weight);
        a.u = data<T>(u);
        a.v = given_v ? data<T>(v) : nullptr;
        a.new_u = data<T>(new_u);
        a.new_v = data<T>(new_v);
        a.sigma = data<T>(sigma);
        a.rows = m.rows;
        a.cols = m.cols;
        a.n_iterations = n_iterations;
        a.eps = eps;
        a.sigma_step = sigma_step;
        return a;
    }
};

}  // namespace lipfuse::cuda
