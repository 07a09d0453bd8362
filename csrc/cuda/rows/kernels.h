// The kernels as their drivers see them. A kernel takes one struct; the two that read logits are
// compiled in a file per storage type.
#pragma once

#include "rows.h"

namespace logitless::cuda {

struct PartialsArgs {
  Rows rows;  // the bias of the transform starts at the tile's first column
  TensorView logits;
  int64_t start;
  int64_t columns;
  int64_t splits;     // of a row
  Partial* partials;  // [n, splits]
};

struct CombineArgs {
  Rows rows;
  int64_t start;
  int64_t columns;
  int64_t splits;
  int64_t split_columns;
  const Partial* partials;
  RowState* state;
  bool extras;
  bool first;
};

struct FinalizeArgs {
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

// Columns of a split; those of a block of the backward.
template <typename S>
int64_t split_columns(bool transformed);
template <typename S>
int64_t block_columns();

template <typename S>
void launch_partials(const PartialsArgs& args, bool extras, Stream stream);
template <typename S>
void launch_backward(const BackwardArgs& args, Stream stream);

}  // namespace logitless::cuda
