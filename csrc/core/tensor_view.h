// A non-owning view of somebody's array: pointer, dtype, shape, strides in elements.
#pragma once

#include <string>

#include "check.h"
#include "dtype.h"

namespace logitless {

// Where an array lies: a CUDA device's number, or one of these.
constexpr int kCpu = -1;
constexpr int kElsewhere = -2;

inline std::string device_name(int device) {
  if (device == kCpu) return "the CPU";
  if (device == kElsewhere) return "another kind of device";
  return "CUDA device " + std::to_string(device);
}

struct TensorView {
  void* data = nullptr;
  Dtype dtype = Dtype::f32;
  int ndim = 0;
  int64_t shape[4] = {0, 0, 0, 0};
  int64_t strides[4] = {0, 0, 0, 0};
  int device = kCpu;

  int64_t size() const {
    int64_t n = 1;
    for (int i = 0; i < ndim; ++i) n *= shape[i];
    return n;
  }
  bool contiguous() const {
    // an empty array may carry any strides
    if (size() == 0) return true;
    int64_t expected = 1;
    for (int i = ndim - 1; i >= 0; --i) {
      if (shape[i] != 1 && strides[i] != expected) return false;
      expected *= shape[i];
    }
    return true;
  }
};

inline void check_device(const TensorView& view, int device, const char* name) {
  check(
      view.device == device,
      name,
      " must be on ",
      device_name(device),
      ", got ",
      device_name(view.device)
  );
}

// A contiguous vector of n elements of type T on `device`, or an error naming the argument.
template <typename T>
T* contiguous_data(
    const TensorView& view, Dtype dtype, int64_t n, const char* name, int device = kCpu
) {
  check_device(view, device, name);
  check(
      view.dtype == dtype, name, " must be ", dtype_name(dtype), ", got ", dtype_name(view.dtype)
  );
  check(view.size() == n, name, " must hold ", n, " elements, got ", view.size());
  check(view.contiguous(), name, " must be contiguous");
  return static_cast<T*>(view.data);
}

}  // namespace logitless
