#include "sparse_array.h"

namespace py = pybind11;

namespace logitless::bindings {

SparseArray::SparseArray(py::handle offsets, py::handle columns, py::handle values)
    : offsets_(offsets, "offsets"), columns_(columns, "columns"), values_(values, "values") {
  const int64_t rows = offsets_->size() - 1;
  check(rows >= 0, "offsets must hold at least one element");
  view_.n = rows;
  view_.wide = values_->dtype == Dtype::f64;
  const auto* starts = data_of<int64_t>(offsets_, Dtype::i64, rows + 1, "offsets");
  check(starts[0] == 0, "offsets must start at 0, got ", starts[0]);
  for (int64_t i = 0; i < rows; ++i) {
    check(starts[i] <= starts[i + 1], "offsets must ascend, got ", starts[i + 1]);
  }
  view_.offsets = starts;
  view_.columns = data_of<int32_t>(columns_, Dtype::i32, starts[rows], "columns");
  view_.values =
      data_of<void>(values_, view_.wide ? Dtype::f64 : Dtype::f32, starts[rows], "values");
}

void SparseArray::check_columns(int64_t limit) const {
  for (int64_t i = 0; i < view_.entries(); ++i) {
    const int32_t column = view_.columns[i];
    check(0 <= column && column < limit, "columns must be in [0, ", limit, "), got ", column);
  }
}

}  // namespace logitless::bindings
