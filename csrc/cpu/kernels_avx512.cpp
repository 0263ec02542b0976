// Compiled with the flags of this instruction set; see CMakeLists.txt.
#define LIPFUSE_ISA avx512
#define LIPFUSE_VECTOR_BYTES 64
#define LIPFUSE_TILE_ROWS 8
#define LIPFUSE_TILE_VECTORS 2
#include "kernels.inl"
