#include <pybind11/pybind11.h>

#include "../cpu/transpose.h"
#include "dlpack.h"

namespace py = pybind11;

namespace logitless::bindings {
namespace {

void transpose(py::handle tile, py::handle out, int threads) {
  const Array from(tile, "tile");
  const Array to(out, "out");
  check(from->ndim == 2, "tile must be [n, width], got ", from->ndim, " dimensions");
  check(dtype_bytes(from->dtype) == 2, "tile must be of 16 bits, got ", dtype_name(from->dtype));
  check(
      to->ndim == 2 && to->shape[0] == from->shape[1] && to->shape[1] == from->shape[0],
      "out must be [width, n] where tile is [n, width]"
  );
  const int64_t size = from->size();
  contiguous_data<void>(from.view(), from->dtype, size, "tile");
  contiguous_data<void>(to.view(), from->dtype, size, "out");
  const py::gil_scoped_release release;
  cpu::transpose(from.view(), to.view(), threads);
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
