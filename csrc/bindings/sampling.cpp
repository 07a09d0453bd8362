// _core.sampling: draws of a token per row, from all of the vocabulary or from its top.
#include <pybind11/pybind11.h>

#include "../cpu/sampling/sample.h"
#include "../cpu/sampling/truncated.h"
#include "cpu_rows.h"
#include "sampling_arguments.h"

namespace py = pybind11;

namespace logitless::bindings {
namespace {

void sample(
    const CpuRows& rows,
    py::handle logits,
    py::handle state,
    py::handle best,
    py::handle row_ids,
    uint64_t seed,
    uint64_t step,
    int64_t start,
    bool first
) {
  const Array tile(logits, "logits", Access::read);
  const Array states(state, "state", Access::write);
  const Array bests(best, "best", Access::write);
  const Array ids(row_ids, "row_ids", Access::read);
  const int64_t n = rows.n();
  const SampleKey key = key_of(ids, n, seed, step);
  const logitless::Rows of_tile = rows.of_tile(tile, start);
  check_ids(tile, start, kMostSampled, "sampling");
  auto* data = rows.arrays().states_of<RowState>(states);
  auto* best_data = reinterpret_cast<SampleState*>(data_of<double>(bests, Dtype::f64, 2 * n));
  check_apart(rows, tile, states, bests, ids);
  const py::gil_scoped_release release;
  cpu::rows_sample(of_tile, tile.view(), start, first, key, data, best_data);
}

// From a finalized top-k where one is given, else from whole rows of logits [n, V].
void draw_truncated(
    const CpuRows& rows,
    py::handle state,
    py::handle token,
    const CpuTopK* topk,
    py::handle logits,
    int64_t top_k,
    double top_p,
    double min_p,
    py::handle set_sizes,
    py::handle set_ids,
    py::handle row_ids,
    uint64_t seed,
    uint64_t step
) {
  const Array states(state, "state", Access::write);
  const auto counts = optional_array(set_sizes, "set_sizes", Access::write);
  const auto sets = optional_array(set_ids, "set_ids", Access::write);
  const Array tokens(token, "token", Access::write);
  const Array ids(row_ids, "row_ids", Access::read);
  const auto whole = optional_array(logits, "logits", Access::read);
  const int64_t n = rows.n();
  const SampleKey key = key_of(ids, n, seed, step);
  const Truncation truncation = truncation_of(top_k, top_p, min_p);
  check(whole.has_value() != (topk != nullptr), "either topk or logits must be given");
  check(!sets || whole, "set_ids goes with logits: a topk has its own");
  auto* data = rows.arrays().states_of<RowState>(states);
  cpu::TruncatedDraw drawn{data_of<int64_t>(tokens, Dtype::i64, n)};
  drawn.kept = data_of<int64_t>(counts, Dtype::i64, n);
  check_apart(rows, states, tokens, ids, whole, topk, counts, sets);
  if (whole) {
    const logitless::Rows of_tile = rows.of_tile(*whole, 0);
    if (sets) {
      check((*whole)->ndim == 2, "logits must be [n, V] with set_ids");
      check((*whole)->shape[1] <= INT32_MAX, "set_ids needs ids below 2^31");
      drawn.ids = data_of<int32_t>(sets, Dtype::i32, (*whole)->size());
    }
    const py::gil_scoped_release release;
    cpu::draw_from_rows(of_tile, whole->view(), truncation, key, data, drawn);
    return;
  }
  const TopK& kept = topk->finalized(n);
  const py::gil_scoped_release release;
  cpu::draw_from_topk(rows.rows(), kept, truncation, key, data, drawn);
}

}  // namespace

void register_sampling(py::module_& m) {
  const auto none = py::none();
  m.def(
      "sample",
      &sample,
      "Take a tile into the state and draw on the way; best [n, 2] holds score and token, state "
      "the "
      "token's y.",
      py::arg("rows"),
      py::arg("logits"),
      py::arg("state"),
      py::arg("best"),
      py::kw_only(),
      py::arg("row_ids"),
      py::arg("seed"),
      py::arg("step"),
      py::arg("start") = 0,
      py::arg("first") = true
  );
  m.def(
      "draw_truncated",
      &draw_truncated,
      "Draw from the top_k, top_p and min_p of a finalized topk (token -1: it does not suffice) or "
      "of whole rows of logits; set_sizes [n], and of "
      "logits set_ids [n, V], say what is drawn from.",
      py::arg("rows"),
      py::arg("state"),
      py::arg("token"),
      py::kw_only(),
      py::arg("topk") = none,
      py::arg("logits") = none,
      py::arg("top_k"),
      py::arg("top_p"),
      py::arg("min_p") = 0.0,
      py::arg("set_sizes") = none,
      py::arg("set_ids") = none,
      py::arg("row_ids"),
      py::arg("seed"),
      py::arg("step")
  );
}

}  // namespace logitless::bindings
