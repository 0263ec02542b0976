// The launchers of activations and pools; see launch.h.
#pragma once

#include "launch.h"
#include "layers.h"

namespace lipfuse::cuda {

template <class E>
Error sort_pairs(const Stream&, const SortArguments<E>&);
template <Pooling kind, class E>
Error pool(const Stream&, const PoolArguments<E>&, bool backward);

}  // namespace lipfuse::cuda
