// _core.topk.cuda_*: the largest logits of rows and sparse rows on a CUDA device, on the stream
// that each call names. What the numbers in the arrays are the host does not see.
#include <pybind11/pybind11.h>

#include "../arrays/cuda_sparse_array.h"
#include "../arrays/sparse_checks.h"
#include "rows.h"

namespace py = pybind11;

namespace logitless::bindings {
namespace {

void finalize(const CudaRows& rows, py::handle state, const CudaTopK& topk, int64_t stream) {
  const Array states(state, "state", Access::read, rows.device().place());
  const auto* data = rows.arrays().states_of<const RowState>(states);
  const TopK& kept = rows.device().kept(topk, rows.n());
  check_apart(rows, states, topk);
  const py::gil_scoped_release release;
  cuda::topk_finalize(rows.rows(), data, kept, rows.device().queue(stream));
}

void recapture(
    const CudaRows& rows,
    py::handle logits,
    py::handle state,
    const CudaTopK& topk,
    int64_t start,
    bool first,
    int64_t stream
) {
  const Place place = rows.device().place();
  const Array tile(logits, "logits", Access::read, place);
  const Array states(state, "state", Access::read, place);
  const auto* data = rows.arrays().states_of<const RowState>(states);
  const logitless::Rows here = rows.of_tile(tile, start);
  const TopK& kept = rows.device().kept(topk, here.n);
  check_ids(tile, start, INT32_MAX, "topk");
  check_apart(rows, tile, states, topk);
  const py::gil_scoped_release release;
  cuda::topk_capture(
      here, tile.view(), start, first, data, nullptr, kept, rows.device().queue(stream)
  );
}

void measure(
    const CudaRows& rows,
    py::handle state,
    const CudaTopK& topk,
    py::handle dropped_mass,
    py::handle dropped_entropy,
    py::handle wider,
    int64_t step,
    int64_t most,
    double enough,
    double slack,
    int64_t stream
) {
  const Place place = rows.device().place();
  const Array states(state, "state", Access::read, place);
  const Array masses(dropped_mass, "dropped_mass", Access::write, place);
  const Array entropies(dropped_entropy, "dropped_entropy", Access::write, place);
  const Array more(wider, "wider", Access::write, place);
  rows.arrays().check_targets();
  const Economy economy = economy_of(step, most, enough, slack);
  const int64_t n = rows.n();
  const auto* data = rows.arrays().states_of<const RowState>(states);
  const TopK& kept = rows.device().kept(topk, n);
  const Dropped dropped{
      data_of<double>(masses, Dtype::f64, n),
      data_of<double>(entropies, Dtype::f64, n),
      data_of<uint8_t>(more, Dtype::boolean, n)
  };
  check_apart(rows, states, topk, masses, entropies, more);
  const py::gil_scoped_release release;
  cuda::topk_measure(rows.rows(), data, kept, economy, dropped, rows.device().queue(stream));
}

void sparse_gradient(
    const CudaRows& rows,
    py::handle state,
    const CudaTopK& topk,
    py::handle index,
    py::handle offsets,
    py::handle columns,
    py::handle values,
    py::handle g_logp,
    py::handle g_entropy,
    py::handle g_lse,
    int64_t stream
) {
  const Place place = rows.device().place();
  const Array states(state, "state", Access::read, place);
  const Array which(index, "index", Access::read, place);
  const CudaSparseArray out(offsets, columns, values, Access::write, Access::write, place);
  const UpstreamArrays upstream(g_logp, g_entropy, g_lse, place);
  rows.arrays().check_targets();
  const int64_t n = rows.n();
  const auto of = [&](const auto& array) { return upstream_of(array, n); };
  const cuda::Upstream gl = of(upstream.logp), ge = of(upstream.entropy), gz = of(upstream.lse);
  const auto* data = rows.arrays().states_of<const RowState>(states);
  const TopK& kept = rows.device().kept(topk, n);
  const auto* row_of = data_of<const int64_t>(which, Dtype::i64, out->n);
  check_apart(rows, states, topk, which, out, upstream);
  const py::gil_scoped_release release;
  cuda::sparse_gradient(
      rows.rows(), data, kept, row_of, gl, ge, gz, *out, rows.device().queue(stream)
  );
}

// [n, H] in a type that kernels of a device know.
void check_matrix(const Array& array) {
  cuda::visit_storage(array->dtype, array.name(), [](auto) {});
  check_rows_of_matrix(array);
}

void multiply(
    py::handle offsets,
    py::handle columns,
    py::handle values,
    py::handle names,
    py::handle dense,
    py::handle out,
    bool add,
    py::handle chains,
    py::handle sums,
    int device,
    int64_t stream
) {
  const Place place = cuda_place(device);
  const CudaSparseArray sparse(offsets, columns, values, Access::read, Access::read, place);
  const Array rows(names, "names", Access::read, place);
  const Array matrix(dense, "dense", Access::read, place);
  const Array result(out, "out", Access::write, place);
  const auto ends = optional_array(chains, "chains", Access::read, place);
  const auto memory = optional_array(sums, "sums", Access::write, place);
  for (const Array* array : {&matrix, &result}) check_matrix(*array);
  check_same_width(matrix, result);
  check(ends.has_value() == memory.has_value(), "chains and sums must be given together");
  const int64_t width = matrix->shape[1];
  cuda::Chains of_chains;
  if (ends) {
    check((*memory)->ndim == 2, "sums must be [slots, H], got ", (*memory)->ndim, " dimensions");
    of_chains.slots = (*memory)->shape[0];
    of_chains.ends = data_of<const int64_t>(*ends, Dtype::i64, sparse->n);
    of_chains.sums = data_of<float>(*memory, Dtype::f32, of_chains.slots * width);
  }
  const auto* ids = data_of<const int32_t>(rows, Dtype::i32, sparse->n);
  check_apart(sparse, rows, matrix, result, ends, memory);
  const py::gil_scoped_release release;
  cuda::sparse_multiply(
      *sparse, ids, matrix.view(), add, of_chains, result.view(), cuda_queue(device, stream)
  );
}

void add_row_sums(
    py::handle offsets,
    py::handle columns,
    py::handle values,
    py::handle names,
    py::handle out,
    int device,
    int64_t stream
) {
  const Place place = cuda_place(device);
  const CudaSparseArray sparse(offsets, columns, values, Access::read, Access::read, place);
  const Array rows(names, "names", Access::read, place);
  const Array result(out, "out", Access::write, place);
  const auto* ids = data_of<const int32_t>(rows, Dtype::i32, sparse->n);
  const int64_t n = result->size();
  auto* data = data_of<float>(result, Dtype::f32, n);
  check_apart(sparse, rows, result);
  const py::gil_scoped_release release;
  cuda::sparse_add_row_sums(*sparse, ids, data, n, cuda_queue(device, stream));
}

}  // namespace

void register_cuda_topk(py::module_& m) {
  const auto none = py::none();
  m.attr("CHAIN") = kChain;
  m.def(
      "cuda_finalize",
      &finalize,
      "finalize on a CUDA device.",
      py::arg("rows"),
      py::arg("state"),
      py::arg("topk"),
      py::arg("stream") = 0
  );
  m.def(
      "cuda_recapture",
      &recapture,
      "recapture on a CUDA device.",
      py::arg("rows"),
      py::arg("logits"),
      py::arg("state"),
      py::arg("topk"),
      py::kw_only(),
      py::arg("start"),
      py::arg("first"),
      py::arg("stream") = 0
  );
  m.def(
      "cuda_measure",
      &measure,
      "measure on a CUDA device.",
      py::arg("rows"),
      py::arg("state"),
      py::arg("topk"),
      py::kw_only(),
      py::arg("dropped_mass"),
      py::arg("dropped_entropy"),
      py::arg("wider"),
      py::arg("step"),
      py::arg("most"),
      py::arg("enough"),
      py::arg("slack"),
      py::arg("stream") = 0
  );
  m.def(
      "cuda_sparse_gradient",
      &sparse_gradient,
      "sparse_gradient on a CUDA device.",
      py::arg("rows"),
      py::arg("state"),
      py::arg("topk"),
      py::kw_only(),
      py::arg("index"),
      py::arg("offsets"),
      py::arg("columns"),
      py::arg("values"),
      py::arg("g_logp") = none,
      py::arg("g_entropy") = none,
      py::arg("g_lse") = none,
      py::arg("stream") = 0
  );
  m.def(
      "cuda_sparse_multiply",
      &multiply,
      "sparse_multiply on a CUDA device. Rows of more than CHAIN entries are added up chain by "
      "chain where chains [n], the chains of such rows up to each, and memory for their sums are "
      "given. With add, rows without entries stay.",
      py::arg("offsets"),
      py::arg("columns"),
      py::arg("values"),
      py::kw_only(),
      py::arg("names"),
      py::arg("dense"),
      py::arg("out"),
      py::arg("add") = false,
      py::arg("chains") = none,
      py::arg("sums") = none,
      py::arg("device") = 0,
      py::arg("stream") = 0
  );
  m.def(
      "cuda_sparse_add_row_sums",
      &add_row_sums,
      "sparse_add_row_sums on a CUDA device.",
      py::arg("offsets"),
      py::arg("columns"),
      py::arg("values"),
      py::kw_only(),
      py::arg("names"),
      py::arg("out"),
      py::arg("device") = 0,
      py::arg("stream") = 0
  );
}

}  // namespace logitless::bindings
