// The arrays in which the largest logits of each row are kept.
#pragma once

#include "../../cpu/topk/topk.h"
#include "overlap.h"

namespace logitless::bindings {

class TopKArrays {
 public:
  TopKArrays(
      pybind11::handle y,
      pybind11::handle ids,
      pybind11::handle floor,
      pybind11::handle count,
      double tau
  );

  int64_t rows() const { return y_->shape[0]; }
  // Of a call with n rows; what they hold so far is not looked at.
  const cpu::TopK& of_rows(int64_t n) const;
  // The same of rows that hold from 0 to `most` entries.
  const cpu::TopK& filled(int64_t n, int64_t most) const;
  // After settling a row holds half of its room at most.
  const cpu::TopK& settled(int64_t n) const { return filled(n, view_.keep()); }
  int64_t capacity() const { return view_.capacity; }
  void collect(Spans& spans) const;

 private:
  Array y_, ids_, threshold_, count_;
  cpu::TopK view_;
};

}  // namespace logitless::bindings
