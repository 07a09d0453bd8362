// Row kernels: what one instruction set provides (a table of block functions) and the drivers over
// them.
#pragma once

#include "../../core/exp2.h"
#include "../../core/rows.h"

namespace logitless::cpu {

// Float storage computes in float, double in double.
struct BlockInput {
  const void* raw;  // storage type
  int64_t n;        // columns, at most kBlock
  int64_t first;    // column of the tile at which the block starts (bias index)
  LogitTransform transform;
  double scale;
};

struct BlockMoments {
  Moments moments;
  double target;  // y at `target_column` if that is in the block, else NaN
};

struct RowKernels {
  // Moments of a block; target_column is relative to the block, outside [0, n) when not in it.
  void (*moments)(Dtype, const BlockInput&, int64_t target_column, bool extras, BlockMoments* out);
  // First column whose y is `value`, or -1. Asked for the maximum, and only where a row has a new
  // one.
  int64_t (*find)(Dtype, const BlockInput&, double value);
  // d(raw) of a block, written to out (storage type; may be the input itself).
  void (*gradient)(Dtype, const BlockInput&, const RowGradient&, int64_t target_column, void* out);
  // e^((y - m) scale) of every column of a block, and y itself.
  void (*weights)(Dtype, const BlockInput&, double m, double* weights, double* y);
  // The vector 2^t by itself, for its test; n is a multiple of 64.
  void (*exp2)(const float* t, int64_t n, float* out);
};

// The table in use: the best this CPU supports, or the one LOGITLESS_ISA names (an error if it
// cannot run).
const RowKernels& row_kernels();

// Sees every block of the active rows while they stream by, the blocks of a row in order: a store
// of the largest logits, say.
class BlockObserver {
 public:
  // Before the first block of a row.
  virtual void clear(int64_t row) const = 0;
  // `first_id` is the vocabulary id of the block's first column, `block_max` its largest y and
  // `row_max` that of the row so far.
  virtual void push(
      int64_t row,
      Dtype dtype,
      const BlockInput& block,
      int64_t first_id,
      double block_max,
      double row_max
  ) const = 0;

 protected:
  ~BlockObserver() = default;
};

// Folds a tile of logits [n, tile] (or [b, t, tile] with b t = n), whose first column is vocabulary
// id `start` (a multiple of kBlock), into the state. With `first`, the state is started afresh.
// `observer`, unless null, sees every block.
void rows_forward(
    const Rows& rows,
    const TensorView& logits,
    int64_t start,
    bool extras,
    bool first,
    RowState* state,
    const BlockObserver* observer = nullptr
);

// Merges the states of the same rows over `count` consecutive parts of the vocabulary, [count, n],
// in their order, so that everyone who has them gets the same bits.
void rows_merge(const Rows& rows, const RowState* parts, int64_t count, RowState* state);

// Turns states into outputs (masked rows: 0; argmax -1) and throws at the first bad row: a NaN, a
// +inf, no finite logit, or a target outside [0, vocab). `row_ids` names rows in messages (null:
// their index).
void rows_finalize(
    const Rows& rows,
    const RowState* state,
    int64_t vocab,
    const int64_t* row_ids,
    const RowOutputs& out
);

// d(logits) of a tile from the three upstream gradients (each [n] float64 or null: zero).
// `gradient` may be `logits` itself. Rows with zero gradients are not read and get zeros.
void rows_gradient(
    const Rows& rows,
    const TensorView& logits,
    int64_t start,
    const RowState* state,
    const double* g_logp,
    const double* g_entropy,
    const double* g_lse,
    const TensorView& gradient
);

}  // namespace logitless::cpu
