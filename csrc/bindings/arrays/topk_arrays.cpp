#include "topk_arrays.h"

namespace py = pybind11;

namespace logitless::bindings {

TopKArrays::TopKArrays(py::handle y, py::handle ids, py::handle floor, py::handle count, double tau)
    : y_(y, "y", Access::write),
      ids_(ids, "ids", Access::write),
      threshold_(floor, "floor", Access::write),
      count_(count, "count", Access::write) {
  check(y_->ndim == 2, "y must be [n, room], got ", y_->ndim, " dimensions");
  const int64_t n = rows(), room = y_->shape[1];
  check(
      room % 2 == 0 && 2 <= room && room <= cpu::kMostCapacity,
      "room must be even and from 2 to ",
      cpu::kMostCapacity,
      ", got ",
      room
  );
  check(tau > 0, "tau must be > 0, got ", tau);
  view_.capacity = room;
  view_.margin = tau;
  view_.values = data_of<double>(y_, Dtype::f64, n * room);
  view_.ids = data_of<int32_t>(ids_, Dtype::i32, n * room);
  view_.threshold = data_of<double>(threshold_, Dtype::f64, n);
  view_.count = data_of<int64_t>(count_, Dtype::i64, n);
  check_apart(*this);
}

void TopKArrays::collect(Spans& spans) const {
  for (const Array* array : {&y_, &ids_, &threshold_, &count_}) spans.take(*array);
}

const cpu::TopK& TopKArrays::of_rows(int64_t n) const {
  check(n == rows(), "candidates must have ", n, " rows, got ", rows());
  return view_;
}

const cpu::TopK& TopKArrays::filled(int64_t n, int64_t most) const {
  of_rows(n);
  for (int64_t row = 0; row < n; ++row) {
    const int64_t count = view_.count[row];
    check(0 <= count && count <= most, "count must be from 0 to ", most, " here, got ", count);
  }
  return view_;
}

}  // namespace logitless::bindings
