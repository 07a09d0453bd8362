// Devices and streams, and what this build can run on. Built without CUDA, absent.cpp defines the
// same symbols.
#pragma once

#include <string>

namespace logitless::cuda {

struct Stream {
  int device = 0;
  void* handle = nullptr;  // cudaStream_t; null is the legacy default stream
};

// What this build holds.
struct BuildInfo {
  bool compiled;
  bool emulated;              // the kernels run on the CPU, for tests
  const char* architectures;  // "80,90,100"
  const char* toolkit;        // "13.0"
  const char* reason;         // why not compiled
};
BuildInfo build_info();

// Why this build cannot run on a device, or "". Makes no CUDA context.
std::string device_reason(int device);

// Makes a device current as long as it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = -1;  // -1: it was current already
};

}  // namespace logitless::cuda
