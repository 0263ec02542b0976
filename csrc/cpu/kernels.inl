// One body for every instruction set. The including file defines
//   LIPFUSE_ISA            the namespace
//   LIPFUSE_VECTOR_BYTES   the vector width
//   LIPFUSE_TILE_ROWS, LIPFUSE_TILE_VECTORS   the register tile of a product
#include <limits>

#include "kernels.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace lipfuse::cpu::LIPFUSE_ISA {
#include "simd.inl"

#include "product.inl"
#ifdef LIPFUSE_TILE_UNIT
#include "split_product.inl"
#endif
#include "vector.inl"
#include "invert.inl"
#include "element.inl"
#include "activation.inl"
#include "pooling.inl"
#include "waves.inl"

template <class T>
static constexpr Kernels<T> table() {
    Kernels<T> t{};
    t.tile_rows = Tile<T>::rows;
    t.tile_cols = Tile<T>::cols;
    t.pack_a = pack_a<T>;
    t.pack_b = pack_b<T>;
    t.narrow = narrow<T>;
    t.product = product<T>;
    t.dot = dot<T>;
    t.axpby = axpby<T>;
    t.distance = distance<T>;
    t.symmetric_matvec = symmetric_matvec<T>;
    t.symmetric_matvec_of_half = symmetric_matvec_of_half<T>;
    t.square_of_half = square_of_half<T>;
    t.pack_blocks = pack_blocks<T>;
    t.unpack_blocks = unpack_blocks<T>;
    t.mirror = mirror<T>;
    t.lanczos_step = lanczos_step<T>;
    t.lanczos = lanczos<T>;
    t.sweep = sweep<T>;
    t.rank_one_update = rank_one_update<T>;
    t.invert = invert<T>;
    t.transpose = transpose_block<T>;
    t.skew = skew<T>;
    t.symmetrize = symmetrize<T>;
    t.gather = gather<T>;
    t.lanes = Simd<T>::width;
    t.wave_scores = wave_scores<T>;
    t.wave_exceeds = wave_exceeds<T>;
    return t;
}

#ifndef LIPFUSE_TILE_UNIT
template <class E>
static constexpr LayerKernels<E> layer_table() {
    return {sort_pairs<E>,       swap_pairs<E>,      max_min<E>,
            max_min_backward<E>, average_pool<E>,    average_pool_backward<E>,
            l2_pool<E>,          l2_pool_backward<E>};
}
#endif

extern const Kernels<float> float_kernels;
#ifdef LIPFUSE_TILE_UNIT
static constexpr Kernels<float> table_of_tile_unit() {
    Kernels<float> t = table<float>();
    t.split_product = split_product;
    t.finish_skew = finish_skew;
    return t;
}
const Kernels<float> float_kernels = table_of_tile_unit();
#else
const Kernels<float> float_kernels = table<float>();

extern const Kernels<double> double_kernels;
const Kernels<double> double_kernels = table<double>();

extern const LayerKernels<float> float_layer_kernels;
extern const LayerKernels<double> double_layer_kernels;
extern const LayerKernels<Bf16> bf16_layer_kernels;
extern const LayerKernels<Fp16> fp16_layer_kernels;
const LayerKernels<float> float_layer_kernels = layer_table<float>();
const LayerKernels<double> double_layer_kernels = layer_table<double>();
const LayerKernels<Bf16> bf16_layer_kernels = layer_table<Bf16>();
const LayerKernels<Fp16> fp16_layer_kernels = layer_table<Fp16>();
#endif
}  // namespace lipfuse::cpu::LIPFUSE_ISA
