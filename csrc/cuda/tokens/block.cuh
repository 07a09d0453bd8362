// What the token kernels share: a token per thread, and sums over a block.
#pragma once

#include <cuda/runtime/device.cuh>
#include <cuda/runtime/launch.cuh>

#include "tokens.h"

namespace logitless::cuda {

constexpr int kTokenThreads = 256;
constexpr int kTokenWarps = kTokenThreads / kWarp;

LOGITLESS_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
LOGITLESS_DEVICE int64_t token_index() { return block_index() * kTokenThreads + thread_index(); }
LOGITLESS_DEVICE bool finite(double x) { return fabs(x) < INFINITY; }

LOGITLESS_DEVICE void flag_token(int64_t* flag, int64_t token) {
  atomic_lower(flag, token * 8 + kBadToken);
}

template <typename T>
LOGITLESS_DEVICE T sum_of_warp(T value) {
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) value += exchange(value, bits);
  return value;
}

// A thread a token, or a block so many.
template <typename Args>
void start(
    const char* name,
    void (*kernel)(Args),
    int64_t n,
    Stream stream,
    const Args& args,
    int64_t tokens = kTokenThreads
) {
  const DeviceGuard guard(stream.device);
  launch(name, kernel, (n + tokens - 1) / tokens, kTokenThreads, stream, args);
}

}  // namespace logitless::cuda
