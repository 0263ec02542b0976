// Compiled with the flags of this instruction set; see CMakeLists.txt.
#define LIPFUSE_ISA generic
#define LIPFUSE_VECTOR_BYTES 16
#define LIPFUSE_TILE_ROWS 4
#define LIPFUSE_TILE_VECTORS 2
#include "kernels.inl"
