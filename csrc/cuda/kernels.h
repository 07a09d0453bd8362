// The kernels as their drivers see them. A kernel takes one struct; the two that read logits are
// compiled in a file per storage type.
#pragma once

#include "rows.h"

namespace logitless::cuda {

struct PiecesArgs {
  Rows rows;  // the chain's bias starts at the tile's first column
  TensorView logits;
  int64_t start;
  int64_t columns;
  int64_t pieces;   // of a row
  Record* records;  // [n, pieces]
};

struct FoldArgs {
  Rows rows;
  int64_t start;
  int64_t columns;
  int64_t pieces;
  int64_t piece_columns;
  const Record* records;
  RowState* state;
  bool extras;
  bool first;
};

struct FinishArgs {
  Rows rows;
  const RowState* state;
  int64_t vocab;
  const int64_t* row_ids;
  RowOutputs out;
  int64_t* error;
};

struct BackwardArgs {
  Rows rows;
  TensorView logits;
  TensorView gradient;
  int64_t start;
  int64_t columns;
  int64_t blocks;  // of a row
  const RowState* state;
  Upstream g_logp, g_entropy, g_lse;
};

// Columns of a piece; those of a block of the backward.
template <typename S>
int64_t piece_columns(bool chained);
template <typename S>
int64_t block_columns();

template <typename S>
void launch_pieces(const PiecesArgs& args, bool extras, Stream stream);
template <typename S>
void launch_backward(const BackwardArgs& args, Stream stream);

}  // namespace logitless::cuda
