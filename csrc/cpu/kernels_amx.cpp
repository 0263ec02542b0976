// Compiled with the flags of this instruction set; see CMakeLists.txt. What has no use for the tile unit
// is that of avx512.
#define LIPFUSE_ISA amx
#define LIPFUSE_VECTOR_BYTES 64
#define LIPFUSE_TILE_ROWS 8
#define LIPFUSE_TILE_VECTORS 2
#define LIPFUSE_TILE_UNIT
#include "kernels.inl"
