// _core.sampling.cuda_*: draws of a token per row on a CUDA device, on the stream that each call
// names.
#include "../../cuda/sampling/sampling.h"

#include <pybind11/pybind11.h>

#include "../sampling_arguments.h"
#include "rows.h"

namespace py = pybind11;

namespace logitless::bindings {
namespace {

int64_t workspace_bytes(int64_t n, int64_t columns) {
  // larger, and refused where it is larger than any memory
  cuda_workspace_bytes(count_of(n, kMostRows, "n"), count_of(columns, kMostColumns, "columns"));
  return cuda::sampling_workspace_bytes(n, columns);
}

cuda::SamplingWorkspace workspace_in(const Array& memory, const Array& tile, int64_t n) {
  check(memory->contiguous(), "workspace must be contiguous");
  if (tile->ndim > 0) workspace_bytes(n, tile->shape[tile->ndim - 1]);
  return {memory->data, memory->size() * dtype_bytes(memory->dtype)};
}

void sample(
    const CudaRows& rows,
    py::handle logits,
    py::handle state,
    py::handle best,
    py::handle workspace,
    py::handle row_ids,
    uint64_t seed,
    uint64_t step,
    int64_t start,
    bool first,
    int64_t stream
) {
  const Place place = rows.device().place();
  const Array tile(logits, "logits", Access::read, place);
  const Array states(state, "state", Access::write, place);
  const Array bests(best, "best", Access::write, place);
  const Array memory(workspace, "workspace", Access::write, place);
  const Array ids(row_ids, "row_ids", Access::read, place);
  const int64_t n = rows.n();
  const SampleKey key = key_of(ids, n, seed, step);
  const logitless::Rows of_tile = rows.of_tile(tile, start);
  check_ids(tile, start, kMostSampled, "sampling");
  const cuda::SamplingWorkspace room = workspace_in(memory, tile, n);
  auto* data = rows.arrays().states_of<RowState>(states);
  auto* best_data = reinterpret_cast<SampleState*>(data_of<double>(bests, Dtype::f64, 2 * n));
  check_apart(rows, tile, states, bests, memory, ids);
  const cuda::Stream queue = rows.device().queue(stream);
  const py::gil_scoped_release release;
  cuda::rows_sample(of_tile, tile.view(), start, first, key, data, best_data, room, queue);
}

void draw_truncated(
    const CudaRows& rows,
    py::handle logits,
    py::handle state,
    py::handle token,
    py::handle workspace,
    int64_t top_k,
    double top_p,
    double min_p,
    py::handle set_sizes,
    py::handle set_bits,
    py::handle kept_logp,
    py::handle row_ids,
    uint64_t seed,
    uint64_t step,
    int64_t stream
) {
  const Place place = rows.device().place();
  const Array tile(logits, "logits", Access::read, place);
  const Array states(state, "state", Access::write, place);
  const Array tokens(token, "token", Access::write, place);
  const Array memory(workspace, "workspace", Access::write, place);
  const Array sizes(set_sizes, "set_sizes", Access::write, place);
  const auto sets = optional_array(set_bits, "set_bits", Access::write, place);
  const Array logps(kept_logp, "kept_logp", Access::write, place);
  const Array ids(row_ids, "row_ids", Access::read, place);
  const int64_t n = rows.n();
  const SampleKey key = key_of(ids, n, seed, step);
  const Truncation truncation = truncation_of(top_k, top_p, min_p);
  const logitless::Rows of_tile = rows.of_tile(tile, 0);
  check_ids(tile, 0, INT32_MAX, "a truncated draw");
  const cuda::SamplingWorkspace room = workspace_in(memory, tile, n);
  auto* data = rows.arrays().states_of<RowState>(states);
  cuda::TruncatedDraw drawn{
      data_of<int64_t>(tokens, Dtype::i64, n),
      data_of<int64_t>(sizes, Dtype::i64, n),
      data_of<float>(logps, Dtype::f32, n)
  };
  if (sets) {
    const int64_t columns = tile->ndim > 0 ? tile->shape[tile->ndim - 1] : 0;
    drawn.bits = data_of<uint8_t>(sets, Dtype::u8, n * ((columns + 7) / 8));
  }
  check_apart(rows, tile, states, tokens, memory, sizes, sets, logps, ids);
  const cuda::Stream queue = rows.device().queue(stream);
  const py::gil_scoped_release release;
  cuda::draw_from_rows(of_tile, tile.view(), truncation, key, data, drawn, room, queue);
}

}  // namespace

void register_cuda_sampling(py::module_& m) {
  m.def(
      "cuda_workspace_bytes",
      &workspace_bytes,
      "Bytes of workspace that a draw needs for a tile.",
      py::arg("n"),
      py::arg("columns")
  );
  m.def(
      "cuda_sample",
      &sample,
      "Draw among the blocks of a tile and those seen before; best [n, 2] holds score and token, "
      "state the token's y. Takes nothing into the state: forward does.",
      py::arg("rows"),
      py::arg("logits"),
      py::arg("state"),
      py::arg("best"),
      py::kw_only(),
      py::arg("workspace"),
      py::arg("row_ids"),
      py::arg("seed"),
      py::arg("step"),
      py::arg("start") = 0,
      py::arg("first") = true,
      py::arg("stream") = 0
  );
  m.def(
      "cuda_draw_truncated",
      &draw_truncated,
      "Draw from the top_k, top_p and min_p of whole rows of logits; set_sizes [n], kept_logp [n] "
      "and set_bits [n, ceil(V / 8)] say what is drawn from.",
      py::arg("rows"),
      py::arg("logits"),
      py::arg("state"),
      py::arg("token"),
      py::kw_only(),
      py::arg("workspace"),
      py::arg("top_k"),
      py::arg("top_p"),
      py::arg("min_p"),
      py::arg("set_sizes"),
      py::arg("set_bits") = py::none(),
      py::arg("kept_logp"),
      py::arg("row_ids"),
      py::arg("seed"),
      py::arg("step"),
      py::arg("stream") = 0
  );
}

}  // namespace logitless::bindings
