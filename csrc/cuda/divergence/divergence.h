// Rows under two softmaxes on a CUDA device: the functions of csrc/cpu/divergence/divergence.h on
// the caller's stream. They allocate nothing, wait for nothing and may be captured in a graph.
// Built without CUDA, absent.cpp defines the same symbols.
#pragma once

#include "../../core/divergence.h"
#include "../rows/rows.h"

namespace logitless::cuda {

// The sums of one split of a row, in base 2 as those of `Partial`.
struct alignas(16) PairPartial {
  float m, s0, s1, gap;
  float teacher_m, teacher_s0, teacher_s1, teacher_gap;
};

// What the columns of a row need where its normalisers are known, once a row: y to bits, odds of x
// - u, and the coefficients of the gradient. Rows that get none of it are not active.
struct alignas(16) PairTerms {
  float m, scale, teacher_m, teacher_scale;
  float odds, constant, linear, gap;
  float other, active, unused[2];
};

// Columns of a split.
constexpr int64_t kPairColumns = 1024;

// Memory that the caller lends to one call.
struct Workspace {
  void* data;
  int64_t bytes;
};

// Enough for any of the calls on a tile of n rows.
inline int64_t pair_workspace_bytes(int64_t n, int64_t columns) {
  const int64_t splits = (columns + kPairColumns - 1) / kPairColumns;
  return n * (int64_t{sizeof(PairTerms)} + splits * int64_t{sizeof(PairPartial)});
}

// Folds a tile into the state; with `first` the state is started afresh.
void pair_forward(
    const PairRows& rows,
    const PairTile& tile,
    bool first,
    PairState* state,
    const Workspace& workspace,
    Stream stream
);

// Adds a tile to the sums of a mix, after the state of all columns is known.
void pair_mix(
    const PairRows& rows,
    const PairTile& tile,
    bool first,
    const PairState* state,
    double beta,
    MixSums* sums,
    const Workspace& workspace,
    Stream stream
);

// Float32 outputs. A bad row is NaN, and *error is lowered to row_id * 8 + RowError.
void pair_finalize(
    const PairRows& rows,
    const PairState* state,
    const int64_t* row_ids,
    const PairOutputs& out,
    int64_t* error,
    Stream stream
);

// d(logits) of the student's tile; `gradient` may be that tile. Rows that are masked or whose
// gradients are zero get zeros and are not read.
void pair_gradient(
    const PairRows& rows,
    const PairTile& tile,
    const PairState* state,
    const MixSums* sums,
    Divergence kind,
    double beta,
    const Upstream& g_divergence,
    const Upstream& g_entropy,
    const TensorView& gradient,
    const Workspace& workspace,
    Stream stream
);

}  // namespace logitless::cuda
