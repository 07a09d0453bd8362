// The arrays in which the largest logits of each row are kept.
#pragma once

#include "../cpu/candidates.h"
#include "overlap.h"

namespace logitless::bindings {

class CandidateArrays {
 public:
  CandidateArrays(
      pybind11::handle y,
      pybind11::handle ids,
      pybind11::handle floor,
      pybind11::handle count,
      double tau
  );

  int64_t rows() const { return y_->shape[0]; }
  // Of a call with n rows; what they hold so far is not looked at.
  const cpu::Candidates& of_rows(int64_t n) const;
  // The same of rows that hold from 0 to `most` entries.
  const cpu::Candidates& filled(int64_t n, int64_t most) const;
  // After settling a row holds half of its room at most.
  const cpu::Candidates& settled(int64_t n) const { return filled(n, view_.keep()); }
  int64_t room() const { return view_.room; }
  void collect(Spans& spans) const;

 private:
  Array y_, ids_, floor_, count_;
  cpu::Candidates view_;
};

}  // namespace logitless::bindings
