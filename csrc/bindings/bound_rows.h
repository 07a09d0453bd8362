// The row kernels for Python, written once for every device: an object that holds what the tiles of
// one call share, and a method per kernel. Methods take the same arguments everywhere; what a
// device has no use for, it refuses.
#pragma once

#include "arrays/row_arrays.h"
#include "arrays/scalars.h"
#include "arrays/topk_arrays.h"

namespace logitless::bindings {

// The gradients of a row's outputs, [n] each or not given.
struct UpstreamArrays {
  std::optional<Array> logp, entropy, lse;

  UpstreamArrays(
      pybind11::handle g_logp,
      pybind11::handle g_entropy,
      pybind11::handle g_lse,
      const Place& place
  )
      : logp(optional_array(g_logp, "g_logp", Access::read, place)),
        entropy(optional_array(g_entropy, "g_entropy", Access::read, place)),
        lse(optional_array(g_lse, "g_lse", Access::read, place)) {}

  void collect(Spans& spans) const {
    for (const auto* array : {&logp, &entropy, &lse}) spans.take(*array);
  }
};

// Of a tile that of_tile has checked.
inline void check_ids(const Array& tile, int64_t start, int64_t limit, const char* what) {
  const int64_t stop = start + (tile->ndim > 0 ? tile->shape[tile->ndim - 1] : 0);
  check(stop <= limit, what, " needs ids below ", limit, ", got a tile up to ", stop);
}

// A Device has
//   TopKOf          the class of what keeps the largest logits
//   kWhere          what its constructor takes: the name of a number
//   kWideOutputs    whether outputs may be float64
//   place()         where arrays are
//   threads()       of the CPU
//   compute(dtype)  the dtype that a tile is computed in
// and forward, finalize and gradient, which check what only the device knows and run the kernels.
template <typename Device>
class BoundRows {
 public:
  BoundRows(
      int64_t n,
      pybind11::handle targets,
      pybind11::handle mask,
      pybind11::handle row_scale,
      double scale,
      pybind11::handle bias,
      double pre,
      double softcap,
      int where
  )
      : device_(where),
        arrays_(n, targets, mask, row_scale, scale, bias, pre, softcap, device_.place()) {}

  int64_t n() const { return arrays_.rows().n; }
  const Device& device() const { return device_; }
  const RowArrays& arrays() const { return arrays_; }
  void collect(Spans& spans) const { arrays_.collect(spans); }

  logitless::Rows rows() const {
    logitless::Rows rows = arrays_.rows();
    rows.threads = device_.threads();
    return rows;
  }
  // The same with the bias at the tile's first column.
  logitless::Rows of_tile(const Array& tile, int64_t start) const {
    logitless::Rows rows = arrays_.of_tile(tile, start, device_.compute(tile->dtype));
    rows.threads = device_.threads();
    return rows;
  }

  void forward(
      pybind11::handle logits,
      pybind11::handle state,
      int64_t start,
      bool first,
      bool extras,
      const typename Device::TopKOf* topk,
      pybind11::handle workspace,
      int64_t stream
  ) const {
    const Place place = device_.place();
    const Array tile(logits, "logits", Access::read, place);
    const Array states(state, "state", Access::write, place);
    const auto memory = optional_array(workspace, "workspace", Access::write, place);
    arrays_.check_targets();
    const logitless::Rows rows = of_tile(tile, start);
    auto* data = arrays_.states_of<RowState>(states);
    check_apart(arrays_, tile, states, memory, topk);
    const pybind11::gil_scoped_release release;
    device_.forward(rows, tile, start, extras, first, data, topk, memory, stream);
  }

  void finalize(
      pybind11::handle state,
      int64_t vocab,
      pybind11::handle logp,
      pybind11::handle entropy,
      pybind11::handle lse,
      pybind11::handle row_ids,
      pybind11::handle argmax,
      pybind11::handle error,
      int64_t stream,
      const pybind11::kwargs& statistics
  ) const {
    const Place place = device_.place();
    const Array states(state, "state", Access::read, place);
    const auto flag = optional_array(error, "error", Access::write, place);
    const auto ids = optional_array(row_ids, "row_ids", Access::read, place);
    arrays_.check_targets();
    count_of(vocab, kMostColumns, "vocab");
    const OutputArrays out(
        {{"logp", logp, &RowOutputs::logp},
         {"entropy", entropy, &RowOutputs::entropy},
         {"lse", lse, &RowOutputs::lse}},
        statistics,
        argmax,
        n(),
        Device::kWideOutputs,
        place
    );
    const auto* names = data_of<const int64_t>(ids, Dtype::i64, n());
    const auto* data = arrays_.states_of<const RowState>(states);
    check_apart(arrays_, states, flag, ids, out);
    const pybind11::gil_scoped_release release;
    device_.finalize(rows(), data, vocab, names, out.view(), flag, stream);
  }

  void gradient(
      pybind11::handle logits,
      pybind11::handle state,
      pybind11::handle gradient,
      int64_t start,
      pybind11::handle g_logp,
      pybind11::handle g_entropy,
      pybind11::handle g_lse,
      int64_t stream
  ) const {
    const Place place = device_.place();
    const Array tile(logits, "logits", Access::read, place);
    const Array states(state, "state", Access::read, place);
    const Array out(gradient, "gradient", Access::write, place);
    const UpstreamArrays upstream(g_logp, g_entropy, g_lse, place);
    arrays_.check_targets();
    const logitless::Rows rows = of_tile(tile, start);
    const auto* data = arrays_.states_of<const RowState>(states);
    check_apart(arrays_, states, upstream, out);
    if (!same_elements(tile.view(), out.view())) check_apart(tile, out);
    const pybind11::gil_scoped_release release;
    device_.gradient(rows, tile.view(), start, data, upstream, out.view(), stream);
  }

 private:
  Device device_;
  RowArrays arrays_;
};

template <typename Device>
pybind11::class_<BoundRows<Device>> bind_rows(
    pybind11::module_& m, const char* name, const char* doc
) {
  namespace py = pybind11;
  using Bound = BoundRows<Device>;
  const auto none = py::none();
  py::class_<Bound> rows(m, name, doc);
  rows.def(
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
          py::arg(Device::kWhere) = 0
  )
      .def(
          "forward",
          &Bound::forward,
          "Take a tile of logits [n, width] into state [n, 8]; keep the largest in topk.",
          py::arg("logits"),
          py::arg("state"),
          py::kw_only(),
          py::arg("start") = 0,
          py::arg("first") = true,
          py::arg("extras") = false,
          py::arg("topk") = none,
          py::arg("workspace") = none,
          py::arg("stream") = 0
      )
      .def(
          "finalize",
          &Bound::finalize,
          "Turn state [n, 8] into logp, entropy, lse and extras. The first bad row raises; on CUDA "
          "a "
          "bad row is NaN and lowers error to row_id * 8 + kind.",
          py::arg("state"),
          py::arg("vocab"),
          py::kw_only(),
          py::arg("logp"),
          py::arg("entropy"),
          py::arg("lse"),
          py::arg("row_ids") = none,
          py::arg("argmax") = none,
          py::arg("error") = none,
          py::arg("stream") = 0
      )
      .def(
          "gradient",
          &Bound::gradient,
          "Write d(logits) of a tile into gradient, which may be the tile.",
          py::arg("logits"),
          py::arg("state"),
          py::arg("gradient"),
          py::kw_only(),
          py::arg("start") = 0,
          py::arg("g_logp") = none,
          py::arg("g_entropy") = none,
          py::arg("g_lse") = none,
          py::arg("stream") = 0
      );
  return rows;
}

}  // namespace logitless::bindings
