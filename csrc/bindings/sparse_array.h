// A sparse matrix as Python gives it, checked: offsets ascend and end with the entries.
#pragma once

#include "../cpu/support.h"
#include "dlpack.h"

namespace logitless::bindings {

class SparseArray {
 public:
  SparseArray(pybind11::handle offsets, pybind11::handle columns, pybind11::handle values);

  const cpu::SparseRows& operator*() const { return view_; }
  const cpu::SparseRows* operator->() const { return &view_; }
  void check_columns(int64_t limit) const;

 private:
  Array offsets_, columns_, values_;
  cpu::SparseRows view_;
};

}  // namespace logitless::bindings
