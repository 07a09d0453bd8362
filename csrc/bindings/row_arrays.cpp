#include "row_arrays.h"

namespace py = pybind11;

namespace logitless::bindings {

RowArrays::RowArrays(
    int64_t n,
    py::handle targets,
    py::handle mask,
    py::handle row_scale,
    double scale,
    py::handle bias,
    double pre,
    double softcap,
    const Place& place
)
    : targets_(optional_array(targets, "targets", place)),
      mask_(optional_array(mask, "mask", place)),
      row_scale_(optional_array(row_scale, "row_scale", place)),
      bias_(optional_array(bias, "bias", place)) {
  rows_.n = n;
  rows_.targets = data_of<int64_t>(targets_, Dtype::i64, n, "targets");
  rows_.mask = data_of<uint8_t>(mask_, Dtype::boolean, n, "mask");
  rows_.row_scale = data_of<double>(row_scale_, Dtype::f64, n, "row_scale");
  rows_.scale = scale;
  rows_.chain.pre = pre;
  rows_.chain.softcap = softcap;
}

logitless::Rows RowArrays::of_tile(const Array& tile, int64_t start, Dtype compute) const {
  logitless::Rows rows = rows_;
  if (!bias_) return rows;
  const int64_t vocab = bias_->view().size();
  const int64_t columns = tile->ndim > 0 ? tile->shape[tile->ndim - 1] : 0;
  check(
      0 <= start && start + columns <= vocab, "bias must cover the tile, got ", vocab, " entries"
  );
  const char* data = contiguous_data<char>(bias_->view(), compute, vocab, "bias");
  rows.chain.bias = data + start * dtype_bytes(compute);
  return rows;
}

RowState* RowArrays::states_of(const Array& state) const {
  return reinterpret_cast<RowState*>(data_of<double>(state, Dtype::f64, 8 * rows_.n, "state"));
}

OutputArrays::OutputArrays(
    const OutputHandles& handles, int64_t n, bool allow_f64, const Place& place
) {
  const struct {
    const char* name;
    py::handle handle;
    TensorView& field;
  } reals[] = {
      {"logp", handles.logp, view_.logp},
      {"entropy", handles.entropy, view_.entropy},
      {"lse", handles.lse, view_.lse},
      {"varentropy", handles.varentropy, view_.varentropy},
      {"sum_p2", handles.sum_p2, view_.sum_p2},
      {"entropy_change", handles.entropy_change, view_.entropy_change}
  };
  for (const auto& real : reals) {
    if (real.handle.is_none()) continue;
    const TensorView& view = arrays_.emplace_back(real.handle, real.name, place).view();
    const char* allowed =
        allow_f64 ? " must be float32 or float64, got " : " must be float32, got ";
    check(
        view.dtype == Dtype::f32 || (allow_f64 && view.dtype == Dtype::f64),
        real.name,
        allowed,
        dtype_name(view.dtype)
    );
    contiguous_data<void>(view, view.dtype, n, real.name);
    real.field = view;
  }
  if (handles.argmax.is_none()) return;
  const Array& argmax = arrays_.emplace_back(handles.argmax, "argmax", place);
  view_.argmax = data_of<int64_t>(argmax, Dtype::i64, n, "argmax");
}

}  // namespace logitless::bindings
