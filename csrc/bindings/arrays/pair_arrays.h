// What the bindings of two softmaxes ask of their arguments, on every device.
#pragma once

#include <optional>
#include <string>

#include "../../core/divergence.h"
#include "noise_arrays.h"
#include "overlap.h"

namespace logitless::bindings {

inline Divergence kind_of(const std::string& kind) {
  if (kind == "reverse_kl") return Divergence::reverse_kl;
  if (kind == "forward_kl") return Divergence::forward_kl;
  check(kind == "jsd", "kind must be reverse_kl, forward_kl or jsd, got ", kind);
  return Divergence::jsd;
}

inline double beta_of(double beta) {
  check(0 < beta && beta < 1, "beta must be above 0 and below 1, got ", beta);
  return beta;
}

template <typename Rows>
void check_same_rows(const Rows& rows, const Rows& teacher) {
  check(teacher.n() == rows.n(), "teacher must have ", rows.n(), " rows, got ", teacher.n());
}

// What d(logits) of n rows are made of beside the logits and the state: a divergence, the sums of a
// mix, and d loss / d of each row's results.
struct PairUpstream {
  Divergence kind;
  double beta;
  std::optional<Array> totals, g_divergence, g_entropy;
  const MixSums* sums;

  PairUpstream(
      const std::string& kind_,
      double beta_,
      pybind11::handle sums_,
      pybind11::handle g_divergence_,
      pybind11::handle g_entropy_,
      int64_t n,
      const Place& place = {}
  )
      : kind(kind_of(kind_)),
        beta(beta_of(beta_)),
        totals(optional_array(sums_, "sums", Access::read, place)),
        g_divergence(optional_array(g_divergence_, "g_divergence", Access::read, place)),
        g_entropy(optional_array(g_entropy_, "g_entropy", Access::read, place)) {
    check(kind != Divergence::jsd || totals, "sums must be given for jsd");
    sums = reinterpret_cast<const MixSums*>(data_of<const double>(totals, Dtype::f64, 2 * n));
  }
  void collect(Spans& spans) const {
    for (const auto* array : {&totals, &g_divergence, &g_entropy}) spans.take(*array);
  }
};

// A tile of each, and the rows with the biases at their first column. Rows is a BoundRows.
template <typename Rows>
struct PairArrays {
  Array logits, teacher_logits;
  PairRows rows;
  PairTile tile;

  PairArrays(
      const Rows& student,
      const Rows& teacher,
      pybind11::handle logits_,
      pybind11::handle teacher_logits_,
      int64_t start,
      const NoiseArrays* noise = nullptr
  )
      : logits(logits_, "logits", Access::read, student.device().place()),
        teacher_logits(teacher_logits_, "teacher_logits", Access::read, student.device().place()) {
    check_same_rows(student, teacher);
    rows = {
        student.of_tile(logits, start),
        teacher.of_tile(teacher_logits, start),
        noise_of(noise, student.n())
    };
    tile = {logits.view(), teacher_logits.view(), start};
  }
  void collect(Spans& spans) const {
    spans.take(logits);
    spans.take(teacher_logits);
  }
};

}  // namespace logitless::bindings
