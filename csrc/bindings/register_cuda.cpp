// CUDA row kernels for Python: as register_rows.cpp, on a device and a stream of it.
#include <pybind11/pybind11.h>

#include "../cuda/rows/rows.h"
#include "arrays/row_arrays.h"
#include "arrays/scalars.h"

namespace py = pybind11;

namespace logitless::bindings {
namespace {

// The emulator's device arrays are those of the CPU.
Place place_of(int device, int64_t stream) {
  if (cuda::build_info().emulated) return {};
  return {device, stream};
}

cuda::Upstream upstream_of(const std::optional<Array>& array, int64_t n) {
  if (!array) return {};
  const Dtype dtype = array->view().dtype;
  check(
      dtype == Dtype::f32 || dtype == Dtype::f64,
      array->name(),
      " must be float32 or float64, got ",
      dtype_name(dtype)
  );
  return {data_of<const void>(*array, dtype, n), dtype};
}

// The same as cuda::workspace_bytes, of any sizes.
int64_t workspace_of(int64_t n, int64_t columns) {
  int64_t bytes = 0;
  const int64_t splits = columns / cuda::kSmallestSplit + 1;
  const bool wraps = __builtin_mul_overflow(n, splits, &bytes) ||
                     __builtin_mul_overflow(bytes, int64_t{sizeof(cuda::Partial)}, &bytes);
  check(!wraps, "a tile of ", n, " rows and ", columns, " columns is larger than any memory");
  return cuda::workspace_bytes(n, columns);
}

class CudaRows {
 public:
  // The arrays are used on the streams of later calls, so nothing waits for them here.
  CudaRows(
      int64_t n,
      py::handle targets,
      py::handle mask,
      py::handle row_scale,
      double scale,
      py::handle bias,
      double pre,
      double softcap,
      int device
  )
      : arrays_(n, targets, mask, row_scale, scale, bias, pre, softcap, place_of(device, -1)),
        device_(device) {
    const cuda::BuildInfo build = cuda::build_info();
    if (!build.compiled) throw std::runtime_error(cuda::device_reason(device));
  }

  static int64_t workspace_bytes(int64_t n, int64_t columns, int itemsize) {
    check(itemsize == 2 || itemsize == 4, "itemsize must be 2 or 4, got ", itemsize);
    return workspace_of(count_of(n, kMostRows, "n"), count_of(columns, kMostColumns, "columns"));
  }

  void forward(
      py::handle logits,
      py::handle state,
      py::handle workspace,
      int64_t start,
      bool first,
      bool extras,
      int64_t stream
  ) const {
    const Place place = this->place();
    const Array tile(logits, "logits", Access::read, place);
    const Array states(state, "state", Access::write, place);
    const Array partials(workspace, "workspace", Access::write, place);
    arrays_.check_targets();
    check(partials->contiguous(), "workspace must be contiguous");
    const int64_t bytes = partials->size() * dtype_bytes(partials->dtype);
    const logitless::Rows rows = arrays_.of_tile(tile, start, Dtype::f32);
    if (tile->ndim > 0) workspace_of(n(), tile->shape[tile->ndim - 1]);
    auto* data = arrays_.states_of<RowState>(states);
    check_apart(arrays_, tile, states, partials);
    const py::gil_scoped_release release;
    cuda::rows_forward(
        rows, tile.view(), start, extras, first, data, partials->data, bytes, queue(stream)
    );
  }

  void finish(
      py::handle state,
      int64_t vocab,
      py::handle error,
      py::handle logp,
      py::handle entropy,
      py::handle lse,
      py::handle row_ids,
      py::handle varentropy,
      py::handle sum_p2,
      py::handle entropy_change,
      py::handle argmax,
      int64_t stream
  ) const {
    const Place place = this->place();
    const Array states(state, "state", Access::read, place);
    const Array flag(error, "error", Access::write, place);
    const auto ids = optional_array(row_ids, "row_ids", Access::read, place);
    arrays_.check_targets();
    count_of(vocab, kMostColumns, "vocab");
    const OutputArrays out(
        {logp, entropy, lse, varentropy, sum_p2, entropy_change, argmax}, n(), false, place
    );
    const auto* data = arrays_.states_of<const RowState>(states);
    const auto* names = data_of<const int64_t>(ids, Dtype::i64, n());
    auto* lowest = data_of<int64_t>(flag, Dtype::i64, 1);
    check_apart(arrays_, states, flag, ids, out);
    const py::gil_scoped_release release;
    cuda::rows_finalize(arrays_.rows(), data, vocab, names, out.view(), lowest, queue(stream));
  }

  void backward(
      py::handle logits,
      py::handle state,
      py::handle gradient,
      int64_t start,
      py::handle g_logp,
      py::handle g_entropy,
      py::handle g_lse,
      int64_t stream
  ) const {
    const Place place = this->place();
    const Array tile(logits, "logits", Access::read, place);
    const Array states(state, "state", Access::read, place);
    const Array out(gradient, "gradient", Access::write, place);
    const auto gl_array = optional_array(g_logp, "g_logp", Access::read, place);
    const auto ge_array = optional_array(g_entropy, "g_entropy", Access::read, place);
    const auto gz_array = optional_array(g_lse, "g_lse", Access::read, place);
    arrays_.check_targets();
    const cuda::Upstream gl = upstream_of(gl_array, n());
    const cuda::Upstream ge = upstream_of(ge_array, n());
    const cuda::Upstream gz = upstream_of(gz_array, n());
    const logitless::Rows rows = arrays_.of_tile(tile, start, Dtype::f32);
    const auto* data = arrays_.states_of<const RowState>(states);
    check_apart(arrays_, states, gl_array, ge_array, gz_array, out);
    if (!same_elements(tile.view(), out.view())) check_apart(tile, out);
    const py::gil_scoped_release release;
    cuda::rows_gradient(rows, tile.view(), start, data, gl, ge, gz, out.view(), queue(stream));
  }

 private:
  int64_t n() const { return arrays_.rows().n; }
  // Nobody has to wait for anybody: the caller works on the stream that it names.
  Place place() const { return place_of(device_, -1); }
  cuda::Stream queue(int64_t stream) const { return {device_, reinterpret_cast<void*>(stream)}; }

  RowArrays arrays_;
  int device_;
};

}  // namespace

void register_cuda(py::module_& m) {
  const auto none = py::none();
  py::class_<CudaRows>(m, "CudaRows", "Rows on a CUDA device; calls queue work on a stream.")
      .def(
          py::init<
              int64_t,
              py::handle,
              py::handle,
              py::handle,
              double,
              py::handle,
              double,
              double,
              int>(),
          py::arg("n"),
          py::kw_only(),
          py::arg("targets") = none,
          py::arg("mask") = none,
          py::arg("row_scale") = none,
          py::arg("scale") = 1.0,
          py::arg("bias") = none,
          py::arg("pre") = 1.0,
          py::arg("softcap") = 0.0,
          py::arg("device") = 0
      )
      .def_static(
          "workspace_bytes",
          &CudaRows::workspace_bytes,
          "Bytes of workspace that forward needs for a tile.",
          py::arg("n"),
          py::arg("columns"),
          py::arg("itemsize")
      )
      .def(
          "forward",
          &CudaRows::forward,
          "Fold a tile of logits [n, width] into state [n, 8].",
          py::arg("logits"),
          py::arg("state"),
          py::arg("workspace"),
          py::kw_only(),
          py::arg("start") = 0,
          py::arg("first") = true,
          py::arg("extras") = false,
          py::arg("stream") = 0
      )
      .def(
          "finish",
          &CudaRows::finish,
          "Turn state [n, 8] into outputs; a bad row is NaN and lowers error to row_id * 8 + kind.",
          py::arg("state"),
          py::arg("vocab"),
          py::arg("error"),
          py::kw_only(),
          py::arg("logp"),
          py::arg("entropy"),
          py::arg("lse"),
          py::arg("row_ids") = none,
          py::arg("varentropy") = none,
          py::arg("sum_p2") = none,
          py::arg("entropy_change") = none,
          py::arg("argmax") = none,
          py::arg("stream") = 0
      )
      .def(
          "backward",
          &CudaRows::backward,
          "Write d(logits) of a tile into gradient, which may be the tile.",
          py::arg("logits"),
          py::arg("state"),
          py::arg("gradient"),
          py::kw_only(),
          py::arg("start") = 0,
          py::arg("g_logp") = none,
          py::arg("g_entropy") = none,
          py::arg("g_lse") = none,
          py::arg("stream") = 0
      );
}

}  // namespace logitless::bindings
