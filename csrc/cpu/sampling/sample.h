// Sampling a token per row while tiles of logits stream by.
#pragma once

#include "../../core/sampling.h"
#include "../rows/rows.h"

namespace logitless::cpu {

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
