// _core.divergence: rows under two softmaxes over one vocabulary, a student's and a teacher's.
#include "../cpu/divergence/divergence.h"

#include <pybind11/pybind11.h>

#include "arrays/pair_arrays.h"
#include "cpu_rows.h"

namespace py = pybind11;

namespace logitless::bindings {
namespace {

using Pair = PairArrays<CpuRows>;

void forward(
    const CpuRows& rows,
    const CpuRows& teacher,
    py::handle logits,
    py::handle teacher_logits,
    py::handle state,
    int64_t start,
    bool first,
    const NoiseArrays* noise
) {
  const Pair pair(rows, teacher, logits, teacher_logits, start, noise);
  const Array states(state, "state", Access::write);
  auto* data = rows.arrays().states_of<PairState>(states);
  check_apart(rows, teacher, pair, states, noise);
  const py::gil_scoped_release release;
  cpu::pair_forward(pair.rows, pair.tile, first, data);
}

void merge(const CpuRows& rows, const CpuRows& teacher, py::handle parts, py::handle state) {
  const Array all(parts, "parts", Access::read);
  const Array states(state, "state", Access::write);
  check_same_rows(rows, teacher);
  const int64_t n = rows.n();
  check(
      all->ndim == 3 && all->shape[1] == n && all->shape[2] == 8,
      "parts must be [parts, ",
      n,
      ", 8]"
  );
  const auto* data =
      reinterpret_cast<const PairState*>(data_of<const double>(all, Dtype::f64, all->size()));
  auto* merged = rows.arrays().states_of<PairState>(states);
  check_apart(rows, teacher, all, states);
  const PairRows both{rows.rows(), teacher.rows(), {}};
  const py::gil_scoped_release release;
  cpu::pair_merge(both, data, all->shape[0], merged);
}

void mix(
    const CpuRows& rows,
    const CpuRows& teacher,
    py::handle logits,
    py::handle teacher_logits,
    py::handle state,
    py::handle sums,
    double beta,
    int64_t start,
    bool first,
    const NoiseArrays* noise
) {
  const Pair pair(rows, teacher, logits, teacher_logits, start, noise);
  const Array states(state, "state", Access::read);
  const Array totals(sums, "sums", Access::write);
  const auto* data = rows.arrays().states_of<const PairState>(states);
  auto* out = reinterpret_cast<MixSums*>(data_of<double>(totals, Dtype::f64, 2 * rows.n()));
  beta_of(beta);
  check_apart(rows, teacher, pair, states, totals, noise);
  const py::gil_scoped_release release;
  cpu::pair_mix(pair.rows, pair.tile, first, data, beta, out);
}

void finalize(
    const CpuRows& rows,
    const CpuRows& teacher,
    py::handle state,
    py::handle entropy,
    py::handle teacher_entropy,
    py::handle reverse_kl,
    py::handle forward_kl,
    py::handle row_ids
) {
  check_same_rows(rows, teacher);
  const int64_t n = rows.n();
  const Array states(state, "state", Access::read);
  const Array own(entropy, "entropy", Access::write);
  const Array others(teacher_entropy, "teacher_entropy", Access::write);
  const Array reverse(reverse_kl, "reverse_kl", Access::write);
  const Array forwards(forward_kl, "forward_kl", Access::write);
  const auto ids = optional_array(row_ids, "row_ids", Access::read);
  for (const Array* out : {&own, &others, &reverse, &forwards}) {
    visit_real(*out, [&](auto, Dtype dtype) {
      contiguous_data<void>(out->view(), dtype, n, out->name());
    });
  }
  const auto* names = data_of<const int64_t>(ids, Dtype::i64, n);
  const auto* data = rows.arrays().states_of<const PairState>(states);
  check_apart(rows, teacher, states, own, others, reverse, forwards, ids);
  const PairRows both{rows.rows(), teacher.rows(), {}};
  const PairOutputs out{own.view(), others.view(), reverse.view(), forwards.view()};
  const py::gil_scoped_release release;
  cpu::pair_finalize(both, data, names, out);
}

void gradient(
    const CpuRows& rows,
    const CpuRows& teacher,
    py::handle logits,
    py::handle teacher_logits,
    py::handle state,
    py::handle gradient,
    const std::string& kind,
    double beta,
    py::handle sums,
    py::handle g_divergence,
    py::handle g_entropy,
    int64_t start,
    const NoiseArrays* noise
) {
  const Pair pair(rows, teacher, logits, teacher_logits, start, noise);
  const int64_t n = rows.n();
  const Array states(state, "state", Access::read);
  const Array out(gradient, "gradient", Access::write);
  const PairUpstream of(kind, beta, sums, g_divergence, g_entropy, n);
  const auto* data = rows.arrays().states_of<const PairState>(states);
  const auto* gd = data_of<const double>(of.g_divergence, Dtype::f64, n);
  const auto* ge = data_of<const double>(of.g_entropy, Dtype::f64, n);
  check_apart(rows, teacher, pair.teacher_logits, states, of, out, noise);
  if (!same_elements(pair.logits.view(), out.view())) check_apart(pair.logits, out);
  const py::gil_scoped_release release;
  cpu::pair_gradient(pair.rows, pair.tile, data, of.sums, of.kind, beta, gd, ge, out.view());
}

}  // namespace

void register_divergence(py::module_& m) {
  const auto none = py::none();
  py::class_<NoiseArrays>(m, "Noise", "Normal noise on the teacher's z of rows: core/noise.h.")
      .def(
          py::init(
              [](
                  py::handle row_ids, py::handle sizes, uint64_t seed, uint64_t step, int64_t start
              ) {
                NoiseArrays noise(row_ids, sizes, seed, step, start);
                noise.check_sizes();
                return noise;
              }
          ),
          py::arg("row_ids"),
          py::arg("sizes"),
          py::kw_only(),
          py::arg("seed"),
          py::arg("step"),
          py::arg("start") = 0
      );
  m.def(
      "forward",
      &forward,
      "Take a tile of the student's logits and one of the teacher's, [n, width], into state [n, "
      "8].",
      py::arg("rows"),
      py::arg("teacher"),
      py::arg("logits"),
      py::arg("teacher_logits"),
      py::arg("state"),
      py::kw_only(),
      py::arg("start") = 0,
      py::arg("first") = true,
      py::arg("noise") = none
  );
  m.def(
      "merge",
      &merge,
      "Merge the states of consecutive parts of the vocabulary, [parts, n, 8], into state.",
      py::arg("rows"),
      py::arg("teacher"),
      py::arg("parts"),
      py::arg("state")
  );
  m.def(
      "mix",
      &mix,
      "Add a tile to sums [n, 2]: the divergences of student and teacher from their mix.",
      py::arg("rows"),
      py::arg("teacher"),
      py::arg("logits"),
      py::arg("teacher_logits"),
      py::arg("state"),
      py::arg("sums"),
      py::kw_only(),
      py::arg("beta"),
      py::arg("start") = 0,
      py::arg("first") = true,
      py::arg("noise") = none
  );
  m.def(
      "finalize",
      &finalize,
      "Turn state [n, 8] into entropies and both KL. The first bad row raises.",
      py::arg("rows"),
      py::arg("teacher"),
      py::arg("state"),
      py::kw_only(),
      py::arg("entropy"),
      py::arg("teacher_entropy"),
      py::arg("reverse_kl"),
      py::arg("forward_kl"),
      py::arg("row_ids") = none
  );
  m.def(
      "gradient",
      &gradient,
      "Write d(logits) of a tile of the student's into gradient, which may be that tile.",
      py::arg("rows"),
      py::arg("teacher"),
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
      py::arg("start") = 0,
      py::arg("noise") = none
  );
}

}  // namespace logitless::bindings
