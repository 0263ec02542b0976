// Picks the kernels for this processor. Compiled without any wide flag.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels.h"

#ifdef LIPFUSE_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace lipfuse::cpu {

#define LIPFUSE_DECLARE(set)                                \
    namespace set {                                         \
    extern const Kernels<float> float_kernels;              \
    extern const Kernels<double> double_kernels;            \
    extern const LayerKernels<float> float_layer_kernels;   \
    extern const LayerKernels<double> double_layer_kernels; \
    extern const LayerKernels<Bf16> bf16_layer_kernels;     \
    extern const LayerKernels<Fp16> fp16_layer_kernels;     \
    }
LIPFUSE_DECLARE(generic)
#ifdef LIPFUSE_X86
LIPFUSE_DECLARE(avx2)
LIPFUSE_DECLARE(avx512)
#endif
#ifdef LIPFUSE_AMX
namespace amx {
extern const Kernels<float> float_kernels;
}
#endif

namespace {

struct Entry {
    const char* name;
    const Kernels<float>* float_kernels;
    const Kernels<double>* double_kernels;
    const LayerKernels<float>* float_layer_kernels;
    const LayerKernels<double>* double_layer_kernels;
    const LayerKernels<Bf16>* bf16_layer_kernels;
    const LayerKernels<Fp16>* fp16_layer_kernels;
};

#define LIPFUSE_ENTRY(set)       \
    {#set,                       \
     &set::float_kernels,        \
     &set::double_kernels,       \
     &set::float_layer_kernels,  \
     &set::double_layer_kernels, \
     &set::bf16_layer_kernels,   \
     &set::fp16_layer_kernels}

const Entry entries[] = {
    LIPFUSE_ENTRY(generic),
#ifdef LIPFUSE_X86
    LIPFUSE_ENTRY(avx2),
    LIPFUSE_ENTRY(avx512),
#endif
#ifdef LIPFUSE_AMX
    {"amx", &amx::float_kernels, &avx512::double_kernels, &avx512::float_layer_kernels,
     &avx512::double_layer_kernels, &avx512::bf16_layer_kernels, &avx512::fp16_layer_kernels},
#endif
};

#ifdef LIPFUSE_AMX
// Tiles of bf16 that the processor has, the system saves, and this process may use from now on.
bool may_use_tiles() {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    constexpr unsigned tiles = 1u << 24, of_bf16 = 1u << 22;
    if (!(d & tiles) || !(d & of_bf16)) return false;
    constexpr int request_permission = 0x1023, tile_data = 18;  // <asm/prctl.h> of Linux 5.16
    static const bool permitted = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
    return permitted;
}
#endif

bool has(InstructionSet set) {
    switch (set) {
#ifdef LIPFUSE_X86
        case InstructionSet::avx2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        case InstructionSet::avx512:
            return has(InstructionSet::avx2) && __builtin_cpu_supports("avx512f") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512bw");
#endif
#ifdef LIPFUSE_AMX
        case InstructionSet::amx:
            return has(InstructionSet::avx512) && may_use_tiles();
#endif
        case InstructionSet::generic:
            return true;
        default:
            return false;
    }
}

// Asks for no permission that the chosen set has no use for.
InstructionSet parse(const char* name) {
    for (int i = 0; i < int(sizeof entries / sizeof *entries); ++i)
        if (!std::strcmp(name, entries[i].name) && has(static_cast<InstructionSet>(i)))
            return static_cast<InstructionSet>(i);
    InstructionSet sets[instruction_sets];
    const int count = available_instruction_sets(sets);
    std::string allowed;
    for (int i = 0; i < count; ++i) allowed += std::string(i ? ", " : "") + name_of(sets[i]);
    throw std::invalid_argument("lipfuse: instruction set '" + std::string(name) +
                                "' is not available here; choose from: " + allowed);
}

// Set by LIPFUSE_ISA, else the best. -1: not decided yet.
std::atomic<int> current{-1};

}  // namespace

const char* name_of(InstructionSet set) {
    return entries[static_cast<int>(set)].name;
}

int available_instruction_sets(InstructionSet out[instruction_sets]) {
    int count = 0;
    for (int i = 0; i < int(sizeof entries / sizeof *entries); ++i)
        if (has(static_cast<InstructionSet>(i))) out[count++] = static_cast<InstructionSet>(i);
    return count;
}

InstructionSet selected_instruction_set() {
    int set = current.load(std::memory_order_relaxed);
    if (set < 0) {
        const char* wanted = std::getenv("LIPFUSE_ISA");
        if (wanted && *wanted) {
            set = static_cast<int>(parse(wanted));
        } else {
            InstructionSet sets[instruction_sets];
            set = static_cast<int>(sets[available_instruction_sets(sets) - 1]);
        }
        current.store(set, std::memory_order_relaxed);
    }
    return static_cast<InstructionSet>(set);
}

void select_instruction_set(const char* name) {
    current.store(static_cast<int>(parse(name)), std::memory_order_relaxed);
}

template <>
LIPFUSE_EXPORT const Kernels<float>& kernels<float>() {
    return *entries[static_cast<int>(selected_instruction_set())].float_kernels;
}
template <>
LIPFUSE_EXPORT const Kernels<double>& kernels<double>() {
    return *entries[static_cast<int>(selected_instruction_set())].double_kernels;
}

#define LIPFUSE_LAYER_KERNELS(E, member)                                      \
    template <>                                                               \
    LIPFUSE_EXPORT const LayerKernels<E>& layer_kernels<E>() {                \
        return *entries[static_cast<int>(selected_instruction_set())].member; \
    }
LIPFUSE_LAYER_KERNELS(float, float_layer_kernels)
LIPFUSE_LAYER_KERNELS(double, double_layer_kernels)
LIPFUSE_LAYER_KERNELS(Bf16, bf16_layer_kernels)
LIPFUSE_LAYER_KERNELS(Fp16, fp16_layer_kernels)

}  // namespace lipfuse::cpu
