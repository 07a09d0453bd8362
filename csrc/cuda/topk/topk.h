// The largest logits of rows on a CUDA device, and sparse rows made of them: the functions of
// csrc/cpu/topk on the caller's stream. They allocate nothing, wait for nothing and may be captured
// in a graph. Built without CUDA, absent.cpp defines the same symbols.
//
// Nobody on the host sees the numbers in the arrays. Counts, offsets and names that lie outside of
// what they count are taken for none.
#pragma once

#include "../../core/topk.h"
#include "../rows/rows.h"

namespace logitless::cuda {

// After rows_forward of the same tile, whose workspace it reads: keeps the largest logits of each
// row. y are float numbers. Without a workspace, once whole rows are known: every column is read,
// and masked rows stay as they are.
void topk_capture(
    const Rows& rows,
    const TensorView& logits,
    int64_t start,
    bool first,
    const RowState* state,
    const void* workspace,
    const TopK& topk,
    Stream stream
);

// After the last tile: sorts each row, largest first, and drops what the whole row rules out.
// Masked rows stay as they are: empty, where topk_capture had the same mask.
void topk_finalize(const Rows& rows, const RowState* state, const TopK& topk, Stream stream);

// After topk_finalize: measure_row of every active row. Masked rows stay as they are.
void topk_measure(
    const Rows& rows,
    const RowState* state,
    const TopK& topk,
    const Economy& economy,
    const Dropped& dropped,
    Stream stream
);

// Rows of a sparse matrix: row i has entries offsets[i] to offsets[i + 1].
struct SparseRows {
  int64_t n = 0;
  int64_t entries = 0;               // memory for so many
  const int64_t* offsets = nullptr;  // [n + 1]
  int32_t* columns = nullptr;        // [entries]
  float* values = nullptr;           // [entries]
};

LOGITLESS_HD inline Range range_of(const SparseRows& sparse, int64_t row) {
  return range_of(sparse.offsets, sparse.entries, row);
}

// d(raw logits) of the rows `index` [out.n] at their kept entries, of which the offsets are sums.
void sparse_gradient(
    const Rows& rows,
    const RowState* state,
    const TopK& topk,
    const int64_t* index,
    const Upstream& g_logp,
    const Upstream& g_entropy,
    const Upstream& g_lse,
    const SparseRows& out,
    Stream stream
);

// How rows of more than kChain entries are added up: chain by chain into memory, by as many blocks,
// and then in order.
struct Chains {
  const int64_t* ends = nullptr;  // [n] chains of the rows up to this one; null: none is so long
  float* sums = nullptr;          // [slots, H]
  int64_t slots = 0;
};

// out[names[i], :] = (add: itself) + sum over entries of value * dense[column, :], summed in float
// in the order of the entries and rounded once. No two names are equal. With `add` a row without
// entries is not touched.
void sparse_multiply(
    const SparseRows& sparse,
    const int32_t* names,
    const TensorView& dense,  // [columns, H]
    bool add,
    const Chains& chains,
    const TensorView& out,  // [*, H]
    Stream stream
);

// out[names[i]] += sum of the values of row i.
void sparse_add_row_sums(
    const SparseRows& sparse, const int32_t* names, float* out, int64_t size, Stream stream
);

}  // namespace logitless::cuda
