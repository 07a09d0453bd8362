// Row kernels for Python: an object that holds what a call's tiles share, and a method per kernel.
#include <pybind11/pybind11.h>

#include "../cpu/rows/rows.h"
#include "../cpu/sampling/sample.h"
#include "../cpu/sampling/truncated.h"
#include "arrays/row_arrays.h"
#include "arrays/scalars.h"
#include "arrays/sparse_array.h"
#include "arrays/topk_arrays.h"

namespace py = pybind11;

namespace logitless::bindings {
namespace {

// The gradients of a row's outputs: null where one is not given.
struct UpstreamArrays {
  std::optional<Array> logp_array, entropy_array, lse_array;
  const double *logp, *entropy, *lse;

  UpstreamArrays(py::handle g_logp, py::handle g_entropy, py::handle g_lse, int64_t n)
      : logp_array(optional_array(g_logp, "g_logp", Access::read)),
        entropy_array(optional_array(g_entropy, "g_entropy", Access::read)),
        lse_array(optional_array(g_lse, "g_lse", Access::read)),
        logp(data_of<const double>(logp_array, Dtype::f64, n)),
        entropy(data_of<const double>(entropy_array, Dtype::f64, n)),
        lse(data_of<const double>(lse_array, Dtype::f64, n)) {}

  void collect(Spans& spans) const {
    for (const auto* array : {&logp_array, &entropy_array, &lse_array}) spans.take(*array);
  }
};

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
        threads_(threads_of(threads)) {}

  void forward(
      py::handle logits,
      py::handle state,
      int64_t start,
      bool first,
      bool extras,
      const TopKArrays* topk
  ) const {
    const Array tile(logits, "logits", Access::read);
    const Array states(state, "state", Access::write);
    arrays_.check_targets();
    const logitless::Rows rows = of_tile(tile, start);
    auto* data = arrays_.states_of<RowState>(states);
    std::optional<cpu::TopKObserver> observer;
    if (topk != nullptr) {
      check_ids(tile, start, INT32_MAX, "candidates");
      observer.emplace(first ? topk->of_rows(n()) : topk->filled(n(), topk->capacity()));
      check_apart(arrays_, tile, states, *topk);
    } else {
      check_apart(arrays_, tile, states);
    }
    const py::gil_scoped_release release;
    cpu::rows_forward(
        rows, tile.view(), start, extras, first, data, observer ? &*observer : nullptr
    );
  }

  void settle(py::handle state, const TopKArrays& topk) const {
    const Array states(state, "state", Access::read);
    const auto* data = arrays_.states_of<const RowState>(states);
    const cpu::TopK& kept = topk.filled(n(), topk.capacity());
    check_apart(arrays_, states, topk);
    const py::gil_scoped_release release;
    cpu::finalize_topk(rows_here(), data, kept);
  }

  void merge(py::handle pieces, py::handle state) const {
    const Array all(pieces, "pieces", Access::read);
    const Array states(state, "state", Access::write);
    check(
        all->ndim == 3 && all->shape[1] == n() && all->shape[2] == 8,
        "pieces must be [pieces, ",
        n(),
        ", 8]"
    );
    const auto* data =
        reinterpret_cast<const RowState*>(data_of<const double>(all, Dtype::f64, all->size()));
    auto* merged = arrays_.states_of<RowState>(states);
    check_apart(arrays_, all, states);
    const py::gil_scoped_release release;
    cpu::rows_merge(arrays_.rows(), data, all->shape[0], merged);
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
    const Array states(state, "state", Access::read);
    arrays_.check_targets();
    count_of(vocab, kMostColumns, "vocab");
    const auto ids = optional_array(row_ids, "row_ids", Access::read);
    const OutputArrays out(
        {logp, entropy, lse, varentropy, sum_p2, entropy_change, argmax}, n(), true, Place{}
    );
    const auto* names = data_of<const int64_t>(ids, Dtype::i64, n());
    const auto* data = arrays_.states_of<const RowState>(states);
    check_apart(arrays_, states, ids, out);
    const py::gil_scoped_release release;
    cpu::rows_finalize(arrays_.rows(), data, vocab, names, out.view());
  }

  void measure_topk(
      py::handle state, const TopKArrays& topk, py::handle mass, py::handle entropy, double slack
  ) const {
    const Array states(state, "state", Access::read);
    const Array masses(mass, "mass", Access::write);
    const Array entropies(entropy, "entropy", Access::write);
    arrays_.check_targets();
    check(slack >= 0, "spare must not be negative, got ", slack);
    const auto* data = arrays_.states_of<const RowState>(states);
    const cpu::TopK& kept = topk.settled(n());
    const cpu::Dropped dropped{
        data_of<double>(masses, Dtype::f64, n()), data_of<double>(entropies, Dtype::f64, n())
    };
    const logitless::Rows rows = rows_here();
    for (int64_t row = 0; row < n(); ++row) {
      if (rows.active(row)) count_of(rows.targets[row], INT32_MAX, "targets");
    }
    check_apart(arrays_, states, topk, masses, entropies);
    const py::gil_scoped_release release;
    cpu::measure_topk(rows, data, kept, slack, dropped);
  }

  void sparse_gradient(
      py::handle state,
      const TopKArrays& topk,
      py::handle index,
      py::handle offsets,
      py::handle columns,
      py::handle values,
      py::handle g_logp,
      py::handle g_entropy,
      py::handle g_lse
  ) const {
    const Array states(state, "state", Access::read);
    const Array which(index, "index", Access::read);
    const SparseArray out(offsets, columns, values, Access::write);
    arrays_.check_targets();
    const UpstreamArrays g(g_logp, g_entropy, g_lse, n());
    const auto* data = arrays_.states_of<const RowState>(states);
    const cpu::TopK& kept = topk.filled(n(), topk.capacity());
    const auto* row_of = data_of<const int64_t>(which, Dtype::i64, out->n);
    for (int64_t i = 0; i < out->n; ++i) {
      check(0 <= row_of[i] && row_of[i] < n(), "index must be in [0, ", n(), "), got ", row_of[i]);
      check(
          out->offsets[i + 1] - out->offsets[i] == kept.count[row_of[i]],
          "offsets must be the sums of the rows' counts"
      );
    }
    check_apart(arrays_, states, topk, which, out, g);
    const py::gil_scoped_release release;
    cpu::sparse_gradient(rows_here(), data, kept, row_of, g.logp, g.entropy, g.lse, *out);
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
    const Array tile(logits, "logits", Access::read);
    const Array states(state, "state", Access::read);
    const Array out(gradient, "gradient", Access::write);
    arrays_.check_targets();
    const UpstreamArrays g(g_logp, g_entropy, g_lse, n());
    const logitless::Rows rows = of_tile(tile, start);
    const auto* data = arrays_.states_of<const RowState>(states);
    check_apart(arrays_, states, g, out);
    if (!same_elements(tile.view(), out.view())) check_apart(tile, out);
    const py::gil_scoped_release release;
    cpu::rows_gradient(rows, tile.view(), start, data, g.logp, g.entropy, g.lse, out.view());
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
    const Array tile(logits, "logits", Access::read);
    const Array states(state, "state", Access::write);
    const Array bests(best, "best", Access::write);
    const Array ids(row_ids, "row_ids", Access::read);
    const cpu::SampleKey key = key_of(ids, seed, step);
    const logitless::Rows rows = of_tile(tile, start);
    check_ids(tile, start, cpu::kMostSampled, "sampling");
    auto* data = arrays_.states_of<RowState>(states);
    auto* best_data =
        reinterpret_cast<cpu::SampleState*>(data_of<double>(bests, Dtype::f64, 2 * n()));
    check_apart(arrays_, tile, states, bests, ids);
    const py::gil_scoped_release release;
    cpu::rows_sample(rows, tile.view(), start, first, key, data, best_data);
  }

  // From topk where they are given, else from whole rows of logits [n, V].
  void draw_truncated(
      py::handle state,
      py::handle token,
      const TopKArrays* topk,
      py::handle logits,
      int64_t top_k,
      double top_p,
      py::handle row_ids,
      uint64_t seed,
      uint64_t step
  ) const {
    const Array states(state, "state", Access::write);
    const Array tokens(token, "token", Access::write);
    const Array ids(row_ids, "row_ids", Access::read);
    const auto whole = optional_array(logits, "logits", Access::read);
    const cpu::SampleKey key = key_of(ids, seed, step);
    check(top_k >= 0, "top_k must not be negative, got ", top_k);
    check(0 < top_p && top_p <= 1, "top_p must be above 0 and at most 1, got ", top_p);
    const cpu::Truncation truncation{top_k, top_p};
    auto* data = arrays_.states_of<RowState>(states);
    auto* drawn = data_of<int64_t>(tokens, Dtype::i64, n());
    check(whole.has_value() != (topk != nullptr), "give candidates or logits");
    const logitless::Rows rows = whole ? of_tile(*whole, 0) : rows_here();
    const cpu::TopK* kept = whole ? nullptr : &topk->settled(n());
    if (whole) {
      check_apart(arrays_, states, tokens, ids, whole);
    } else {
      check_apart(arrays_, states, tokens, ids, *topk);
    }
    const py::gil_scoped_release release;
    if (whole) {
      cpu::draw_from_rows(rows, whole->view(), truncation, key, data, drawn);
    } else {
      cpu::draw_from_topk(rows, *kept, truncation, key, data, drawn);
    }
  }

 private:
  int64_t n() const { return arrays_.rows().n; }

  cpu::SampleKey key_of(const Array& row_ids, uint64_t seed, uint64_t step) const {
    check(step < uint64_t{1} << 43, "step must be below 2^43, got ", step);
    return {seed, step, data_of<const int64_t>(row_ids, Dtype::i64, n())};
  }

  logitless::Rows rows_here() const {
    logitless::Rows rows = arrays_.rows();
    rows.threads = threads_;
    return rows;
  }

  // Of a tile that of_tile has checked.
  static void check_ids(const Array& tile, int64_t start, int64_t limit, const char* what) {
    const int64_t stop = start + (tile->ndim > 0 ? tile->shape[tile->ndim - 1] : 0);
    check(stop <= limit, what, " needs ids below ", limit, ", got a tile up to ", stop);
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
  const Array in(t, "t", Access::read);
  const Array result(out, "out", Access::write);
  const int64_t n = in->size();
  check(n % 64 == 0, "t must hold a multiple of 64 elements, got ", n);
  const auto* source = data_of<const float>(in, Dtype::f32, n);
  auto* target = data_of<float>(result, Dtype::f32, n);
  check_apart(in, result);
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
  py::class_<TopKArrays>(m, "Candidates", "The largest logits of each row; see topk.h.")
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
          &Rows::measure_topk,
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
          &Rows::sparse_gradient,
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
