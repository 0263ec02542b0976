// Half precision and the type it is computed in.
#pragma once

#include <cstdint>

namespace lipfuse {

// Half precision, which is only ever loaded and stored.
struct Bf16 {
    uint16_t bits;
};
struct Fp16 {
    uint16_t bits;
};
template <class E>
struct WideType {
    using type = E;
};
template <>
struct WideType<Bf16> {
    using type = float;
};
template <>
struct WideType<Fp16> {
    using type = float;
};

}  // namespace lipfuse
