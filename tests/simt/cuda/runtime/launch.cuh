// Kernels start on the SIMT machine, at once and in the calling thread.
#pragma once

#include <cuda/runtime/runtime.h>

#include "device.cuh"

namespace logitless::cuda {

template <typename Args>
void launch(
    const char* name, void (*kernel)(Args), int64_t blocks, int threads, Stream, const Args& args
) {
  if (blocks == 0) return;
  constexpr int64_t limit = 0x7fffffff;
  const dim3 grid(
      static_cast<unsigned>(blocks < limit ? blocks : limit),
      static_cast<unsigned>((blocks + limit - 1) / limit)
  );
  simt::run(name, grid, dim3(static_cast<unsigned>(threads)), [&] { kernel(args); });
}

inline int64_t block_index() { return static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x; }

}  // namespace logitless::cuda
