// _core.rows: the row kernels, and the transpose of a tile.
#include <pybind11/pybind11.h>

#include "../cpu/rows/transpose.h"
#include "cpu_rows.h"

namespace py = pybind11;

namespace logitless::bindings {
namespace {

void merge(const CpuRows& rows, py::handle parts, py::handle state) {
  const Array all(parts, "parts", Access::read);
  const Array states(state, "state", Access::write);
  const int64_t n = rows.n();
  check(
      all->ndim == 3 && all->shape[1] == n && all->shape[2] == 8,
      "parts must be [parts, ",
      n,
      ", 8]"
  );
  const auto* data =
      reinterpret_cast<const RowState*>(data_of<const double>(all, Dtype::f64, all->size()));
  auto* merged = rows.arrays().states_of<RowState>(states);
  check_apart(rows, all, states);
  const py::gil_scoped_release release;
  cpu::rows_merge(rows.rows(), data, all->shape[0], merged);
}

void exp2_floats(py::handle t, py::handle out) {
  const Array in(t, "t", Access::read);
  const Array result(out, "out", Access::write);
  const int64_t n = in->size();
  check(n % 64 == 0, "t must hold a multiple of 64 elements, got ", n);
  const auto* source = data_of<const float>(in, Dtype::f32, n);
  auto* target = data_of<float>(result, Dtype::f32, n);
  check_apart(in, result);
  const py::gil_scoped_release release;
  cpu::row_kernels().exp2(source, n, target);
}

void transpose(py::handle tile, py::handle out, int threads) {
  const Array from(tile, "tile", Access::read);
  const Array to(out, "out", Access::write);
  check(from->ndim == 2, "tile must be [n, width], got ", from->ndim, " dimensions");
  const Dtype dtype = from->dtype;
  check(dtype_bytes(dtype) == 2, "tile must be of 16 bits, got ", dtype_name(dtype));
  check(
      to->ndim == 2 && to->shape[0] == from->shape[1] && to->shape[1] == from->shape[0],
      "out must be [width, n] where tile is [n, width]"
  );
  data_of<const void>(from, dtype, from->size());
  data_of<void>(to, dtype, from->size());
  check_apart(from, to);
  const int team = threads_of(threads);
  const py::gil_scoped_release release;
  cpu::transpose(from.view(), to.view(), team);
}

}  // namespace

void register_rows(py::module_& m) {
  m.attr("BLOCK") = kBlock;
  bind_rows<CpuDevice>(m, "Rows", "What the tiles of one call share; a method per row kernel.")
      .def(
          "merge",
          &merge,
          "Merge the states of consecutive parts of the vocabulary, [parts, n, 8], into state.",
          py::arg("parts"),
          py::arg("state")
      );
  m.def(
      "exp2",
      &exp2_floats,
      "The row kernels' vector 2^t, for its test.",
      py::arg("t"),
      py::arg("out")
  );
  m.def(
      "transpose",
      &transpose,
      "Write tile [n, width] of 16-bit numbers to out [width, n].",
      py::arg("tile"),
      py::arg("out"),
      py::arg("threads") = 0
  );
  m.def(
      "prefer_transposed_gemm",
      &cpu::prefer_transposed_gemm,
      "Whether a product of 16-bit matrices is faster with its left operand transposed first."
  );
}

}  // namespace logitless::bindings
