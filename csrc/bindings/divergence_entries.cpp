// _core.divergence, of rows over sets of the vocabulary: logits of both are entries of sparse rows.
#include <pybind11/pybind11.h>

#include <string>

#include "../cpu/divergence/entries.h"
#include "arrays/pair_arrays.h"
#include "cpu_rows.h"

namespace py = pybind11;

namespace logitless::bindings {
namespace {

// Entries of both at the sets of rows without mask or bias; with noise also their columns.
struct EntryArrays {
  Array offsets, logits, teacher_logits;
  std::optional<Array> columns;
  PairRows rows;
  cpu::PairEntries entries;

  EntryArrays(
      const CpuRows& student,
      const CpuRows& teacher,
      py::handle offsets_,
      py::handle logits_,
      py::handle teacher_logits_,
      py::handle columns_,
      const NoiseArrays* noise
  )
      : offsets(offsets_, "offsets", Access::read),
        logits(logits_, "logits", Access::read),
        teacher_logits(teacher_logits_, "teacher_logits", Access::read),
        columns(optional_array(columns_, "columns", Access::read)) {
    check_same_rows(student, teacher);
    const int64_t n = student.n();
    const auto* starts = data_of<const int64_t>(offsets, Dtype::i64, n + 1);
    check(starts[0] == 0, "offsets must start at 0, got ", starts[0]);
    for (int64_t i = 0; i < n; ++i) {
      check(starts[i] <= starts[i + 1], "offsets must ascend, got ", starts[i + 1]);
    }
    const Dtype dtype = logits->dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32;
    entries = {
        starts,
        dtype,
        data_of<const void>(logits, dtype, starts[n]),
        data_of<const void>(teacher_logits, dtype, starts[n]),
        data_of<const int32_t>(columns, Dtype::i32, starts[n])
    };
    check(noise == nullptr || columns, "columns must be given with noise");
    for (int64_t i = 0; columns && i < starts[n]; ++i) {
      check(entries.tokens[i] >= 0, "columns must not be negative, got ", entries.tokens[i]);
    }
    rows = {student.rows(), teacher.rows(), noise_of(noise, n)};
    for (const logitless::Rows* side : {&rows.student, &rows.teacher}) {
      check(side->mask == nullptr, "rows must have no mask");
      check(side->transform.bias == nullptr, "rows must have no bias: entries have it");
    }
  }
  void collect(Spans& spans) const {
    for (const Array* array : {&offsets, &logits, &teacher_logits}) spans.take(*array);
    spans.take(columns);
  }
};

void entries_forward(
    const CpuRows& rows,
    const CpuRows& teacher,
    py::handle offsets,
    py::handle logits,
    py::handle teacher_logits,
    py::handle state,
    py::handle columns,
    const NoiseArrays* noise
) {
  const EntryArrays pair(rows, teacher, offsets, logits, teacher_logits, columns, noise);
  const Array states(state, "state", Access::write);
  auto* data = rows.arrays().states_of<PairState>(states);
  check_apart(rows, teacher, pair, states, noise);
  const py::gil_scoped_release release;
  cpu::entries_forward(pair.rows, pair.entries, data);
}

void entries_mix(
    const CpuRows& rows,
    const CpuRows& teacher,
    py::handle offsets,
    py::handle logits,
    py::handle teacher_logits,
    py::handle state,
    py::handle sums,
    double beta,
    py::handle columns,
    const NoiseArrays* noise
) {
  const EntryArrays pair(rows, teacher, offsets, logits, teacher_logits, columns, noise);
  const Array states(state, "state", Access::read);
  const Array totals(sums, "sums", Access::write);
  const auto* data = rows.arrays().states_of<const PairState>(states);
  auto* out = reinterpret_cast<MixSums*>(data_of<double>(totals, Dtype::f64, 2 * rows.n()));
  beta_of(beta);
  check_apart(rows, teacher, pair, states, totals, noise);
  const py::gil_scoped_release release;
  cpu::entries_mix(pair.rows, pair.entries, data, beta, out);
}

void entries_gradient(
    const CpuRows& rows,
    const CpuRows& teacher,
    py::handle offsets,
    py::handle logits,
    py::handle teacher_logits,
    py::handle state,
    py::handle gradient,
    const std::string& kind,
    double beta,
    py::handle sums,
    py::handle g_divergence,
    py::handle g_entropy,
    py::handle columns,
    const NoiseArrays* noise
) {
  const EntryArrays pair(rows, teacher, offsets, logits, teacher_logits, columns, noise);
  const int64_t n = rows.n();
  const Array states(state, "state", Access::read);
  const Array out(gradient, "gradient", Access::write);
  const PairUpstream of(kind, beta, sums, g_divergence, g_entropy, n);
  const auto* data = rows.arrays().states_of<const PairState>(states);
  const auto* gd = data_of<const double>(of.g_divergence, Dtype::f64, n);
  const auto* ge = data_of<const double>(of.g_entropy, Dtype::f64, n);
  void* d_values = data_of<void>(out, pair.entries.dtype, pair.entries.count(n));
  check_apart(rows, teacher, pair, states, of, out, noise);
  const py::gil_scoped_release release;
  cpu::entries_gradient(pair.rows, pair.entries, data, of.sums, of.kind, beta, gd, ge, d_values);
}

}  // namespace

void register_divergence_entries(py::module_& m) {
  const auto none = py::none();
  m.def(
      "entries_forward",
      &entries_forward,
      "State [n, 8] of rows over their sets: logits and teacher_logits are entries, with bias.",
      py::arg("rows"),
      py::arg("teacher"),
      py::arg("offsets"),
      py::arg("logits"),
      py::arg("teacher_logits"),
      py::arg("state"),
      py::kw_only(),
      py::arg("columns") = none,
      py::arg("noise") = none
  );
  m.def(
      "entries_mix",
      &entries_mix,
      "Write sums [n, 2] of rows over their sets.",
      py::arg("rows"),
      py::arg("teacher"),
      py::arg("offsets"),
      py::arg("logits"),
      py::arg("teacher_logits"),
      py::arg("state"),
      py::arg("sums"),
      py::kw_only(),
      py::arg("beta"),
      py::arg("columns") = none,
      py::arg("noise") = none
  );
  m.def(
      "entries_gradient",
      &entries_gradient,
      "Write d(entries) of the student's into gradient.",
      py::arg("rows"),
      py::arg("teacher"),
      py::arg("offsets"),
      py::arg("logits"),
      py::arg("teacher_logits"),
      py::arg("state"),
      py::arg("gradient"),
      py::kw_only(),
      py::arg("kind"),
      py::arg("beta") = 0.5,
      py::arg("sums") = none,
      py::arg("g_divergence") = none,
      py::arg("g_entropy") = none,
      py::arg("columns") = none,
      py::arg("noise") = none
  );
}

}  // namespace logitless::bindings
