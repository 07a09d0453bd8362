// A sparse matrix on a CUDA device as Python gives it. Its numbers the host does not see.
#pragma once

#include "../../cuda/topk/topk.h"
#include "overlap.h"

namespace logitless::bindings {

class CudaSparseArray {
 public:
  CudaSparseArray(
      pybind11::handle offsets,
      pybind11::handle columns,
      pybind11::handle values,
      Access of_columns,
      Access of_values,
      const Place& place
  )
      : offsets_(offsets, "offsets", Access::read, place),
        columns_(columns, "columns", of_columns, place),
        values_(values, "values", of_values, place) {
    const int64_t rows = offsets_->size() - 1, entries = values_->size();
    check(rows >= 0, "offsets must hold at least one element");
    view_.n = rows;
    view_.entries = entries;
    view_.offsets = data_of<const int64_t>(offsets_, Dtype::i64, rows + 1);
    // only a call that asked for write access writes through them
    view_.columns = const_cast<int32_t*>(data_of<const int32_t>(columns_, Dtype::i32, entries));
    view_.values = const_cast<float*>(data_of<const float>(values_, Dtype::f32, entries));
  }

  const cuda::SparseRows& operator*() const { return view_; }
  const cuda::SparseRows* operator->() const { return &view_; }
  void collect(Spans& spans) const {
    for (const Array* array : {&offsets_, &columns_, &values_}) spans.take(*array);
  }

 private:
  Array offsets_, columns_, values_;
  cuda::SparseRows view_;
};

}  // namespace logitless::bindings
