// What is asked of the CUDA runtime outside of kernels: devices, and what this build can run on.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "runtime.h"

namespace logitless::cuda {
namespace {

void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

struct Capability {
  int major, minor;
};

// Whether machine code or intermediate code of this build runs there. Machine code runs on later
// devices of the same major number; intermediate code of the newest is kept for those to come.
bool has_code_for(const Capability& device) {
  int newest = 0;
  std::string list = LOGITLESS_CUDA_ARCHITECTURES;
  for (size_t at = 0; at < list.size();) {
    const size_t end = std::min(list.find(',', at), list.size());
    const int number = std::stoi(list.substr(at, end - at));
    newest = std::max(newest, number);
    if (number / 10 == device.major && number % 10 <= device.minor) return true;
    at = end + 1;
  }
  return device.major * 10 + device.minor >= newest;
}

}  // namespace

BuildInfo build_info() {
  return {true, false, LOGITLESS_CUDA_ARCHITECTURES, LOGITLESS_CUDA_TOOLKIT, ""};
}

std::string device_reason(int device) {
  int devices = 0;
  cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaSuccess && (device < 0 || device >= devices)) error = cudaErrorInvalidDevice;
  Capability found = {};
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&found.major, cudaDevAttrComputeCapabilityMajor, device);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&found.minor, cudaDevAttrComputeCapabilityMinor, device);
  }
  if (error != cudaSuccess) {
    cudaGetLastError();
    return std::string("CUDA says: ") + cudaGetErrorString(error);
  }
  if (has_code_for(found)) return "";
  return "built for compute capabilities " + std::string(LOGITLESS_CUDA_ARCHITECTURES) +
         ", the device has " + std::to_string(found.major * 10 + found.minor);
}

DeviceGuard::DeviceGuard(int device) {
  int current = -1;
  require(cudaGetDevice(&current), "cudaGetDevice");
  if (current == device) return;
  require(cudaSetDevice(device), "cudaSetDevice");
  previous_ = current;
}

// Only where it was another: making a device current may set up a context there.
DeviceGuard::~DeviceGuard() {
  if (previous_ >= 0) cudaSetDevice(previous_);
}

}  // namespace logitless::cuda
