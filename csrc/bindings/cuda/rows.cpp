// _core.rows.CudaRows: the row kernels on a CUDA device, on the stream that each call names.
#include "rows.h"

#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace logitless::bindings {

int64_t cuda_workspace_bytes(int64_t n, int64_t columns) {
  int64_t bytes = 0;
  const int64_t splits = columns / cuda::kSmallestSplit + 1;
  const bool wraps = __builtin_mul_overflow(n, splits, &bytes) ||
                     __builtin_mul_overflow(bytes, int64_t{sizeof(cuda::Partial)}, &bytes);
  check(!wraps, "a tile of ", n, " rows and ", columns, " columns is larger than any memory");
  return cuda::workspace_bytes(n, columns);
}

namespace {

int64_t workspace_bytes(int64_t n, int64_t columns, int itemsize) {
  check(itemsize == 2 || itemsize == 4, "itemsize must be 2 or 4, got ", itemsize);
  return cuda_workspace_bytes(
      count_of(n, kMostRows, "n"), count_of(columns, kMostColumns, "columns")
  );
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
