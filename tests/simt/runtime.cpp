// What csrc/cuda/runtime/runtime.cu asks of CUDA: there is one device, the CPU, and nothing to
// guard.
#include <cuda/runtime/runtime.h>

namespace logitless::cuda {

BuildInfo build_info() { return {true, true, "", "", ""}; }

std::string device_reason(int device) {
  return device == 0 ? "" : "the emulator has device 0 only, got " + std::to_string(device);
}

DeviceGuard::DeviceGuard(int) {}
DeviceGuard::~DeviceGuard() = default;

}  // namespace logitless::cuda
