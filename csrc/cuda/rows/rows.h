// Row kernels on a CUDA device: the functions of csrc/cpu/rows/rows.h on the caller's stream. They
// allocate nothing, wait for nothing and may be captured in a graph. Built without CUDA, absent.cpp
// defines the same symbols.
#pragma once

#include "../../core/rows.h"
#include "../runtime/runtime.h"
#include "visit.h"

namespace logitless::cuda {

// The partial statistics of one split of a row, 32 bytes. Sums are in base 2:
// t = x log2(e), so s1 and q1 are in bits, s2 in bits squared.
struct alignas(16) Partial {
  float m, s0, s1, s2, q0, q1;
  float target;    // y of the target if it is in the split
  int32_t argmax;  // column of the split
};
static_assert(sizeof(Partial) == 32, "a workspace is measured in it");

// Columns of a split are 4096 of 16 bits, or 2048 of 32 bits or where they are transformed.
constexpr int64_t kSmallestSplit = 2048;

// Enough for a tile of n rows.
inline int64_t workspace_bytes(int64_t n, int64_t columns) {
  return n * ((columns + kSmallestSplit - 1) / kSmallestSplit) *
         static_cast<int64_t>(sizeof(Partial));
}

// Folds a tile [n, columns] (or [b, t, columns]) into the state; `workspace` is aligned to 16
// bytes.
void rows_forward(
    const Rows& rows,
    const TensorView& logits,
    int64_t start,
    bool extras,
    bool first,
    RowState* state,
    void* workspace,
    int64_t workspace_size,
    Stream stream
);

// Float32 outputs. A bad row is NaN (argmax -1), and *error is lowered to row_id * 8 + RowError.
void rows_finalize(
    const Rows& rows,
    const RowState* state,
    int64_t vocab,
    const int64_t* row_ids,
    const RowOutputs& out,
    int64_t* error,
    Stream stream
);

// A gradient of an output: [n] float32 or float64, or null: zero.
struct Upstream {
  const void* data = nullptr;
  Dtype dtype = Dtype::f64;

  LOGITLESS_HD double at(int64_t row) const {
    if (data == nullptr) return 0;
    if (dtype == Dtype::f32) return static_cast<const float*>(data)[row];
    return static_cast<const double*>(data)[row];
  }
};

// The entries of a row of a sparse matrix, as far as there is memory: for `entries` of all rows.
struct Range {
  int64_t start, stop;
};
LOGITLESS_HD inline Range range_of(const int64_t* offsets, int64_t entries, int64_t row) {
  const int64_t start = offsets[row], stop = offsets[row + 1];
  const bool good = 0 <= start && start <= stop && stop <= entries;
  return good ? Range{start, stop} : Range{0, 0};
}

// d(logits) of a tile; `gradient` may be `logits` itself. Rows that are masked or whose gradients
// are all zero get zeros and are not read.
void rows_gradient(
    const Rows& rows,
    const TensorView& logits,
    int64_t start,
    const RowState* state,
    const Upstream& g_logp,
    const Upstream& g_entropy,
    const Upstream& g_lse,
    const TensorView& gradient,
    Stream stream
);

}  // namespace logitless::cuda
