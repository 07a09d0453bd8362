// What every core header needs: the host/device marker and fixed-width integers.
#pragma once

#include <cstdint>

// A function marked LOGITLESS_HD compiles for the host and, under nvcc, for the device as well.
#if defined(__CUDACC__)
#define LOGITLESS_HD __host__ __device__
#else
#define LOGITLESS_HD
#endif
