// A non-owning view of somebody's array: pointer, dtype, shape, strides in elements.
#pragma once

#include "check.h"
#include "dtype.h"

namespace logitless {

struct TensorView {
  void* data = nullptr;
  Dtype dtype = Dtype::f32;
  int ndim = 0;
  int64_t shape[4] = {0, 0, 0, 0};
  int64_t strides[4] = {0, 0, 0, 0};

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

// Whether two views are of the same elements in the same places.
inline bool same_elements(const TensorView& a, const TensorView& b) {
  if (a.data != b.data || a.dtype != b.dtype || a.ndim != b.ndim) return false;
  for (int i = 0; i < a.ndim; ++i) {
    if (a.shape[i] != b.shape[i] || (a.shape[i] > 1 && a.strides[i] != b.strides[i])) return false;
  }
  return true;
}

// A contiguous vector of n elements of type T, or an error naming the argument.
template <typename T>
T* contiguous_data(const TensorView& view, Dtype dtype, int64_t n, const char* name) {
  check(
      view.dtype == dtype, name, " must be ", dtype_name(dtype), ", got ", dtype_name(view.dtype)
  );
  check(view.size() == n, name, " must hold ", n, " elements, got ", view.size());
  check(view.contiguous(), name, " must be contiguous");
  return static_cast<T*>(view.data);
}

}  // namespace logitless
