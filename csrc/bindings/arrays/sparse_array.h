// A sparse matrix as Python gives it, checked: offsets ascend and end with the entries.
#pragma once

#include "../../cpu/topk/sparse.h"
#include "overlap.h"

namespace logitless::bindings {

class SparseArray {
 public:
  // `access` is that of the entries: a call may write them where offsets are given.
  SparseArray(
      pybind11::handle offsets, pybind11::handle columns, pybind11::handle values, Access access
  )
      : SparseArray(offsets, columns, values, access, access) {}
  // Of columns that are given, and values that a call may write.
  SparseArray(
      pybind11::handle offsets,
      pybind11::handle columns,
      pybind11::handle values,
      Access of_columns,
      Access of_values
  );

  const cpu::SparseRows& operator*() const { return view_; }
  const cpu::SparseRows* operator->() const { return &view_; }
  Dtype value_dtype() const { return view_.wide ? Dtype::f64 : Dtype::f32; }
  void check_columns(int64_t limit) const;
  void collect(Spans& spans) const;

 private:
  Array offsets_, columns_, values_;
  cpu::SparseRows view_;
};

}  // namespace logitless::bindings
