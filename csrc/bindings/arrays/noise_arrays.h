// Noise on a teacher's logits as Python gives it.
#pragma once

#include "../../core/noise.h"
#include "overlap.h"
#include "scalars.h"

namespace logitless::bindings {

// Noise on the teacher's z of the rows of a call.
class NoiseArrays {
 public:
  NoiseArrays(
      pybind11::handle row_ids,
      pybind11::handle sizes,
      uint64_t seed,
      uint64_t step,
      int64_t start,
      const Place& place = {}
  )
      : row_ids_(row_ids, "row_ids", Access::read, place),
        sizes_(sizes, "sizes", Access::read, place) {
    const int64_t n = sizes_->size();
    noise_ = {
        seed,
        step,
        data_of<const int64_t>(row_ids_, Dtype::i64, n),
        data_of<const double>(sizes_, Dtype::f64, n),
        count_of(start, INT32_MAX, "start")
    };
    check(step < uint64_t{1} << 34, "step must be below 2^34, got ", step);
  }

  // Of sizes that the host may read.
  void check_sizes() const {
    for (int64_t i = 0; i < sizes_->size(); ++i) {
      const double size = noise_.sizes[i];
      check(
          0 <= size && size < INFINITY, "noise must be finite and >= 0, got ", size, " at [", i, "]"
      );
    }
  }

  PairNoise of_rows(int64_t n) const {
    check(sizes_->size() == n, "noise must be of ", n, " rows, got ", sizes_->size());
    return noise_;
  }
  void collect(Spans& spans) const {
    spans.take(row_ids_);
    spans.take(sizes_);
  }

 private:
  Array row_ids_, sizes_;
  PairNoise noise_;
};

inline PairNoise noise_of(const NoiseArrays* noise, int64_t n) {
  return noise == nullptr ? PairNoise{} : noise->of_rows(n);
}

}  // namespace logitless::bindings
