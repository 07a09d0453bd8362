// The terms of rows: a thread a row. In every block of the passes over columns the logarithms in
// float64 would cost as much as 1000 columns do.
#pragma once

#include <cuda/runtime/device.cuh>
#include <cuda/runtime/launch.cuh>

#include "row_terms.cuh"

namespace logitless::cuda {

constexpr int kTermsThreads = 128;

struct PairTermsOut {
  PairTermsArgs from;
  PairTerms* terms;
};

LOGITLESS_KERNEL(kTermsThreads, 4) pair_terms_kernel(const PairTermsOut args) {
  const int64_t row = block_index() * kTermsThreads + threadIdx.x;
  if (row >= args.from.rows.student.n) return;
  args.terms[row] = terms_of(args.from, row);
}

}  // namespace logitless::cuda
