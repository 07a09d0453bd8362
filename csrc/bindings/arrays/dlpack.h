// Anything with __dlpack__ (a torch tensor, a NumPy array) as a TensorView, without a copy.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <type_traits>

#include "../../core/tensor_view.h"

namespace logitless::bindings {

// Where the arrays of a call have to be: on the CPU, or on a CUDA device where work on them is
// queued on `stream`. The numbers of streams are DLPack's: 1 is the legacy default stream, and -1
// leaves the order of work to the caller.
struct Place {
  static constexpr int kCpu = -1;
  int device = kCpu;
  int64_t stream = -1;
};

// What a call does with an array. What it writes must be memory that may be written, and hold no
// element twice.
enum class Access { read, write };

// Holds the DLPack capsule alive as long as the view is used. `name` goes into error messages.
//
// The producer's word is not taken for what can be checked: extents are those of some memory, whose
// size and addresses do not wrap, and elements are aligned.
class Array {
 public:
  Array(pybind11::handle object, const char* name, Access access, const Place& place = {});
  const TensorView& view() const { return view_; }
  const TensorView* operator->() const { return &view_; }
  const char* name() const { return name_; }
  bool written() const { return access_ == Access::write; }
  // The first byte and the one after the last; equal where the array is empty.
  uintptr_t begin() const { return begin_; }
  uintptr_t end() const { return end_; }

 private:
  pybind11::object capsule_;
  const char* name_;
  Access access_;
  TensorView view_;
  uintptr_t begin_ = 0, end_ = 0;
};

// None gives an empty optional.
std::optional<Array> optional_array(
    pybind11::handle object, const char* name, Access access, const Place& place = {}
);

// Throws where an array opened for reading would be written: a fault of a binding, not of its
// caller.
[[noreturn]] void fail_access(const char* name);

// Contiguous data of n elements; null where the array is not given.
template <typename T>
T* data_of(const Array& array, Dtype dtype, int64_t n) {
  if (!std::is_const_v<T> && !array.written()) fail_access(array.name());
  return contiguous_data<T>(array.view(), dtype, n, array.name());
}
template <typename T>
T* data_of(const std::optional<Array>& array, Dtype dtype, int64_t n) {
  return array ? data_of<T>(*array, dtype, n) : nullptr;
}

// float32 or float64: the dtype of logp, which all numbers of a call share.
template <typename Fn>
auto visit_real(const Array& logp, Fn&& fn) {
  const Dtype dtype = logp->dtype;
  check(
      dtype == Dtype::f32 || dtype == Dtype::f64,
      logp.name(),
      " must be float32 or float64, got ",
      dtype_name(dtype)
  );
  if (dtype == Dtype::f64) return fn(type_tag<double>{}, Dtype::f64);
  return fn(type_tag<float>{}, Dtype::f32);
}

}  // namespace logitless::bindings
