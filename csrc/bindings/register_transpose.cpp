#include <pybind11/pybind11.h>

#include "../cpu/rows/transpose.h"
#include "arrays/overlap.h"
#include "arrays/scalars.h"

namespace py = pybind11;

namespace logitless::bindings {
namespace {

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

void register_transpose(py::module_& m) {
  m.def(
      "transpose",
      &transpose,
      "Write tile [n, width] of 16-bit numbers to out [width, n].",
      py::arg("tile"),
      py::arg("out"),
      py::arg("threads") = 0
  );
  m.def("turns_pay", &cpu::turns_pay, "Whether products of 16 bits want plain operands here.");
}

}  // namespace logitless::bindings
