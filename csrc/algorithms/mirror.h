// What is known of a product, of which then only the lower half is computed.
#pragma once

namespace lipfuse {

enum class Mirror { none, symmetric, skew };

}  // namespace lipfuse
