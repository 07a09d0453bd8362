// Row kernels for Python: forward over a tile, finish, backward over a tile.
#include <pybind11/pybind11.h>

#include "../cpu/rows.h"
#include "dlpack.h"

namespace py = pybind11;

namespace logitless::bindings {
namespace {

// The arguments every row function shares, kept alive together.
class RowArguments {
 public:
  RowArguments(
      py::handle targets,
      py::handle mask,
      py::handle bias,
      double scale,
      py::handle row_scale,
      double pre,
      double softcap,
      int threads,
      Dtype logits_dtype,
      int64_t first,
      int64_t columns
  )
      : targets_(targets, "targets"),
        mask_(optional_array(mask, "mask")),
        bias_(optional_array(bias, "bias")),
        row_scale_(optional_array(row_scale, "row_scale")) {
    rows.n = targets_->size();
    rows.targets = data_of<int64_t>(targets_, Dtype::i64, rows.n, "targets");
    rows.mask = data_of<uint8_t>(mask_, Dtype::boolean, rows.n, "mask");
    rows.row_scale = data_of<double>(row_scale_, Dtype::f64, rows.n, "row_scale");
    rows.scale = scale;
    rows.threads = threads;
    rows.chain.pre = pre;
    rows.chain.softcap = softcap;
    if (bias_) {
      const Dtype compute = logits_dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32;
      const int64_t vocab = bias_->view().size();
      check(first + columns <= vocab, "bias must cover the tile, got ", vocab, " entries");
      const char* data = contiguous_data<char>(bias_->view(), compute, vocab, "bias");
      rows.chain.bias = data + first * dtype_bytes(compute);
    }
  }
  cpu::Rows rows;

 private:
  Array targets_;
  std::optional<Array> mask_, bias_, row_scale_;
};

cpu::RowState* state_of(const Array& state, int64_t n) {
  return reinterpret_cast<cpu::RowState*>(data_of<double>(state, Dtype::f64, 8 * n, "state"));
}

TensorView output(const std::optional<Array>& array, int64_t n, const char* name) {
  if (!array) return {};
  const TensorView& view = array->view();
  check(view.dtype == Dtype::f32 || view.dtype == Dtype::f64, name, " must be float32 or float64");
  contiguous_data<void>(view, view.dtype, n, name);
  return view;
}

void row_forward(
    py::object logits_object,
    py::object targets,
    py::object state_object,
    int64_t start,
    bool first,
    bool extras,
    py::object mask,
    py::object bias,
    double scale,
    py::object row_scale,
    double pre,
    double softcap,
    int threads
) {
  const Array logits(logits_object, "logits");
  const Array state(state_object, "state");
  const int64_t columns = logits->ndim == 2 ? logits->shape[1] : 0;
  const RowArguments arguments(
      targets, mask, bias, scale, row_scale, pre, softcap, threads, logits->dtype, start, columns
  );
  cpu::RowState* states = state_of(state, arguments.rows.n);
  const py::gil_scoped_release release;
  cpu::rows_forward(arguments.rows, logits.view(), start, extras, first, states);
}

void row_finish(
    py::object state_object,
    py::object targets,
    int64_t vocab,
    py::object logp,
    py::object entropy,
    py::object lse,
    py::object mask,
    double scale,
    py::object row_scale,
    py::object row_ids,
    py::object varentropy,
    py::object sum_p2,
    py::object entropy_change,
    py::object argmax
) {
  const Array state(state_object, "state");
  const RowArguments arguments(
      targets, mask, py::none(), scale, row_scale, 1, 0, 1, Dtype::f32, 0, 0
  );
  const int64_t n = arguments.rows.n;
  const auto ids = optional_array(row_ids, "row_ids");
  const std::optional<Array> arrays[] = {
      optional_array(logp, "logp"),
      optional_array(entropy, "entropy"),
      optional_array(lse, "lse"),
      optional_array(varentropy, "varentropy"),
      optional_array(sum_p2, "sum_p2"),
      optional_array(entropy_change, "entropy_change")
  };
  const auto argmax_array = optional_array(argmax, "argmax");
  cpu::RowOutputs out;
  out.logp = output(arrays[0], n, "logp");
  out.entropy = output(arrays[1], n, "entropy");
  out.lse = output(arrays[2], n, "lse");
  out.varentropy = output(arrays[3], n, "varentropy");
  out.sum_p2 = output(arrays[4], n, "sum_p2");
  out.entropy_change = output(arrays[5], n, "entropy_change");
  out.argmax = data_of<int64_t>(argmax_array, Dtype::i64, n, "argmax");
  cpu::rows_finish(
      arguments.rows,
      state_of(state, n),
      vocab,
      data_of<int64_t>(ids, Dtype::i64, n, "row_ids"),
      out
  );
}

void row_backward(
    py::object logits_object,
    py::object targets,
    py::object state_object,
    py::object gradient_object,
    int64_t start,
    py::object g_logp,
    py::object g_entropy,
    py::object g_lse,
    py::object mask,
    py::object bias,
    double scale,
    py::object row_scale,
    double pre,
    double softcap,
    int threads
) {
  const Array logits(logits_object, "logits");
  const Array gradient(gradient_object, "gradient");
  const Array state(state_object, "state");
  const int64_t columns = logits->ndim == 2 ? logits->shape[1] : 0;
  const RowArguments arguments(
      targets, mask, bias, scale, row_scale, pre, softcap, threads, logits->dtype, start, columns
  );
  const int64_t n = arguments.rows.n;
  const auto gl = optional_array(g_logp, "g_logp");
  const auto ge = optional_array(g_entropy, "g_entropy");
  const auto gz = optional_array(g_lse, "g_lse");
  const cpu::RowState* states = state_of(state, n);
  const double* gl_data = data_of<double>(gl, Dtype::f64, n, "g_logp");
  const double* ge_data = data_of<double>(ge, Dtype::f64, n, "g_entropy");
  const double* gz_data = data_of<double>(gz, Dtype::f64, n, "g_lse");
  const py::gil_scoped_release release;
  cpu::rows_backward(
      arguments.rows, logits.view(), start, states, gl_data, ge_data, gz_data, gradient.view()
  );
}

}  // namespace

void register_rows(py::module_& m) {
  const auto none = py::none();
  m.attr("BLOCK") = cpu::kBlock;
  m.def(
      "row_forward",
      &row_forward,
      "Fold a tile of logits [N, tile] into state [N, 8].",
      py::arg("logits"),
      py::arg("targets"),
      py::arg("state"),
      py::kw_only(),
      py::arg("start") = 0,
      py::arg("first") = true,
      py::arg("extras") = false,
      py::arg("mask") = none,
      py::arg("bias") = none,
      py::arg("scale") = 1.0,
      py::arg("row_scale") = none,
      py::arg("pre") = 1.0,
      py::arg("softcap") = 0.0,
      py::arg("threads") = 0
  );
  m.def(
      "row_finish",
      &row_finish,
      "Turn state [N, 8] into logp, entropy, lse and extras; raise at a bad row.",
      py::arg("state"),
      py::arg("targets"),
      py::arg("vocab"),
      py::kw_only(),
      py::arg("logp"),
      py::arg("entropy"),
      py::arg("lse"),
      py::arg("mask") = none,
      py::arg("scale") = 1.0,
      py::arg("row_scale") = none,
      py::arg("row_ids") = none,
      py::arg("varentropy") = none,
      py::arg("sum_p2") = none,
      py::arg("entropy_change") = none,
      py::arg("argmax") = none
  );
  m.def(
      "row_backward",
      &row_backward,
      "Write d(logits) of a tile into gradient (which may be the tile).",
      py::arg("logits"),
      py::arg("targets"),
      py::arg("state"),
      py::arg("gradient"),
      py::kw_only(),
      py::arg("start") = 0,
      py::arg("g_logp") = none,
      py::arg("g_entropy") = none,
      py::arg("g_lse") = none,
      py::arg("mask") = none,
      py::arg("bias") = none,
      py::arg("scale") = 1.0,
      py::arg("row_scale") = none,
      py::arg("pre") = 1.0,
      py::arg("softcap") = 0.0,
      py::arg("threads") = 0
  );
}

}  // namespace logitless::bindings
