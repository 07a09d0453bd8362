// _core.divergence.cuda_entries_*: rows under two softmaxes over sets of the vocabulary on a CUDA
// device, on the stream that each call names. What the numbers in the arrays are the host does not
// see.
#include <pybind11/pybind11.h>

#include <optional>
#include <string>

#include "../../cuda/divergence/entries.h"
#include "../arrays/pair_arrays.h"
#include "noise.h"
#include "rows.h"

namespace py = pybind11;

namespace logitless::bindings {
namespace {

// Entries of both at the sets of rows without a bias; with noise also their columns.
struct EntryArrays {
  const CudaRows &student_rows, &teacher_rows;
  Place place;
  Array offsets, logits, teacher_logits;
  std::optional<Array> columns;
  PairRows rows;
  cuda::PairEntries entries;

  EntryArrays(
      const CudaRows& student,
      const CudaRows& teacher,
      py::handle offsets_,
      py::handle logits_,
      py::handle teacher_logits_,
      py::handle columns_,
      const CudaNoise* noise
  )
      : student_rows(student),
        teacher_rows(teacher),
        place(student.device().place()),
        offsets(offsets_, "offsets", Access::read, place),
        logits(logits_, "logits", Access::read, place),
        teacher_logits(teacher_logits_, "teacher_logits", Access::read, place),
        columns(optional_array(columns_, "columns", Access::read, place)) {
    check_same_rows(student, teacher);
    const int own = student.device().number(), other = teacher.device().number();
    check(own == other, "teacher must be on device ", own, ", got ", other);
    entries.offsets = data_of<const int64_t>(offsets, Dtype::i64, student.n() + 1);
    entries.count = logits->size();
    entries.student = data_of<const float>(logits, Dtype::f32, entries.count);
    entries.teacher = data_of<const float>(teacher_logits, Dtype::f32, entries.count);
    entries.tokens = data_of<const int32_t>(columns, Dtype::i32, entries.count);
    check(noise == nullptr || columns, "columns must be given with noise");
    rows = {student.rows(), teacher.rows(), noise_of(CudaNoise::on(noise, own), student.n())};
    for (const logitless::Rows* side : {&rows.student, &rows.teacher}) {
      check(side->transform.bias == nullptr, "rows must have no bias: entries have it");
    }
  }
  cuda::Stream queue(int64_t stream) const { return student_rows.device().queue(stream); }
  void collect(Spans& spans) const {
    spans.take(student_rows);
    spans.take(teacher_rows);
    for (const Array* array : {&offsets, &logits, &teacher_logits}) spans.take(*array);
    spans.take(columns);
  }
};

void entries_forward(
    const CudaRows& rows,
    const CudaRows& teacher,
    py::handle offsets,
    py::handle logits,
    py::handle teacher_logits,
    py::handle state,
    py::handle columns,
    const CudaNoise* noise,
    int64_t stream
) {
  const EntryArrays pair(rows, teacher, offsets, logits, teacher_logits, columns, noise);
  const Array states(state, "state", Access::write, pair.place);
  auto* data = rows.arrays().states_of<PairState>(states);
  check_apart(pair, states, noise);
  const py::gil_scoped_release release;
  cuda::entries_forward(pair.rows, pair.entries, data, pair.queue(stream));
}

void entries_mix(
    const CudaRows& rows,
    const CudaRows& teacher,
    py::handle offsets,
    py::handle logits,
    py::handle teacher_logits,
    py::handle state,
    py::handle sums,
    double beta,
    py::handle columns,
    const CudaNoise* noise,
    int64_t stream
) {
  const EntryArrays pair(rows, teacher, offsets, logits, teacher_logits, columns, noise);
  const Array states(state, "state", Access::read, pair.place);
  const Array totals(sums, "sums", Access::write, pair.place);
  const auto* data = rows.arrays().states_of<const PairState>(states);
  auto* out = reinterpret_cast<MixSums*>(data_of<double>(totals, Dtype::f64, 2 * rows.n()));
  beta_of(beta);
  check_apart(pair, states, totals, noise);
  const py::gil_scoped_release release;
  cuda::entries_mix(pair.rows, pair.entries, data, beta, out, pair.queue(stream));
}

void entries_gradient(
    const CudaRows& rows,
    const CudaRows& teacher,
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
    const CudaNoise* noise,
    int64_t stream
) {
  const EntryArrays pair(rows, teacher, offsets, logits, teacher_logits, columns, noise);
  const int64_t n = rows.n();
  const Array states(state, "state", Access::read, pair.place);
  const Array out(gradient, "gradient", Access::write, pair.place);
  const PairUpstream of(kind, beta, sums, g_divergence, g_entropy, n, pair.place);
  const auto* data = rows.arrays().states_of<const PairState>(states);
  const cuda::Upstream gd = upstream_of(of.g_divergence, n), ge = upstream_of(of.g_entropy, n);
  auto* d_values = data_of<float>(out, Dtype::f32, pair.entries.count);
  check_apart(pair, states, of, out, noise);
  const py::gil_scoped_release release;
  cuda::entries_gradient(
      pair.rows, pair.entries, data, of.sums, of.kind, beta, gd, ge, d_values, pair.queue(stream)
  );
}

}  // namespace

void register_cuda_divergence_entries(py::module_& m) {
  const auto none = py::none();
  m.def(
      "cuda_entries_forward",
      &entries_forward,
      "entries_forward on a CUDA device.",
      py::arg("rows"),
      py::arg("teacher"),
      py::arg("offsets"),
      py::arg("logits"),
      py::arg("teacher_logits"),
      py::arg("state"),
      py::kw_only(),
      py::arg("columns") = none,
      py::arg("noise") = none,
      py::arg("stream") = 0
  );
  m.def(
      "cuda_entries_mix",
      &entries_mix,
      "entries_mix on a CUDA device.",
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
      py::arg("noise") = none,
      py::arg("stream") = 0
  );
  m.def(
      "cuda_entries_gradient",
      &entries_gradient,
      "entries_gradient on a CUDA device.",
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
      py::arg("noise") = none,
      py::arg("stream") = 0
  );
}

}  // namespace logitless::bindings
