#include "sparse_array.h"

namespace py = pybind11;

namespace logitless::bindings {

SparseArray::SparseArray(
    py::handle offsets, py::handle columns, py::handle values, Access of_columns, Access of_values
)
    : offsets_(offsets, "offsets", Access::read),
      columns_(columns, "columns", of_columns),
      values_(values, "values", of_values) {
  const int64_t rows = offsets_->size() - 1;
  check(rows >= 0, "offsets must hold at least one element");
  view_.n = rows;
  view_.wide = values_->dtype == Dtype::f64;
  const auto* starts = data_of<const int64_t>(offsets_, Dtype::i64, rows + 1);
  check(starts[0] == 0, "offsets must start at 0, got ", starts[0]);
  for (int64_t i = 0; i < rows; ++i) {
    check(starts[i] <= starts[i + 1], "offsets must ascend, got ", starts[i + 1]);
  }
  view_.offsets = starts;
  // only a call that asked for write access writes through them
  view_.columns = const_cast<int32_t*>(data_of<const int32_t>(columns_, Dtype::i32, starts[rows]));
  view_.values = const_cast<void*>(data_of<const void>(values_, value_dtype(), starts[rows]));
}

void SparseArray::collect(Spans& spans) const {
  for (const Array* array : {&offsets_, &columns_, &values_}) spans.take(*array);
}

void SparseArray::check_columns(int64_t limit) const {
  for (int64_t i = 0; i < view_.entries(); ++i) {
    const int32_t column = view_.columns[i];
    check(0 <= column && column < limit, "columns must be in [0, ", limit, "), got ", column);
  }
}

}  // namespace logitless::bindings
