// _core.sets.cuda_*: rows over sets of the vocabulary on a CUDA device, on the stream that each
// call names. What the numbers in the arrays are the host does not see.
#include "../../cuda/topk/sets.h"

#include <pybind11/pybind11.h>

#include "../arrays/cuda_sparse_array.h"
#include "../arrays/sparse_checks.h"
#include "rows.h"

namespace py = pybind11;

namespace logitless::bindings {
namespace {

// [n, width] in a type that kernels of a device know.
void check_matrix(const Array& array) {
  cuda::visit_storage(array->dtype, array.name(), [](auto) {});
  check_rows_of_matrix(array);
}

void check_rows(const CudaSparseArray& sets, const Array& array) {
  check_matrix(array);
  const int64_t got = array->shape[0];
  check(got == sets->n, array.name(), " must have ", sets->n, " rows, got ", got);
}

void logits(
    py::handle offsets,
    py::handle columns,
    py::handle values,
    py::handle hidden,
    py::handle weight,
    int device,
    int64_t stream
) {
  const Place place = cuda_place(device);
  const CudaSparseArray sets(offsets, columns, values, Access::read, Access::write, place);
  const Array left(hidden, "hidden", Access::read, place);
  const Array right(weight, "weight", Access::read, place);
  check_rows(sets, left);
  check_matrix(right);
  check(left->dtype == right->dtype, "hidden and weight must share one dtype");
  check_same_width(left, right);
  check_apart(sets, left, right);
  const py::gil_scoped_release release;
  cuda::set_logits(*sets, left.view(), right.view(), cuda_queue(device, stream));
}

void read_tile(
    py::handle offsets,
    py::handle columns,
    py::handle values,
    py::handle tile,
    int64_t start,
    int device,
    int64_t stream
) {
  const Place place = cuda_place(device);
  const CudaSparseArray sets(offsets, columns, values, Access::read, Access::write, place);
  const Array from(tile, "tile", Access::read, place);
  check_rows(sets, from);
  count_of(start, INT32_MAX, "start");
  check_apart(sets, from);
  const py::gil_scoped_release release;
  cuda::read_set_tile(*sets, from.view(), start, cuda_queue(device, stream));
}

void write_tile(
    py::handle offsets,
    py::handle columns,
    py::handle values,
    py::handle tile,
    int64_t start,
    int device,
    int64_t stream
) {
  const Place place = cuda_place(device);
  const CudaSparseArray sets(offsets, columns, values, Access::read, Access::read, place);
  const Array to(tile, "tile", Access::write, place);
  check_rows(sets, to);
  count_of(start, INT32_MAX, "start");
  check_apart(sets, to);
  const py::gil_scoped_release release;
  cuda::write_set_tile(*sets, to.view(), start, cuda_queue(device, stream));
}

// The rows of a call over sets: logits that have their bias.
logitless::Rows rows_of(const CudaRows& rows, const CudaSparseArray& sets) {
  rows.arrays().check_targets();
  const logitless::Rows found = rows.rows();
  check(found.n == sets->n, "offsets must be those of ", found.n, " rows, got ", sets->n);
  check(found.transform.bias == nullptr, "rows must have no bias: values have it");
  return found;
}

void forward(
    const CudaRows& rows,
    py::handle offsets,
    py::handle columns,
    py::handle values,
    py::handle state,
    bool extras,
    int64_t stream
) {
  const Place place = rows.device().place();
  const CudaSparseArray sets(offsets, columns, values, Access::read, Access::read, place);
  const Array states(state, "state", Access::write, place);
  const logitless::Rows found = rows_of(rows, sets);
  auto* data = rows.arrays().states_of<RowState>(states);
  check_apart(rows, sets, states);
  const py::gil_scoped_release release;
  cuda::set_forward(found, *sets, extras, data, rows.device().queue(stream));
}

void gradient(
    const CudaRows& rows,
    py::handle offsets,
    py::handle columns,
    py::handle values,
    py::handle state,
    py::handle gradient,
    py::handle g_logp,
    py::handle g_entropy,
    py::handle g_lse,
    int64_t stream
) {
  const Place place = rows.device().place();
  const CudaSparseArray sets(offsets, columns, values, Access::read, Access::read, place);
  const Array states(state, "state", Access::read, place);
  const Array out(gradient, "gradient", Access::write, place);
  const UpstreamArrays upstream(g_logp, g_entropy, g_lse, place);
  const logitless::Rows found = rows_of(rows, sets);
  const auto of = [&](const auto& array) { return upstream_of(array, found.n); };
  const cuda::Upstream gl = of(upstream.logp), ge = of(upstream.entropy), gz = of(upstream.lse);
  const auto* data = rows.arrays().states_of<const RowState>(states);
  auto* d_values = data_of<float>(out, Dtype::f32, sets->entries);
  check_apart(rows, sets, states, upstream, out);
  const py::gil_scoped_release release;
  cuda::set_gradient(found, *sets, data, gl, ge, gz, d_values, rows.device().queue(stream));
}

}  // namespace

void register_cuda_sets(py::module_& m) {
  const auto none = py::none();
  m.def(
      "cuda_logits",
      &logits,
      "logits on a CUDA device.",
      py::arg("offsets"),
      py::arg("columns"),
      py::arg("values"),
      py::kw_only(),
      py::arg("hidden"),
      py::arg("weight"),
      py::arg("device") = 0,
      py::arg("stream") = 0
  );
  m.def(
      "cuda_read_tile",
      &read_tile,
      "read_tile on a CUDA device. Offsets may be those of some rows of larger sets.",
      py::arg("offsets"),
      py::arg("columns"),
      py::arg("values"),
      py::kw_only(),
      py::arg("tile"),
      py::arg("start"),
      py::arg("device") = 0,
      py::arg("stream") = 0
  );
  m.def(
      "cuda_write_tile",
      &write_tile,
      "Write the entries into a tile on a CUDA device, whose other numbers stay.",
      py::arg("offsets"),
      py::arg("columns"),
      py::arg("values"),
      py::kw_only(),
      py::arg("tile"),
      py::arg("start"),
      py::arg("device") = 0,
      py::arg("stream") = 0
  );
  m.def(
      "cuda_forward",
      &forward,
      "forward on a CUDA device.",
      py::arg("rows"),
      py::arg("offsets"),
      py::arg("columns"),
      py::arg("values"),
      py::arg("state"),
      py::kw_only(),
      py::arg("extras") = false,
      py::arg("stream") = 0
  );
  m.def(
      "cuda_gradient",
      &gradient,
      "gradient on a CUDA device.",
      py::arg("rows"),
      py::arg("offsets"),
      py::arg("columns"),
      py::arg("values"),
      py::arg("state"),
      py::arg("gradient"),
      py::kw_only(),
      py::arg("g_logp") = none,
      py::arg("g_entropy") = none,
      py::arg("g_lse") = none,
      py::arg("stream") = 0
  );
}

}  // namespace logitless::bindings
