// Marks what also runs inside CUDA kernels; on the CPU it means nothing.
#pragma once

#ifdef __CUDACC__
#define LIPFUSE_DEVICE __device__
#else
#define LIPFUSE_DEVICE
#endif
