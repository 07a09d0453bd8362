// _core.tokens.CudaTokens: the token kernels on a CUDA device, on the stream that each call names.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "../../cuda/tokens/tokens.h"
#include "../arrays/cuda_place.h"
#include "../arrays/overlap.h"

namespace py = pybind11;

namespace logitless::bindings {

// A number of Python's, or an array of one that an earlier kernel writes.
template <typename T>
class ScalarArray {
 public:
  ScalarArray(py::handle object, const char* name, Dtype dtype, const Place& place) {
    if (py::isinstance<py::float_>(object) || py::isinstance<py::int_>(object)) {
      scalar_.value = object.cast<T>();
      return;
    }
    array_.emplace(object, name, Access::read, place);
    scalar_.at = data_of<const T>(*array_, dtype, 1);
  }
  cuda::Scalar<T> get() const { return scalar_; }
  T value() const { return scalar_.value; }
  void collect(Spans& spans) const { spans.take(array_); }

 private:
  std::optional<Array> array_;
  cuda::Scalar<T> scalar_;
};

struct DeviceNumber : ScalarArray<double> {
  DeviceNumber(py::handle object, const char* name, const Place& place)
      : ScalarArray(object, name, Dtype::f64, place) {}
};

class CudaTokens {
 public:
  explicit CudaTokens(int device) : device_(device), place_(cuda_place(device)) {}

  void value_sums(
      py::handle first_object,
      py::handle second_object,
      py::handle mask_object,
      py::handle words_object,
      py::handle flag_object,
      int64_t stream
  ) const;
  void sum_means(py::handle words_object, py::handle means_object, int64_t stream) const;

  void fold_sequences(
      py::handle ends_object,
      py::handle mask_object,
      py::handle values_object,
      bool largest,
      py::handle out_object,
      int64_t stream
  ) const;
  void exp(py::handle x_object, py::handle out_object, int64_t stream) const;
  void token_loss(const py::kwargs& keywords) const;

  // selection.cpp
  void covariance_scores(
      py::handle logp_object,
      py::handle advantages_object,
      py::handle mask_object,
      py::handle old_logp_object,
      py::handle ids_object,
      const py::dict& band,
      py::handle scores_object,
      py::handle out_ids_object,
      py::handle flag_object,
      int64_t stream
  ) const;
  void ordered_scores(
      py::handle values_object,
      py::handle which_object,
      py::handle ids_object,
      py::handle scores_object,
      py::handle out_ids_object,
      int64_t stream
  ) const;
  void random_scores(
      py::handle ids_object, uint64_t seed, uint64_t step, py::handle scores_object, int64_t stream
  ) const;
  void radix_levels(
      py::handle scores_object,
      py::handle ids_object,
      py::handle k_object,
      py::handle bins_object,
      py::handle states_object,
      int first,
      int last,
      bool exact,
      int64_t stream
  ) const;
  void radix_take(
      py::handle scores_object,
      py::handle ids_object,
      py::handle k_object,
      py::handle bins_object,
      py::handle states_object,
      py::handle taken_object,
      py::handle flag_object,
      int64_t stream
  ) const;
  void members(
      py::handle ids_object, py::handle sorted_object, py::handle out_object, int64_t stream
  ) const;
  void unique_ids(
      py::handle ids_object,
      py::handle mask_object,
      py::handle table_object,
      py::handle flag_object,
      int64_t stream
  ) const;
  void flag_tokens(
      py::handle good_object, py::handle places_object, py::handle flag_object, int64_t stream
  ) const;
  void sort_ids(
      py::handle ids_object,
      py::handle found_object,
      py::handle room_object,
      py::handle out_object,
      int64_t stream
  ) const;

  // token_report.cpp
  void covariance_sums(
      py::handle logp_object,
      py::handle advantages_object,
      py::handle mask_object,
      py::handle mean_advantage_object,
      py::handle mean_logp_object,
      double above,
      py::handle scores_object,
      py::handle words_object,
      py::handle flag_object,
      int64_t stream
  ) const;
  void covariance_means(py::handle words_object, py::handle out_object, int64_t stream) const;
  void quantile_levels(
      py::handle scores_object,
      py::handle count_object,
      const std::array<double, cuda::kQuantiles>& shares,
      py::handle bins_object,
      py::handle states_object,
      py::handle out_object,
      int first,
      int last,
      int64_t stream
  ) const;
  void collect_numbers(const py::sequence& numbers, py::handle out_object, int64_t stream) const;
  void count_shares(
      py::handle count_object,
      double fraction,
      py::handle inverse_object,
      py::handle part_object,
      int64_t stream
  ) const;
  void loss_outputs(
      py::handle sums_object,
      int tokens,
      py::handle total_object,
      const std::vector<std::pair<int, bool>>& metrics,
      py::handle loss_object,
      py::handle out_object,
      int64_t stream
  ) const;

 private:
  Array reads(py::handle object, const char* name) const {
    return Array(object, name, Access::read, place_);
  }
  Array writes(py::handle object, const char* name) const {
    return Array(object, name, Access::write, place_);
  }
  cuda::Stream queue(int64_t stream) const { return cuda_queue(device_, stream); }

  int device_;
  Place place_;
};

}  // namespace logitless::bindings
