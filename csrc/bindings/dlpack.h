// Anything with __dlpack__ (a torch tensor, a NumPy array) as a TensorView, without a copy.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>

#include "../core/tensor_view.h"

namespace logitless::bindings {

// Where the arrays of a call have to be: on the CPU, or on a CUDA device where work on them is
// queued on `stream`. The numbers of streams are DLPack's: 1 is the legacy default stream, and -1
// leaves the order of work to the caller.
struct Place {
  static constexpr int kCpu = -1;
  int device = kCpu;
  int64_t stream = -1;
};

// Holds the DLPack capsule alive as long as the view is used. `name` goes into error messages.
class Array {
 public:
  Array(pybind11::handle object, const char* name, const Place& place = {});
  const TensorView& view() const { return view_; }
  const TensorView* operator->() const { return &view_; }

 private:
  pybind11::object capsule_;
  TensorView view_;
};

// None gives an empty optional.
std::optional<Array> optional_array(
    pybind11::handle object, const char* name, const Place& place = {}
);

// Contiguous data of n elements.
template <typename T>
T* data_of(const Array& array, Dtype dtype, int64_t n, const char* name) {
  return contiguous_data<T>(array.view(), dtype, n, name);
}
template <typename T>
T* data_of(const std::optional<Array>& array, Dtype dtype, int64_t n, const char* name) {
  return array ? contiguous_data<T>(array->view(), dtype, n, name) : nullptr;
}

// float32 or float64: the dtype of logp, which all numbers of a call share.
template <typename Fn>
auto visit_real(const Array& logp, Fn&& fn) {
  if (logp->dtype == Dtype::f64) return fn(type_tag<double>{}, Dtype::f64);
  return fn(type_tag<float>{}, Dtype::f32);
}

}  // namespace logitless::bindings
