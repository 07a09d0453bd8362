// Sampling a token per row while tiles of logits stream by.
#pragma once

#include "../rows/rows.h"

namespace logitless::cpu {

// The best-scoring block so far and the token drawn in it.
struct SampleState {
  double score = -INFINITY;
  double token = -1;
};
static_assert(sizeof(SampleState) == 16, "Python allocates [N, 2] float64 for it");

// Sampling numbers blocks of the vocabulary below 2^20 - 1: its ids are below this.
constexpr int64_t kMostSampled = ((int64_t{1} << 20) - 1) * kBlock;

struct SampleKey {
  uint64_t seed;
  uint64_t step;           // below 2^43
  const int64_t* row_ids;  // [n]
};

// Takes a tile into the state like rows_forward and samples on the way: each block's score is its
// log-sum-exp plus Gumbel noise, the largest score wins, and inside a winning block the token is
// drawn by inverse CDF. Exact, because the Gumbel maximum picks a block with its probability. Noise
// depends on (seed, step, row id, block id) only. The drawn token's y goes into state.target.
void rows_sample(
    const Rows& rows,
    const TensorView& logits,
    int64_t start,
    bool first,
    const SampleKey& key,
    RowState* state,
    SampleState* best
);

}  // namespace logitless::cpu
