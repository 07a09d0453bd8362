// Noise whose arrays are on a CUDA device: the host does not see its sizes. One that is no number
// makes its row a bad one.
#pragma once

#include "../arrays/cuda_place.h"
#include "../arrays/noise_arrays.h"

namespace logitless::bindings {

class CudaNoise : public NoiseArrays {
 public:
  CudaNoise(
      pybind11::handle row_ids,
      pybind11::handle sizes,
      uint64_t seed,
      uint64_t step,
      int64_t start,
      int device
  )
      : NoiseArrays(row_ids, sizes, seed, step, start, cuda_place(device)), device_(device) {}

  // Of a call on a device.
  static const CudaNoise* on(const CudaNoise* noise, int device) {
    check(
        noise == nullptr || noise->device_ == device,
        "noise must be on device ",
        device,
        ", got ",
        noise == nullptr ? device : noise->device_
    );
    return noise;
  }

 private:
  int device_;
};

}  // namespace logitless::bindings
