// What is done to a tile of logits before its rows are looked at.
#include <pybind11/pybind11.h>

#include "../cpu/transpose.h"
#include "dlpack.h"

namespace py = pybind11;

namespace logitless::bindings {

void register_tiles(py::module_& m) {
  m.def(
      "transpose_tile",
      [](py::handle tile, py::handle out, int threads) {
        const Array from(tile, "tile");
        const Array to(out, "out");
        const py::gil_scoped_release release;
        cpu::transpose_tile(from.view(), to.view(), threads);
      },
      "out[r, c] = tile[c, r] of 16-bit elements.",
      py::arg("tile"),
      py::arg("out"),
      py::arg("threads") = 0
  );
}

}  // namespace logitless::bindings
