// Row kernels for Python: an object that holds what a call's tiles share, and a method per kernel.
#include <pybind11/pybind11.h>

#include "../cpu/rows.h"
#include "../cpu/sample.h"
#include "../cpu/truncated.h"
#include "candidate_arrays.h"
#include "row_arrays.h"
#include "sparse_array.h"

namespace py = pybind11;

namespace logitless::bindings {
namespace {

class Rows {
 public:
  Rows(
      int64_t n,
      py::handle targets,
      py::handle mask,
      py::handle row_scale,
      double scale,
      py::handle bias,
      double pre,
      double softcap,
      int threads
  )
      : arrays_(n, targets, mask, row_scale, scale, bias, pre, softcap, Place{}),
        threads_(threads) {}

  void forward(
      py::handle logits,
      py::handle state,
      int64_t start,
      bool first,
      bool extras,
      const CandidateArrays* candidates
  ) const {
    const Array tile(logits, "logits");
    const Array states(state, "state");
    arrays_.check_targets();
    const logitless::Rows rows = of_tile(tile, start);
    RowState* data = arrays_.states_of(states);
    const cpu::Candidates* kept = candidates == nullptr ? nullptr : &candidates->of_rows(n());
    const int64_t width = tile->ndim > 0 ? tile->shape[tile->ndim - 1] : 0;
    check(
        kept == nullptr || start + width <= INT32_MAX,
        "candidates need ids below 2^31, got a tile up to ",
        start + width
    );
    const py::gil_scoped_release release;
    cpu::rows_forward(rows, tile.view(), start, extras, first, data, kept);
  }

  void settle(py::handle state, const CandidateArrays& candidates) const {
    const Array states(state, "state");
    const RowState* data = arrays_.states_of(states);
    logitless::Rows rows = arrays_.rows();
    rows.threads = threads_;
    const cpu::Candidates& kept = candidates.of_rows(n());
    const py::gil_scoped_release release;
    cpu::settle_candidates(rows, data, kept);
  }

  void merge(py::handle pieces, py::handle state) const {
    const Array all(pieces, "pieces");
    const Array states(state, "state");
    const int64_t count = all->ndim > 0 ? all->shape[0] : 0;
    const auto* data = reinterpret_cast<const RowState*>(
        data_of<double>(all, Dtype::f64, 8 * n() * count, "pieces")
    );
    cpu::rows_merge(arrays_.rows(), data, count, arrays_.states_of(states));
  }

  void finish(
      py::handle state,
      int64_t vocab,
      py::handle logp,
      py::handle entropy,
      py::handle lse,
      py::handle row_ids,
      py::handle varentropy,
      py::handle sum_p2,
      py::handle entropy_change,
      py::handle argmax
  ) const {
    const Array states(state, "state");
    arrays_.check_targets();
    const auto ids = optional_array(row_ids, "row_ids");
    const OutputArrays out(
        {logp, entropy, lse, varentropy, sum_p2, entropy_change, argmax}, n(), true, Place{}
    );
    const auto* names = data_of<int64_t>(ids, Dtype::i64, n(), "row_ids");
    cpu::rows_finish(arrays_.rows(), arrays_.states_of(states), vocab, names, out.view());
  }

  void measure_support(
      py::handle state,
      const CandidateArrays& candidates,
      py::handle mass,
      py::handle entropy,
      double spare
  ) const {
    const Array states(state, "state");
    const Array masses(mass, "mass");
    const Array entropies(entropy, "entropy");
    arrays_.check_targets();
    const RowState* data = arrays_.states_of(states);
    logitless::Rows rows = arrays_.rows();
    rows.threads = threads_;
    const cpu::Candidates& kept = candidates.of_rows(n());
    const cpu::Dropped dropped{
        data_of<double>(masses, Dtype::f64, n(), "mass"),
        data_of<double>(entropies, Dtype::f64, n(), "entropy")
    };
    const py::gil_scoped_release release;
    cpu::measure_support(rows, data, kept, spare, dropped);
  }

  void support_gradient(
      py::handle state,
      const CandidateArrays& candidates,
      py::handle index,
      py::handle offsets,
      py::handle columns,
      py::handle values,
      py::handle g_logp,
      py::handle g_entropy,
      py::handle g_lse
  ) const {
    const Array states(state, "state");
    const Array which(index, "index");
    const SparseArray out(offsets, columns, values);
    arrays_.check_targets();
    const auto gl = optional_array(g_logp, "g_logp");
    const auto ge = optional_array(g_entropy, "g_entropy");
    const auto gz = optional_array(g_lse, "g_lse");
    const RowState* data = arrays_.states_of(states);
    logitless::Rows rows = arrays_.rows();
    rows.threads = threads_;
    const cpu::Candidates& kept = candidates.of_rows(n());
    const auto* row_of = data_of<int64_t>(which, Dtype::i64, out->n, "index");
    for (int64_t i = 0; i < out->n; ++i) {
      check(0 <= row_of[i] && row_of[i] < n(), "index must be in [0, ", n(), "), got ", row_of[i]);
      check(
          out->offsets[i + 1] - out->offsets[i] == kept.count[row_of[i]],
          "offsets must be the sums of the rows' counts"
      );
    }
    const auto* gl_data = data_of<double>(gl, Dtype::f64, n(), "g_logp");
    const auto* ge_data = data_of<double>(ge, Dtype::f64, n(), "g_entropy");
    const auto* gz_data = data_of<double>(gz, Dtype::f64, n(), "g_lse");
    const py::gil_scoped_release release;
    cpu::support_gradient(rows, data, kept, row_of, gl_data, ge_data, gz_data, *out);
  }

  void backward(
      py::handle logits,
      py::handle state,
      py::handle gradient,
      int64_t start,
      py::handle g_logp,
      py::handle g_entropy,
      py::handle g_lse
  ) const {
    const Array tile(logits, "logits");
    const Array states(state, "state");
    const Array out(gradient, "gradient");
    arrays_.check_targets();
    const auto gl = optional_array(g_logp, "g_logp");
    const auto ge = optional_array(g_entropy, "g_entropy");
    const auto gz = optional_array(g_lse, "g_lse");
    const logitless::Rows rows = of_tile(tile, start);
    const RowState* data = arrays_.states_of(states);
    const auto* gl_data = data_of<double>(gl, Dtype::f64, n(), "g_logp");
    const auto* ge_data = data_of<double>(ge, Dtype::f64, n(), "g_entropy");
    const auto* gz_data = data_of<double>(gz, Dtype::f64, n(), "g_lse");
    const py::gil_scoped_release release;
    cpu::rows_backward(rows, tile.view(), start, data, gl_data, ge_data, gz_data, out.view());
  }

  void sample(
      py::handle logits,
      py::handle state,
      py::handle best,
      py::handle row_ids,
      uint64_t seed,
      uint64_t step,
      int64_t start,
      bool first
  ) const {
    const Array tile(logits, "logits");
    const Array states(state, "state");
    const Array bests(best, "best");
    const Array ids(row_ids, "row_ids");
    const cpu::SampleKey key = key_of(ids, seed, step);
    const logitless::Rows rows = of_tile(tile, start);
    RowState* data = arrays_.states_of(states);
    auto* best_data =
        reinterpret_cast<cpu::SampleState*>(data_of<double>(bests, Dtype::f64, 2 * n(), "best"));
    const py::gil_scoped_release release;
    cpu::rows_sample(rows, tile.view(), start, first, key, data, best_data);
  }

  // From candidates where they are given, else from whole rows of logits [n, V].
  void draw_truncated(
      py::handle state,
      py::handle token,
      const CandidateArrays* candidates,
      py::handle logits,
      int64_t top_k,
      double top_p,
      py::handle row_ids,
      uint64_t seed,
      uint64_t step
  ) const {
    const Array states(state, "state");
    const Array tokens(token, "token");
    const Array ids(row_ids, "row_ids");
    const auto whole = optional_array(logits, "logits");
    const cpu::SampleKey key = key_of(ids, seed, step);
    const cpu::Truncation truncation{top_k, top_p};
    RowState* data = arrays_.states_of(states);
    auto* drawn = data_of<int64_t>(tokens, Dtype::i64, n(), "token");
    check(whole.has_value() != (candidates != nullptr), "give candidates or logits");
    logitless::Rows rows = whole ? of_tile(*whole, 0) : arrays_.rows();
    rows.threads = threads_;
    const cpu::Candidates* kept = whole ? nullptr : &candidates->of_rows(n());
    const py::gil_scoped_release release;
    if (whole) {
      cpu::draw_from_rows(rows, whole->view(), truncation, key, data, drawn);
    } else {
      cpu::draw_from_candidates(rows, *kept, truncation, key, data, drawn);
    }
  }

 private:
  int64_t n() const { return arrays_.rows().n; }

  cpu::SampleKey key_of(const Array& row_ids, uint64_t seed, uint64_t step) const {
    check(step < uint64_t{1} << 43, "step must be below 2^43, got ", step);
    return {seed, step, data_of<int64_t>(row_ids, Dtype::i64, n(), "row_ids")};
  }

  logitless::Rows of_tile(const Array& tile, int64_t start) const {
    const Dtype compute = tile->dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32;
    logitless::Rows rows = arrays_.of_tile(tile, start, compute);
    rows.threads = threads_;
    return rows;
  }

  RowArrays arrays_;
  int threads_;
};

void exp2_floats(py::handle t, py::handle out) {
  const Array in(t, "t");
  const Array result(out, "out");
  const int64_t n = in->size();
  check(n % 64 == 0, "t must hold a multiple of 64 elements, got ", n);
  const auto* source = data_of<const float>(in, Dtype::f32, n, "t");
  auto* target = data_of<float>(result, Dtype::f32, n, "out");
  const py::gil_scoped_release release;
  cpu::row_kernels().exp2(source, n, target);
}

}  // namespace

void register_rows(py::module_& m) {
  const auto none = py::none();
  m.def(
      "exp2",
      &exp2_floats,
      "The row kernels' vector 2^t, for its test.",
      py::arg("t"),
      py::arg("out")
  );
  m.attr("BLOCK") = cpu::kBlock;
  py::class_<CandidateArrays>(m, "Candidates", "The largest logits of each row; see candidates.h.")
      .def(
          py::init<py::handle, py::handle, py::handle, py::handle, double>(),
          py::kw_only(),
          py::arg("y"),
          py::arg("ids"),
          py::arg("floor"),
          py::arg("count"),
          py::arg("tau")
      );
  py::class_<Rows>(m, "Rows", "What the tiles of one call share; a method per row kernel.")
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
          py::arg("threads") = 0
      )
      .def(
          "forward",
          &Rows::forward,
          "Fold a tile of logits [n, width] into state [n, 8].",
          py::arg("logits"),
          py::arg("state"),
          py::kw_only(),
          py::arg("start") = 0,
          py::arg("first") = true,
          py::arg("extras") = false,
          py::arg("candidates") = none
      )
      .def(
          "settle",
          &Rows::settle,
          "After the last tile: leave each row's candidates sorted, largest first.",
          py::arg("state"),
          py::arg("candidates")
      )
      .def(
          "measure_support",
          &Rows::measure_support,
          "Settled candidates: leave what is kept, the target among it, and measure what is "
          "dropped.",
          py::arg("state"),
          py::arg("candidates"),
          py::kw_only(),
          py::arg("mass"),
          py::arg("entropy"),
          py::arg("spare")
      )
      .def(
          "support_gradient",
          &Rows::support_gradient,
          "d(logits) of the rows at index, at their kept entries, as a sparse matrix.",
          py::arg("state"),
          py::arg("candidates"),
          py::kw_only(),
          py::arg("index"),
          py::arg("offsets"),
          py::arg("columns"),
          py::arg("values"),
          py::arg("g_logp") = none,
          py::arg("g_entropy") = none,
          py::arg("g_lse") = none
      )
      .def(
          "merge",
          &Rows::merge,
          "Merge states of consecutive pieces of the vocabulary, [pieces, n, 8], into state [n, "
          "8].",
          py::arg("pieces"),
          py::arg("state")
      )
      .def(
          "finish",
          &Rows::finish,
          "Turn state [n, 8] into logp, entropy, lse and extras; raise at the first bad row.",
          py::arg("state"),
          py::arg("vocab"),
          py::kw_only(),
          py::arg("logp"),
          py::arg("entropy"),
          py::arg("lse"),
          py::arg("row_ids") = none,
          py::arg("varentropy") = none,
          py::arg("sum_p2") = none,
          py::arg("entropy_change") = none,
          py::arg("argmax") = none
      )
      .def(
          "backward",
          &Rows::backward,
          "Write d(logits) of a tile into gradient, which may be the tile.",
          py::arg("logits"),
          py::arg("state"),
          py::arg("gradient"),
          py::kw_only(),
          py::arg("start") = 0,
          py::arg("g_logp") = none,
          py::arg("g_entropy") = none,
          py::arg("g_lse") = none
      )
      .def(
          "sample",
          &Rows::sample,
          "Fold a tile and draw on the way; best [n, 2] holds score and token, state the token's "
          "y.",
          py::arg("logits"),
          py::arg("state"),
          py::arg("best"),
          py::kw_only(),
          py::arg("row_ids"),
          py::arg("seed"),
          py::arg("step"),
          py::arg("start") = 0,
          py::arg("first") = true
      )
      .def(
          "draw_truncated",
          &Rows::draw_truncated,
          "Draw from the top_k and top_p of settled candidates (token -1: they do not suffice) or "
          "of "
          "whole rows of logits.",
          py::arg("state"),
          py::arg("token"),
          py::kw_only(),
          py::arg("candidates") = none,
          py::arg("logits") = none,
          py::arg("top_k"),
          py::arg("top_p"),
          py::arg("row_ids"),
          py::arg("seed"),
          py::arg("step")
      );
}

}  // namespace logitless::bindings
