// Where the arrays of a call on a CUDA device are.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "../../cuda/runtime/runtime.h"
#include "dlpack.h"

namespace logitless::bindings {

// The caller works on the stream that a call names, so no array waits for another stream. The
// emulator's device arrays are those of the CPU. Throws where there are no kernels.
inline Place cuda_place(int device) {
  const cuda::BuildInfo build = cuda::build_info();
  if (!build.compiled) throw std::runtime_error(cuda::device_reason(device));
  return build.emulated ? Place{} : Place{device, -1};
}

inline cuda::Stream cuda_queue(int device, int64_t stream) {
  return {device, reinterpret_cast<void*>(stream)};
}

}  // namespace logitless::bindings
