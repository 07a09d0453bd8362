// What one instruction set provides for the largest logits of a row and for sparse rows.
#pragma once

#include "../../core/topk.h"
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

// values[i] = row . dense[columns[i], :] for i < count.
struct RowDots {
  const void* row;    // storage type, [n]
  const void* dense;  // storage type
  int64_t stride;     // elements from row to row
  const int32_t* columns;
  int64_t count, n;
};

// Entries of a row of a tile whose first column is `start`.
struct RowEntries {
  void* row;  // storage type
  int64_t start;
  const int32_t* columns;
  void* values;  // compute type
  int64_t count;
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
  // The products into memory of the compute type; each by itself.
  void (*dots)(Dtype, const RowDots&, void* values);
  // values = the row's, and the row's = values, rounded.
  void (*pick)(Dtype, const RowEntries&);
  void (*put)(Dtype, const RowEntries&);
};

// Those of the instruction set that row_kernels() has.
const TopKKernels& topk_kernels();

}  // namespace logitless::cpu
