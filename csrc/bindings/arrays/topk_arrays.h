// The arrays in which the largest logits of each row are kept.
#pragma once

#include "../../core/topk.h"
#include "overlap.h"

namespace logitless::bindings {

class TopKArrays {
 public:
  int64_t rows() const { return values_->shape[0]; }
  // For a call with n rows, whose entries so far are not read.
  const TopK& of_rows(int64_t n) const;
  int64_t capacity() const { return view_.capacity; }
  void collect(Spans& spans) const;

 protected:
  TopKArrays(
      pybind11::handle values,
      pybind11::handle ids,
      pybind11::handle threshold,
      pybind11::handle count,
      double margin,
      const Place& place
  );

 private:
  Array values_, ids_, threshold_, count_;
  TopK view_;
};

class CpuTopK : public TopKArrays {
 public:
  CpuTopK(
      pybind11::handle values,
      pybind11::handle ids,
      pybind11::handle threshold,
      pybind11::handle count,
      double margin
  )
      : TopKArrays(values, ids, threshold, count, margin, Place{}) {}

  // For a call with n rows that hold from 0 to `most` entries.
  const TopK& filled(int64_t n, int64_t most) const;
  // After topk.finalize a row holds half of its capacity at most.
  const TopK& finalized(int64_t n) const { return filled(n, capacity() / 2); }
};

// On a device, where the host does not see how many entries rows hold.
class CudaTopK : public TopKArrays {
 public:
  CudaTopK(
      pybind11::handle values,
      pybind11::handle ids,
      pybind11::handle threshold,
      pybind11::handle count,
      double margin,
      int device
  );

  int device() const { return device_; }

 private:
  int device_;
};

}  // namespace logitless::bindings
