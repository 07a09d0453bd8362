// The arrays in which the largest logits of each row are kept.
#pragma once

#include "../../cpu/topk/topk.h"
#include "overlap.h"

namespace logitless::bindings {

class TopKArrays {
 public:
  TopKArrays(
      pybind11::handle values,
      pybind11::handle ids,
      pybind11::handle threshold,
      pybind11::handle count,
      double margin
  );

  int64_t rows() const { return values_->shape[0]; }
  // For a call with n rows, whose entries so far are not read.
  const cpu::TopK& of_rows(int64_t n) const;
  // For a call with n rows that hold from 0 to `most` entries.
  const cpu::TopK& filled(int64_t n, int64_t most) const;
  // After topk.finalize a row holds half of its capacity at most.
  const cpu::TopK& finalized(int64_t n) const { return filled(n, view_.keep()); }
  int64_t capacity() const { return view_.capacity; }
  void collect(Spans& spans) const;

 private:
  Array values_, ids_, threshold_, count_;
  cpu::TopK view_;
};

}  // namespace logitless::bindings
