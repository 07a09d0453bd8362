// The arrays of a row call, checked once: what CPU and CUDA have in common.
#pragma once

#include <initializer_list>
#include <vector>

#include "../../core/rows.h"
#include "overlap.h"

namespace logitless::bindings {

// What the tiles of one call share, as the core sees it, with the arrays behind it.
class RowArrays {
 public:
  RowArrays(
      int64_t n,
      pybind11::handle targets,
      pybind11::handle mask,
      pybind11::handle row_scale,
      double scale,
      pybind11::handle bias,
      double pre,
      double softcap,
      const Place& place
  );

  const logitless::Rows& rows() const { return rows_; }
  // The same with the bias moved to the tile's first column; `compute` is the bias's dtype.
  logitless::Rows of_tile(const Array& tile, int64_t start, Dtype compute) const;
  // T: RowState, or const RowState where the call only reads them.
  template <typename T>
  T* states_of(const Array& state) const {
    using Word = std::conditional_t<std::is_const_v<T>, const double, double>;
    return reinterpret_cast<T*>(data_of<Word>(state, Dtype::f64, 8 * rows_.n));
  }
  void collect(Spans& spans) const;
  void check_targets() const { check(targets_.has_value(), "targets must be given"); }

 private:
  std::optional<Array> targets_, mask_, row_scale_, bias_;
  logitless::Rows rows_;
};

// An output of a call as Python gives it.
struct RealOutput {
  const char* name;
  pybind11::handle handle;
  TensorView RowOutputs::* field;
};

class OutputArrays {
 public:
  OutputArrays(
      std::initializer_list<RealOutput> reals,
      const pybind11::kwargs& statistics,
      pybind11::handle argmax,
      int64_t n,
      bool allow_f64,
      const Place& place
  );
  const RowOutputs& view() const { return view_; }
  void collect(Spans& spans) const;

 private:
  void take(const RealOutput& real, int64_t n, bool allow_f64, const Place& place);
  void take_statistics(
      const pybind11::kwargs& statistics, int64_t n, bool allow_f64, const Place& place
  );

  std::vector<Array> arrays_;
  RowOutputs view_;
};

}  // namespace logitless::bindings
