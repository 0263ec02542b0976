// Compiled with the flags of this instruction set; see CMakeLists.txt.
#define LIPFUSE_ISA avx2
#define LIPFUSE_VECTOR_BYTES 32
#define LIPFUSE_TILE_ROWS 6
#define LIPFUSE_TILE_VECTORS 2
#include "kernels.inl"
