// What the draws of every device are given beside rows, checked once.
#pragma once

#include "../core/sampling.h"
#include "arrays/dlpack.h"

namespace logitless::bindings {

inline SampleKey key_of(const Array& row_ids, int64_t n, uint64_t seed, uint64_t step) {
  check(step < uint64_t{1} << 43, "step must be below 2^43, got ", step);
  return {seed, step, data_of<const int64_t>(row_ids, Dtype::i64, n)};
}

inline Truncation truncation_of(int64_t top_k, double top_p, double min_p) {
  check(top_k >= 0, "top_k must not be negative, got ", top_k);
  check(0 < top_p && top_p <= 1, "top_p must be above 0 and at most 1, got ", top_p);
  check(0 <= min_p && min_p <= 1, "min_p must be from 0 to 1, got ", min_p);
  return {top_k, top_p, min_p};
}

}  // namespace logitless::bindings
