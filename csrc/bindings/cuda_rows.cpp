// _core.rows.CudaRows: the row kernels on a CUDA device, on the stream that each call names.
#include "cuda_rows.h"

#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace logitless::bindings {
namespace {

int64_t workspace_bytes(int64_t n, int64_t columns, int itemsize) {
  check(itemsize == 2 || itemsize == 4, "itemsize must be 2 or 4, got ", itemsize);
  return workspace_of(count_of(n, kMostRows, "n"), count_of(columns, kMostColumns, "columns"));
}

}  // namespace

void register_cuda_rows(py::module_& m) {
  bind_rows<CudaDevice>(m, "CudaRows", "Rows on a CUDA device; calls queue work on a stream.")
      .def_static(
          "workspace_bytes",
          &workspace_bytes,
          "Bytes of workspace that forward needs for a tile.",
          py::arg("n"),
          py::arg("columns"),
          py::arg("itemsize")
      );
}

}  // namespace logitless::bindings
