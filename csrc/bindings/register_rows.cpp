// Row kernels for Python: an object that holds what a call's tiles share, and a method per kernel.
#include <pybind11/pybind11.h>

#include "../cpu/rows.h"
#include "../cpu/sample.h"
#include "row_arrays.h"

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

  void forward(py::handle logits, py::handle state, int64_t start, bool first, bool extras) const {
    const Array tile(logits, "logits");
    const Array states(state, "state");
    arrays_.check_targets();
    const logitless::Rows rows = of_tile(tile, start);
    RowState* data = arrays_.states_of(states);
    const py::gil_scoped_release release;
    cpu::rows_forward(rows, tile.view(), start, extras, first, data);
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
    check(step < uint64_t{1} << 43, "step must be below 2^43, got ", step);
    const cpu::SampleKey key{seed, step, data_of<int64_t>(ids, Dtype::i64, n(), "row_ids")};
    const logitless::Rows rows = of_tile(tile, start);
    RowState* data = arrays_.states_of(states);
    auto* best_data =
        reinterpret_cast<cpu::SampleState*>(data_of<double>(bests, Dtype::f64, 2 * n(), "best"));
    const py::gil_scoped_release release;
    cpu::rows_sample(rows, tile.view(), start, first, key, data, best_data);
  }

 private:
  int64_t n() const { return arrays_.rows().n; }

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
          py::arg("extras") = false
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
      );
}

}  // namespace logitless::bindings
