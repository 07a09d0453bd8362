// The arrays in which the largest logits of each row are kept.
#pragma once

#include "../cpu/candidates.h"
#include "dlpack.h"

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
  // Of a call with n rows.
  const cpu::Candidates& of_rows(int64_t n) const;

 private:
  Array y_, ids_, floor_, count_;
  cpu::Candidates view_;
};

}  // namespace logitless::bindings
