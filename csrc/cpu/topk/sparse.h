// Backward from the largest entries of a row alone: the gradient of its logits as a sparse row, and
// products of sparse rows with dense matrices.
#pragma once

#include "topk.h"

namespace logitless::cpu {

// After finalize_topk: measure_row of every active row. Masked rows stay as they are.
void measure_topk(
    const Rows& rows,
    const RowState* state,
    const TopK& topk,
    const Economy& economy,
    const Dropped& dropped
);

// Rows of a sparse matrix: row i has entries offsets[i] to offsets[i + 1].
struct SparseRows {
  int64_t n = 0;
  const int64_t* offsets = nullptr;  // [n + 1]
  int32_t* columns = nullptr;        // [entries]
  void* values = nullptr;            // [entries] float, or double where `wide`
  bool wide = false;

  int64_t entries() const { return offsets[n]; }
};

// d(raw logits) of the rows `index` [out.n] at their kept entries; offsets are given, and fit.
void sparse_gradient(
    const Rows& rows,
    const RowState* state,
    const TopK& topk,
    const int64_t* index,
    const double* g_logp,
    const double* g_entropy,
    const double* g_lse,
    const SparseRows& out
);

// The transpose of `in`, its empty rows left out: row i of `out` is column names[i] of `in`, whose
// own rows are called row_names. Entries of a row keep the order of `in`. `scratch`: [columns + 1].
// Returns how many rows there are; out.n is not read.
int64_t transpose(
    const SparseRows& in,
    const int32_t* row_names,
    int64_t columns,
    int32_t* scratch,
    int64_t* out_offsets,
    int32_t* names,
    const SparseRows& out
);

// out[names[i], :] = (add: itself) + sum over entries of value * dense[column, :], summed in the
// compute type in the order of the entries and rounded once. No two names are equal.
void multiply(
    const SparseRows& sparse,
    const int32_t* names,
    const TensorView& dense,  // [columns, H]
    bool add,
    int threads,
    const TensorView& out  // [*, H]
);

// out[names[i]] += sum of the values of row i.
void add_row_sums(const SparseRows& sparse, const int32_t* names, const TensorView& out);

}  // namespace logitless::cpu
