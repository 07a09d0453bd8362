#include "candidate_arrays.h"

namespace py = pybind11;

namespace logitless::bindings {

CandidateArrays::CandidateArrays(
    py::handle y, py::handle ids, py::handle floor, py::handle count, double tau
)
    : y_(y, "y"), ids_(ids, "ids"), floor_(floor, "floor"), count_(count, "count") {
  check(y_->ndim == 2, "y must be [n, room], got ", y_->ndim, " dimensions");
  const int64_t n = rows(), room = y_->shape[1];
  check(
      room % 2 == 0 && 2 <= room && room <= cpu::kMostCandidates,
      "room must be even and from 2 to ",
      cpu::kMostCandidates,
      ", got ",
      room
  );
  check(tau > 0, "tau must be > 0, got ", tau);
  view_.room = room;
  view_.tau = tau;
  view_.y = data_of<double>(y_, Dtype::f64, n * room, "y");
  view_.ids = data_of<int32_t>(ids_, Dtype::i32, n * room, "ids");
  view_.floor = data_of<double>(floor_, Dtype::f64, n, "floor");
  view_.count = data_of<int64_t>(count_, Dtype::i64, n, "count");
}

const cpu::Candidates& CandidateArrays::of_rows(int64_t n) const {
  check(n == rows(), "candidates must have ", n, " rows, got ", rows());
  return view_;
}

}  // namespace logitless::bindings
