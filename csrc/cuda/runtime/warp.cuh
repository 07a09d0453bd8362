// What the lanes of a warp find out together. All of them call it, and all get the same.
#pragma once

#include <cuda/runtime/device.cuh>

namespace logitless::cuda {

template <typename T>
LOGITLESS_DEVICE T warp_sum(T value) {
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) value += exchange(value, bits);
  return value;
}

LOGITLESS_DEVICE float warp_max(float value) {
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) value = larger(value, exchange(value, bits));
  return value;
}

}  // namespace logitless::cuda
