// The one place where kernels start.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "runtime.h"

namespace logitless::cuda {

// Starts `blocks` blocks, which find their number with block_index(), and throws where CUDA
// refuses.
template <typename Args>
void launch(
    const char* name,
    void (*kernel)(Args),
    int64_t blocks,
    int threads,
    Stream stream,
    const Args& args
) {
  if (blocks == 0) return;
  // The first dimension of a grid ends at 2^31 - 1, the second at 65535.
  constexpr int64_t limit = 0x7fffffff;
  cudaLaunchConfig_t config = {};
  config.gridDim.x = static_cast<unsigned>(blocks < limit ? blocks : limit);
  config.gridDim.y = static_cast<unsigned>((blocks + limit - 1) / limit);
  config.blockDim.x = static_cast<unsigned>(threads);
  config.stream = static_cast<cudaStream_t>(stream.handle);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, args);
  if (error == cudaSuccess) return;
  // CUDA also keeps the error for whoever asks next.
  cudaGetLastError();
  throw std::runtime_error(
      std::string("CUDA kernel ") + name + " on device " + std::to_string(stream.device) + ": " +
      cudaGetErrorString(error)
  );
}

__device__ __forceinline__ int64_t block_index() {
  return static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
}

}  // namespace logitless::cuda
