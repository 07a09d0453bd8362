#include "row_arrays.h"

#include <algorithm>
#include <iterator>
#include <string>

#include "scalars.h"

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
    : targets_(optional_array(targets, "targets", Access::read, place)),
      mask_(optional_array(mask, "mask", Access::read, place)),
      row_scale_(optional_array(row_scale, "row_scale", Access::read, place)),
      bias_(optional_array(bias, "bias", Access::read, place)) {
  rows_.n = count_of(n, kMostRows, "n");
  for (const auto& [value, name] :
       {std::pair{scale, "scale"}, {pre, "pre"}, {softcap, "softcap"}}) {
    check(std::isfinite(value), name, " must be finite, got ", value);
  }
  check(softcap >= 0, "softcap must not be negative, got ", softcap);
  rows_.targets = data_of<const int64_t>(targets_, Dtype::i64, n);
  rows_.mask = data_of<const uint8_t>(mask_, Dtype::boolean, n);
  rows_.row_scale = data_of<const double>(row_scale_, Dtype::f64, n);
  rows_.scale = scale;
  rows_.transform.pre_scale = pre;
  rows_.transform.softcap = softcap;
  // Where a tile's bias starts, of_tile says.
  if (bias_) rows_.transform.bias = bias_->view().data;
}

logitless::Rows RowArrays::of_tile(const Array& tile, int64_t start, Dtype compute) const {
  logitless::Rows rows = rows_;
  const int64_t columns = tile->ndim > 0 ? tile->shape[tile->ndim - 1] : 0;
  count_of(columns, kMostColumns, "the columns of a tile");
  count_of(start, kMostColumns - columns, "start");
  if (!bias_) return rows;
  const int64_t vocab = bias_->view().size();
  check(start + columns <= vocab, "bias must cover the tile, got ", vocab, " entries");
  const char* data = data_of<const char>(bias_, compute, vocab);
  rows.transform.bias = data + start * dtype_bytes(compute);
  return rows;
}

void RowArrays::collect(Spans& spans) const {
  for (const auto* array : {&targets_, &mask_, &row_scale_, &bias_}) spans.take(*array);
}

OutputArrays::OutputArrays(
    std::initializer_list<RealOutput> reals,
    const py::kwargs& statistics,
    py::handle argmax,
    int64_t n,
    bool allow_f64,
    const Place& place
) {
  for (const auto& real : reals) take(real, n, allow_f64, place);
  if (!statistics.empty()) take_statistics(statistics, n, allow_f64, place);
  if (argmax.is_none()) return;
  const Array& ids = arrays_.emplace_back(argmax, "argmax", Access::write, place);
  view_.argmax = data_of<int64_t>(ids, Dtype::i64, n);
}

void OutputArrays::take(const RealOutput& real, int64_t n, bool allow_f64, const Place& place) {
  if (real.handle.is_none()) return;
  const TensorView& view =
      arrays_.emplace_back(real.handle, real.name, Access::write, place).view();
  const char* allowed = allow_f64 ? " must be float32 or float64, got " : " must be float32, got ";
  check(
      view.dtype == Dtype::f32 || (allow_f64 && view.dtype == Dtype::f64),
      real.name,
      allowed,
      dtype_name(view.dtype)
  );
  contiguous_data<void>(view, view.dtype, n, real.name);
  view_.*real.field = view;
}

void OutputArrays::take_statistics(
    const py::kwargs& statistics, int64_t n, bool allow_f64, const Place& place
) {
  static constexpr struct {
    const char* name;
    TensorView RowOutputs::* field;
  } known[] = {
#define LOGITLESS_OUTPUT(name) {#name, &RowOutputs::name},
      LOGITLESS_STATISTICS(LOGITLESS_OUTPUT)
#undef LOGITLESS_OUTPUT
  };
  size_t taken = 0;
  for (const auto& [name, field] : known) {
    if (!statistics.contains(name)) continue;
    const py::object array = statistics[name];
    take({name, array, field}, n, allow_f64, place);
    ++taken;
  }
  if (taken == statistics.size()) return;
  for (const auto& [key, value] : statistics) {
    const auto given = key.cast<std::string>();
    const auto is_given = [&](const auto& one) { return given == one.name; };
    if (std::none_of(std::begin(known), std::end(known), is_given)) {
      throw py::type_error("finalize has no output named " + given);
    }
  }
}

void OutputArrays::collect(Spans& spans) const {
  for (const Array& array : arrays_) spans.take(array);
}

}  // namespace logitless::bindings
