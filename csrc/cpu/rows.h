// Row kernels: what one instruction set provides (a table of block functions) and the drivers over
// them.
#pragma once

#include "../core/dtype.h"
#include "../core/moments.h"
#include "../core/tensor_view.h"

namespace logitless::cpu {

// A row is worked through in blocks of this many columns, numbered by global vocabulary id: two
// passes over a block stay in L1 (8 KiB of floats). Sums are in the compute type inside a block and
// in double across blocks, so any tiling of the vocabulary in multiples of the block gives the same
// bits.
constexpr int64_t kBlock = 2048;

// y = softcap(pre * (raw + bias)); z = scale * y. Without a softcap pre is 1 and scale holds
// logit_scale.
struct Chain {
  const void* bias = nullptr;  // compute type, first column of the tile; may be null
  double pre = 1;
  double softcap = 0;  // 0: none
};

// Float storage computes in float, double in double.
struct BlockInput {
  const void* raw;  // storage type
  int64_t n;        // columns, at most kBlock
  int64_t first;    // column of the tile at which the block starts (bias index)
  Chain chain;
  double scale;
};

struct BlockMoments {
  Moments moments;
  double target;  // y at `target_column` if that is in the block, else NaN
};

// dz = p * (a + b * log p) + g_logp * 1[target], then the chain back to the raw logits.
struct BlockGradient {
  double m, inv_s0, log_s0;
  double a, b, g_logp;
};

struct RowKernels {
  const char* isa;
  // Moments of a block; target_column is relative to the block, outside [0, n) when not in it.
  void (*moments)(Dtype, const BlockInput&, int64_t target_column, bool extras, BlockMoments* out);
  // First column whose y is `value`, or -1. Asked for the maximum, and only where a row has a new
  // one.
  int64_t (*find)(Dtype, const BlockInput&, double value);
  // d(raw) of a block, written to out (storage type; may be the input itself).
  void (*gradient)(
      Dtype, const BlockInput&, const BlockGradient&, int64_t target_column, void* out
  );
  // e^((y - m) scale) of every column of a block, and y itself.
  void (*weights)(Dtype, const BlockInput&, double m, double* weights, double* y);
  // The vector 2^t by itself, for its test; n is a multiple of 64.
  void (*exp2)(const float* t, int64_t n, float* out);
};

// The table in use: the best this CPU supports, or the one LOGITLESS_ISA names (an error if it
// cannot run).
const RowKernels& row_kernels();
// Names of the instruction sets this build holds and this CPU runs, best first, comma separated.
const char* supported_isas();

// The running state of one row; 64 bytes, kept by the caller between tiles.
struct RowState {
  Moments moments;
  double target = NAN;  // y of the target once its tile was seen
  double argmax = -1;   // global vocabulary id
};
static_assert(sizeof(RowState) == 64, "Python allocates [N, 8] float64 for it");

// Everything about the rows of a call that does not change from tile to tile.
struct Rows {
  int64_t n = 0;
  const int64_t* targets = nullptr;   // [n]
  const uint8_t* mask = nullptr;      // [n] or null: all
  const double* row_scale = nullptr;  // [n] or null: `scale`
  double scale = 1;
  Chain chain;
  int threads = 0;

  bool active(int64_t row) const { return mask == nullptr || mask[row] != 0; }
  double scale_of(int64_t row) const { return row_scale != nullptr ? row_scale[row] : scale; }
};

// Folds a tile of logits [n, tile] (or [b, t, tile] with b t = n), whose first column is vocabulary
// id `start` (a multiple of kBlock), into the state. With `first`, the state is started afresh.
void rows_forward(
    const Rows& rows,
    const TensorView& logits,
    int64_t start,
    bool extras,
    bool first,
    RowState* state
);

struct RowOutputs {
  TensorView logp, entropy, lse;                  // [n], float32 or float64
  TensorView varentropy, sum_p2, entropy_change;  // [n] or data == null
  int64_t* argmax = nullptr;                      // [n] or null
};

// Turns states into outputs (masked rows: 0; argmax -1) and throws at the first bad row: a NaN, a
// +inf, no finite logit, or a target outside [0, vocab). `row_ids` names rows in messages (null:
// their index).
void rows_finish(
    const Rows& rows,
    const RowState* state,
    int64_t vocab,
    const int64_t* row_ids,
    const RowOutputs& out
);

// d(logits) of a tile from the three upstream gradients (each [n] float64 or null: zero).
// `gradient` may be `logits` itself. Rows with zero gradients are not read and get zeros.
void rows_backward(
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
