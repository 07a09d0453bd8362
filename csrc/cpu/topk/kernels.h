// What one instruction set provides for the largest logits of a row and for sparse rows.
#pragma once

#include "../rows/rows.h"

namespace logitless::cpu {

// Columns first to first + n of sum over i < count of values[i] * dense[columns[i], :].
struct SparseSum {
  const void* dense;  // storage type
  int64_t stride;     // elements from row to row
  const int32_t* columns;
  const void* values;  // compute type
  int64_t count;
  int64_t first, n;
};

struct TopKKernels {
  // y and column of every entry with y > threshold, in order; returns how many. Room for the whole
  // block.
  int64_t (*above)(Dtype, const BlockInput&, double threshold, double* y, int32_t* columns);
  // How many of n values are above the limit.
  int64_t (*count_above)(const double* y, int64_t n, double limit);
  // The sum into memory of the compute type; every column by itself, in the order of the entries.
  void (*sparse_sum)(Dtype, const SparseSum&, void* sums);
  // out (storage type) = sums, or with `add` out + sums, rounded once.
  void (*deposit)(Dtype, const void* sums, int64_t n, bool add, void* out);
};

// Those of the instruction set that row_kernels() has.
const TopKKernels& topk_kernels();

}  // namespace logitless::cpu
