// Sparse rows for Python: the transpose of a sparse matrix and its products with dense ones. What
// makes their entries are methods of Rows.
#include <pybind11/pybind11.h>

#include "sparse_array.h"

namespace py = pybind11;

namespace logitless::bindings {
namespace {

int64_t transpose(
    py::handle offsets,
    py::handle columns,
    py::handle values,
    py::handle row_names,
    py::handle scratch,
    py::handle out_offsets,
    py::handle out_names,
    py::handle out_columns,
    py::handle out_values
) {
  const SparseArray in(offsets, columns, values);
  const Array names(row_names, "row_names");
  const Array memory(scratch, "scratch");
  const Array starts(out_offsets, "out_offsets");
  const Array found(out_names, "out_names");
  const Array rows(out_columns, "out_columns");
  const Array entries(out_values, "out_values");
  const int64_t n = in->entries();
  cpu::SparseRows out;
  out.wide = in->wide;
  out.columns = data_of<int32_t>(rows, Dtype::i32, n, "out_columns");
  out.values = data_of<void>(entries, in->wide ? Dtype::f64 : Dtype::f32, n, "out_values");
  const auto* in_names = data_of<int32_t>(names, Dtype::i32, in->n, "row_names");
  const int64_t room = memory->size();
  auto* counts = data_of<int32_t>(memory, Dtype::i32, room, "scratch");
  auto* out_starts = data_of<int64_t>(starts, Dtype::i64, n + 1, "out_offsets");
  auto* out_ids = data_of<int32_t>(found, Dtype::i32, n, "out_names");
  in.check_columns(room - 1);
  const py::gil_scoped_release release;
  return cpu::transpose(*in, in_names, room - 1, counts, out_starts, out_ids, out);
}

void multiply(
    py::handle offsets,
    py::handle columns,
    py::handle values,
    py::handle names,
    py::handle dense,
    py::handle out,
    bool add,
    int threads
) {
  const SparseArray sparse(offsets, columns, values);
  const Array rows(names, "names");
  const Array matrix(dense, "dense");
  const Array result(out, "out");
  for (const auto& [array, name] : {std::pair{&matrix, "dense"}, std::pair{&result, "out"}}) {
    const bool rows_contiguous = (*array)->ndim == 2 && (*array)->strides[1] == 1;
    check(rows_contiguous || (*array)->size() == 0, name, " must be [n, H] with contiguous rows");
  }
  check(
      matrix->shape[1] == result->shape[1],
      "out must have as many columns as dense, ",
      matrix->shape[1],
      ", got ",
      result->shape[1]
  );
  check(
      (matrix->dtype == Dtype::f64) == sparse->wide &&
          (result->dtype == Dtype::f64) == sparse->wide,
      "values, dense and out must all be float64 or none of them"
  );
  const auto* ids = data_of<int32_t>(rows, Dtype::i32, sparse->n, "names");
  sparse.check_columns(matrix->shape[0]);
  for (int64_t i = 0; i < sparse->n; ++i) {
    check(0 <= ids[i] && ids[i] < result->shape[0], "names must be rows of out, got ", ids[i]);
  }
  const py::gil_scoped_release release;
  cpu::multiply(*sparse, ids, matrix.view(), add, threads, result.view());
}

void add_row_sums(
    py::handle offsets, py::handle columns, py::handle values, py::handle names, py::handle out
) {
  const SparseArray sparse(offsets, columns, values);
  const Array rows(names, "names");
  const Array result(out, "out");
  const auto* ids = data_of<int32_t>(rows, Dtype::i32, sparse->n, "names");
  const int64_t n = result->size();
  data_of<void>(result, sparse->wide ? Dtype::f64 : Dtype::f32, n, "out");
  for (int64_t i = 0; i < sparse->n; ++i) {
    check(0 <= ids[i] && ids[i] < n, "names must be entries of out, got ", ids[i]);
  }
  cpu::add_row_sums(*sparse, ids, result.view());
}

}  // namespace

void register_support(py::module_& m) {
  m.def(
      "sparse_transpose",
      &transpose,
      "The transpose without its empty rows, whose number is returned; scratch [columns + 1].",
      py::arg("offsets"),
      py::arg("columns"),
      py::arg("values"),
      py::kw_only(),
      py::arg("row_names"),
      py::arg("scratch"),
      py::arg("out_offsets"),
      py::arg("out_names"),
      py::arg("out_columns"),
      py::arg("out_values")
  );
  m.def(
      "sparse_multiply",
      &multiply,
      "out[names] = sparse @ dense, or with add += it; other rows of out stay.",
      py::arg("offsets"),
      py::arg("columns"),
      py::arg("values"),
      py::kw_only(),
      py::arg("names"),
      py::arg("dense"),
      py::arg("out"),
      py::arg("add") = false,
      py::arg("threads") = 0
  );
  m.def(
      "sparse_add_row_sums",
      &add_row_sums,
      "out[names] += the sums of the rows' values.",
      py::arg("offsets"),
      py::arg("columns"),
      py::arg("values"),
      py::kw_only(),
      py::arg("names"),
      py::arg("out")
  );
}

}  // namespace logitless::bindings
