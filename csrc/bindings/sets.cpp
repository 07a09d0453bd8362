// _core.sets: rows over sets of the vocabulary, whose logits are entries of sparse rows.
#include "../cpu/topk/sets.h"

#include <pybind11/pybind11.h>

#include "arrays/sparse_array.h"
#include "arrays/sparse_checks.h"
#include "cpu_rows.h"

namespace py = pybind11;

namespace logitless::bindings {
namespace {

// [n, width] with contiguous rows.
void check_matrix(const Array& array) {
  visit_float(array->dtype, array.name(), [](auto) {});
  check_rows_of_matrix(array);
}

void check_rows(const SparseArray& sets, const Array& array) {
  check_matrix(array);
  check(
      array->shape[0] == sets->n,
      array.name(),
      " must have ",
      sets->n,
      " rows, got ",
      array->shape[0]
  );
  check(
      (array->dtype == Dtype::f64) == sets->wide,
      "values and ",
      array.name(),
      " must both be float64 or neither"
  );
}

void logits(
    py::handle offsets,
    py::handle columns,
    py::handle values,
    py::handle hidden,
    py::handle weight,
    int threads
) {
  const SparseArray sets(offsets, columns, values, Access::read, Access::write);
  const Array left(hidden, "hidden", Access::read);
  const Array right(weight, "weight", Access::read);
  check_rows(sets, left);
  check_matrix(right);
  check(left->dtype == right->dtype, "hidden and weight must share one dtype");
  check_same_width(left, right);
  check_apart(sets, left, right);
  const int team = threads_of(threads);
  const py::gil_scoped_release release;
  sets.check_columns(right->shape[0]);
  cpu::set_logits(*sets, left.view(), right.view(), team);
}

void read_tile(
    py::handle offsets,
    py::handle columns,
    py::handle values,
    py::handle tile,
    int64_t start,
    int threads
) {
  const SparseArray sets(offsets, columns, values, Access::read, Access::write);
  const Array from(tile, "tile", Access::read);
  check_rows(sets, from);
  count_of(start, INT32_MAX, "start");
  check_apart(sets, from);
  const int team = threads_of(threads);
  const py::gil_scoped_release release;
  cpu::read_set_tile(*sets, from.view(), start, team);
}

void write_tile(
    py::handle offsets,
    py::handle columns,
    py::handle values,
    py::handle tile,
    int64_t start,
    int threads
) {
  const SparseArray sets(offsets, columns, values, Access::read);
  const Array to(tile, "tile", Access::write);
  check_rows(sets, to);
  count_of(start, INT32_MAX, "start");
  check_apart(sets, to);
  const int team = threads_of(threads);
  const py::gil_scoped_release release;
  cpu::write_set_tile(*sets, to.view(), start, team);
}

// The rows of a call over sets: no mask, and logits that have their bias.
logitless::Rows rows_of(const CpuRows& rows, const SparseArray& sets) {
  rows.arrays().check_targets();
  const logitless::Rows found = rows.rows();
  check(found.n == sets->n, "offsets must be those of ", found.n, " rows, got ", sets->n);
  check(found.mask == nullptr, "rows must have no mask");
  check(found.transform.bias == nullptr, "rows must have no bias: values have it");
  return found;
}

void forward(
    const CpuRows& rows,
    py::handle offsets,
    py::handle columns,
    py::handle values,
    py::handle state,
    bool extras
) {
  const SparseArray sets(offsets, columns, values, Access::read);
  const Array states(state, "state", Access::write);
  const logitless::Rows found = rows_of(rows, sets);
  auto* data = rows.arrays().states_of<RowState>(states);
  check_apart(rows, sets, states);
  const py::gil_scoped_release release;
  cpu::set_forward(found, *sets, extras, data);
}

void gradient(
    const CpuRows& rows,
    py::handle offsets,
    py::handle columns,
    py::handle values,
    py::handle state,
    py::handle gradient,
    py::handle g_logp,
    py::handle g_entropy,
    py::handle g_lse
) {
  const SparseArray sets(offsets, columns, values, Access::read);
  const Array states(state, "state", Access::read);
  const Array out(gradient, "gradient", Access::write);
  const UpstreamArrays upstream(g_logp, g_entropy, g_lse, Place{});
  const logitless::Rows found = rows_of(rows, sets);
  const auto of = [&](const std::optional<Array>& array) {
    return data_of<const double>(array, Dtype::f64, found.n);
  };
  const double *gl = of(upstream.logp), *ge = of(upstream.entropy), *gz = of(upstream.lse);
  const auto* data = rows.arrays().states_of<const RowState>(states);
  void* d_values = data_of<void>(out, sets.value_dtype(), sets->entries());
  check_apart(rows, sets, states, upstream, out);
  const py::gil_scoped_release release;
  cpu::set_gradient(found, *sets, data, gl, ge, gz, d_values);
}

}  // namespace

void register_sets(py::module_& m) {
  const auto none = py::none();
  m.def(
      "logits",
      &logits,
      "values = hidden[row] . weight[column] of every entry.",
      py::arg("offsets"),
      py::arg("columns"),
      py::arg("values"),
      py::kw_only(),
      py::arg("hidden"),
      py::arg("weight"),
      py::arg("threads") = 0
  );
  m.def(
      "read_tile",
      &read_tile,
      "Read the entries that a tile of logits [n, width] holds, columns from start on.",
      py::arg("offsets"),
      py::arg("columns"),
      py::arg("values"),
      py::kw_only(),
      py::arg("tile"),
      py::arg("start"),
      py::arg("threads") = 0
  );
  m.def(
      "write_tile",
      &write_tile,
      "Write a tile that holds these entries, and 0 elsewhere.",
      py::arg("offsets"),
      py::arg("columns"),
      py::arg("values"),
      py::kw_only(),
      py::arg("tile"),
      py::arg("start"),
      py::arg("threads") = 0
  );
  m.def(
      "forward",
      &forward,
      "State [n, 8] of rows over their entries, columns ascending within a row.",
      py::arg("rows"),
      py::arg("offsets"),
      py::arg("columns"),
      py::arg("values"),
      py::arg("state"),
      py::kw_only(),
      py::arg("extras") = false
  );
  m.def(
      "gradient",
      &gradient,
      "Write d(values) [entries] into gradient.",
      py::arg("rows"),
      py::arg("offsets"),
      py::arg("columns"),
      py::arg("values"),
      py::arg("state"),
      py::arg("gradient"),
      py::kw_only(),
      py::arg("g_logp") = none,
      py::arg("g_entropy") = none,
      py::arg("g_lse") = none
  );
}

}  // namespace logitless::bindings
