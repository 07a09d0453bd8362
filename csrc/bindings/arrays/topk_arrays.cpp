#include "topk_arrays.h"

#include "cuda_place.h"

namespace py = pybind11;

namespace logitless::bindings {

namespace {

// [n, capacity], contiguous but for what may lie between rows.
template <typename T>
T* rows_of(const Array& array, Dtype dtype, int64_t n, int64_t capacity, int64_t stride) {
  const char* name = array.name();
  check(
      array->dtype == dtype,
      name,
      " must be ",
      dtype_name(dtype),
      ", got ",
      dtype_name(array->dtype)
  );
  check(
      array->ndim == 2 && array->shape[0] == n && array->shape[1] == capacity,
      name,
      " must be [n, capacity] = [",
      n,
      ", ",
      capacity,
      "]"
  );
  check(n == 0 || array->strides[1] == 1, name, " must have contiguous rows (last stride 1)");
  check(
      n <= 1 || array->strides[0] == stride,
      name,
      " must have as many elements from row to row as values, ",
      stride,
      ", got ",
      array->strides[0]
  );
  return static_cast<T*>(array->data);
}

}  // namespace

TopKArrays::TopKArrays(
    py::handle values,
    py::handle ids,
    py::handle threshold,
    py::handle count,
    double margin,
    const Place& place
)
    : values_(values, "values", Access::write, place),
      ids_(ids, "ids", Access::write, place),
      threshold_(threshold, "threshold", Access::write, place),
      count_(count, "count", Access::write, place) {
  check(values_->ndim == 2, "values must be [n, capacity], got ", values_->ndim, " dimensions");
  const int64_t n = rows(), capacity = values_->shape[1];
  check(
      capacity % 2 == 0 && 2 <= capacity && capacity <= kMostCapacity,
      "capacity must be even and from 2 to ",
      kMostCapacity,
      ", got ",
      capacity
  );
  check(margin > 0, "margin must be > 0, got ", margin);
  view_.capacity = capacity;
  view_.stride = values_->strides[0];
  view_.margin = margin;
  view_.values = rows_of<double>(values_, Dtype::f64, n, capacity, view_.stride);
  view_.ids = rows_of<int32_t>(ids_, Dtype::i32, n, capacity, view_.stride);
  view_.threshold = data_of<double>(threshold_, Dtype::f64, n);
  view_.count = data_of<int64_t>(count_, Dtype::i64, n);
  check_apart(*this);
}

void TopKArrays::collect(Spans& spans) const {
  for (const Array* array : {&values_, &ids_, &threshold_, &count_}) spans.take(*array);
}

const TopK& TopKArrays::of_rows(int64_t n) const {
  check(n == rows(), "topk must have ", n, " rows, got ", rows());
  return view_;
}

const TopK& CpuTopK::filled(int64_t n, int64_t most) const {
  const TopK& kept = of_rows(n);
  for (int64_t row = 0; row < n; ++row) {
    const int64_t count = kept.count[row];
    check(0 <= count && count <= most, "count must be from 0 to ", most, " here, got ", count);
  }
  return kept;
}

CudaTopK::CudaTopK(
    py::handle values,
    py::handle ids,
    py::handle threshold,
    py::handle count,
    double margin,
    int device
)
    : TopKArrays(values, ids, threshold, count, margin, cuda_place(device)), device_(device) {}

void register_topk_class(py::module_& m) {
  py::class_<CpuTopK>(m, "TopK", "The largest logits of each row; see csrc/core/topk.h.")
      .def(
          py::init<py::handle, py::handle, py::handle, py::handle, double>(),
          py::kw_only(),
          py::arg("values"),
          py::arg("ids"),
          py::arg("threshold"),
          py::arg("count"),
          py::arg("margin")
      );
  py::class_<CudaTopK>(m, "CudaTopK", "TopK on a CUDA device.")
      .def(
          py::init<py::handle, py::handle, py::handle, py::handle, double, int>(),
          py::kw_only(),
          py::arg("values"),
          py::arg("ids"),
          py::arg("threshold"),
          py::arg("count"),
          py::arg("margin"),
          py::arg("device") = 0
      );
}

}  // namespace logitless::bindings
