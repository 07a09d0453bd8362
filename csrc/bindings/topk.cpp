// _core.topk: the largest logits of rows, the sparse rows made of them, and products of those.
#include <pybind11/pybind11.h>

#include "arrays/sparse_array.h"
#include "arrays/sparse_checks.h"
#include "cpu_rows.h"

namespace py = pybind11;

namespace logitless::bindings {
namespace {

void finalize(const CpuRows& rows, py::handle state, const CpuTopK& topk) {
  const Array states(state, "state", Access::read);
  const auto* data = rows.arrays().states_of<const RowState>(states);
  const TopK& kept = topk.filled(rows.n(), topk.capacity());
  check_apart(rows, states, topk);
  const py::gil_scoped_release release;
  cpu::finalize_topk(rows.rows(), data, kept);
}

void recapture(
    const CpuRows& rows,
    py::handle logits,
    py::handle state,
    const CpuTopK& topk,
    int64_t start,
    bool first
) {
  const Array tile(logits, "logits", Access::read);
  const Array states(state, "state", Access::read);
  const auto* data = rows.arrays().states_of<const RowState>(states);
  const logitless::Rows here = rows.of_tile(tile, start);
  check_ids(tile, start, INT32_MAX, "topk");
  check_apart(rows, tile, states, topk);
  const TopK& kept = first ? topk.of_rows(here.n) : topk.filled(here.n, topk.capacity());
  const py::gil_scoped_release release;
  cpu::recapture_topk(here, tile.view(), start, first, data, kept);
}

void measure(
    const CpuRows& rows,
    py::handle state,
    const CpuTopK& topk,
    py::handle dropped_mass,
    py::handle dropped_entropy,
    py::handle wider,
    int64_t step,
    int64_t most,
    double enough,
    double slack
) {
  const Array states(state, "state", Access::read);
  const Array masses(dropped_mass, "dropped_mass", Access::write);
  const Array entropies(dropped_entropy, "dropped_entropy", Access::write);
  const Array more(wider, "wider", Access::write);
  rows.arrays().check_targets();
  const Economy economy = economy_of(step, most, enough, slack);
  const int64_t n = rows.n();
  const auto* data = rows.arrays().states_of<const RowState>(states);
  const TopK& kept = topk.finalized(n);
  const Dropped dropped{
      data_of<double>(masses, Dtype::f64, n),
      data_of<double>(entropies, Dtype::f64, n),
      data_of<uint8_t>(more, Dtype::boolean, n)
  };
  const logitless::Rows here = rows.rows();
  for (int64_t row = 0; row < n; ++row) {
    if (here.active(row)) count_of(here.targets[row], INT32_MAX, "targets");
  }
  check_apart(rows, states, topk, masses, entropies, more);
  const py::gil_scoped_release release;
  cpu::measure_topk(here, data, kept, economy, dropped);
}

void sparse_gradient(
    const CpuRows& rows,
    py::handle state,
    const CpuTopK& topk,
    py::handle index,
    py::handle offsets,
    py::handle columns,
    py::handle values,
    py::handle g_logp,
    py::handle g_entropy,
    py::handle g_lse
) {
  const Array states(state, "state", Access::read);
  const Array which(index, "index", Access::read);
  const SparseArray out(offsets, columns, values, Access::write);
  const UpstreamArrays upstream(g_logp, g_entropy, g_lse, Place{});
  rows.arrays().check_targets();
  const int64_t n = rows.n();
  const auto of = [&](const std::optional<Array>& array) {
    return data_of<const double>(array, Dtype::f64, n);
  };
  const double *gl = of(upstream.logp), *ge = of(upstream.entropy), *gz = of(upstream.lse);
  const auto* data = rows.arrays().states_of<const RowState>(states);
  const TopK& kept = topk.filled(n, topk.capacity());
  const auto* row_of = data_of<const int64_t>(which, Dtype::i64, out->n);
  for (int64_t i = 0; i < out->n; ++i) {
    check(0 <= row_of[i] && row_of[i] < n, "index must be in [0, ", n, "), got ", row_of[i]);
    check(
        out->offsets[i + 1] - out->offsets[i] == kept.count[row_of[i]],
        "offsets must be the sums of the rows' counts"
    );
  }
  check_apart(rows, states, topk, which, out, upstream);
  const py::gil_scoped_release release;
  cpu::sparse_gradient(rows.rows(), data, kept, row_of, gl, ge, gz, *out);
}

int64_t transpose(
    py::handle offsets,
    py::handle columns,
    py::handle values,
    py::handle row_names,
    py::handle scratch,
    py::handle out_offsets,
    py::handle out_names,
    py::handle out_columns,
    py::handle out_values
) {
  const SparseArray in(offsets, columns, values, Access::read);
  const Array names(row_names, "row_names", Access::read);
  const Array memory(scratch, "scratch", Access::write);
  const Array starts(out_offsets, "out_offsets", Access::write);
  const Array found(out_names, "out_names", Access::write);
  const Array rows(out_columns, "out_columns", Access::write);
  const Array entries(out_values, "out_values", Access::write);
  const int64_t n = count_of(in->entries(), INT32_MAX, "the number of entries");
  cpu::SparseRows out;
  out.wide = in->wide;
  out.columns = data_of<int32_t>(rows, Dtype::i32, n);
  out.values = data_of<void>(entries, in.value_dtype(), n);
  const auto* in_names = data_of<const int32_t>(names, Dtype::i32, in->n);
  const int64_t room = memory->size();
  check(room >= 1, "scratch must hold one element more than there are columns, got none");
  auto* counts = data_of<int32_t>(memory, Dtype::i32, room);
  auto* out_starts = data_of<int64_t>(starts, Dtype::i64, n + 1);
  auto* out_ids = data_of<int32_t>(found, Dtype::i32, n);
  check_apart(in, names, memory, starts, found, rows, entries);
  const py::gil_scoped_release release;
  in.check_columns(room - 1);
  return cpu::transpose(*in, in_names, room - 1, counts, out_starts, out_ids, out);
}

void multiply(
    py::handle offsets,
    py::handle columns,
    py::handle values,
    py::handle names,
    py::handle dense,
    py::handle out,
    bool add,
    int threads
) {
  const SparseArray sparse(offsets, columns, values, Access::read);
  const Array rows(names, "names", Access::read);
  const Array matrix(dense, "dense", Access::read);
  const Array result(out, "out", Access::write);
  for (const Array* array : {&matrix, &result}) {
    visit_float((*array)->dtype, array->name(), [](auto) {});
    check_rows_of_matrix(*array);
  }
  check_same_width(matrix, result);
  check(
      (matrix->dtype == Dtype::f64) == sparse->wide &&
          (result->dtype == Dtype::f64) == sparse->wide,
      "values, dense and out must all be float64 or none of them"
  );
  const auto* ids = data_of<const int32_t>(rows, Dtype::i32, sparse->n);
  check_apart(sparse, rows, matrix, result);
  const int team = threads_of(threads);
  const py::gil_scoped_release release;
  sparse.check_columns(matrix->shape[0]);
  for (int64_t i = 0; i < sparse->n; ++i) {
    check(0 <= ids[i] && ids[i] < result->shape[0], "names must be rows of out, got ", ids[i]);
    // two threads would write one row
    check(i == 0 || ids[i - 1] < ids[i], "names must ascend, got ", ids[i], " too late");
  }
  cpu::multiply(*sparse, ids, matrix.view(), add, team, result.view());
}

void add_row_sums(
    py::handle offsets, py::handle columns, py::handle values, py::handle names, py::handle out
) {
  const SparseArray sparse(offsets, columns, values, Access::read);
  const Array rows(names, "names", Access::read);
  const Array result(out, "out", Access::write);
  const auto* ids = data_of<const int32_t>(rows, Dtype::i32, sparse->n);
  const int64_t n = result->size();
  data_of<void>(result, sparse.value_dtype(), n);
  for (int64_t i = 0; i < sparse->n; ++i) {
    check(0 <= ids[i] && ids[i] < n, "names must be entries of out, got ", ids[i]);
  }
  check_apart(sparse, rows, result);
  cpu::add_row_sums(*sparse, ids, result.view());
}

}  // namespace

void register_topk(py::module_& m) {
  const auto none = py::none();
  m.def(
      "finalize",
      &finalize,
      "After the last tile: leave the top-k of each row sorted, largest first.",
      py::arg("rows"),
      py::arg("state"),
      py::arg("topk")
  );
  m.def(
      "recapture",
      &recapture,
      "What rows.Rows.forward keeps in a topk, of active rows whose state is known.",
      py::arg("rows"),
      py::arg("logits"),
      py::arg("state"),
      py::arg("topk"),
      py::kw_only(),
      py::arg("start"),
      py::arg("first")
  );
  m.def(
      "measure",
      &measure,
      "Of a finalized topk: leave the entries that are kept, the target among them, as few as "
      "leave enough of mass; measure the mass and the entropy of the dropped, and say which rows "
      "may be served by more entries than there is room for, up to most.",
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
      py::arg("slack")
  );
  m.def(
      "sparse_gradient",
      &sparse_gradient,
      "d(logits) of the rows at index, at their kept entries, as a sparse matrix.",
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
      py::arg("g_lse") = none
  );
  m.def(
      "sparse_transpose",
      &transpose,
      "The transpose without its empty rows, whose number is returned; scratch [columns + 1].",
      py::arg("offsets"),
      py::arg("columns"),
      py::arg("values"),
      py::kw_only(),
      py::arg("row_names"),
      py::arg("scratch"),
      py::arg("out_offsets"),
      py::arg("out_names"),
      py::arg("out_columns"),
      py::arg("out_values")
  );
  m.def(
      "sparse_multiply",
      &multiply,
      "out[names] = sparse @ dense, or with add += it; other rows of out stay.",
      py::arg("offsets"),
      py::arg("columns"),
      py::arg("values"),
      py::kw_only(),
      py::arg("names"),
      py::arg("dense"),
      py::arg("out"),
      py::arg("add") = false,
      py::arg("threads") = 0
  );
  m.def(
      "sparse_add_row_sums",
      &add_row_sums,
      "out[names] += the sums of the rows' values.",
      py::arg("offsets"),
      py::arg("columns"),
      py::arg("values"),
      py::kw_only(),
      py::arg("names"),
      py::arg("out")
  );
}

}  // namespace logitless::bindings
