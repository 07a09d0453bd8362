// Sampling from the top of a distribution: the top_k largest entries, of these the fewest whose
// share of the mass reaches top_p, of these again those with at least min_p times the largest's
// probability, renormalised. Entries are ordered by (y, -id).
#pragma once

#include "../topk/topk.h"
#include "sample.h"

namespace logitless::cpu {

// What is drawn of each row.
struct TruncatedDraw {
  int64_t* token;           // [n]
  int64_t* kept = nullptr;  // [n] or null: the size of the set
  int32_t* ids = nullptr;   // [n, V] or null: the set, largest first; of whole rows
};

// Draws from a finalized top-k, whose first `kept` entries are the set, and puts the token's y into
// state.target. Where the
// top-k cannot prove that it holds the whole set, the token is -1 and the state is left.
void draw_from_topk(
    const Rows& rows,
    const TopK& topk,
    const Truncation& truncation,
    const SampleKey& key,
    RowState* state,
    const TruncatedDraw& out
);

// The same from whole rows of logits [n, V], which `state` was folded from: the same token.
void draw_from_rows(
    const Rows& rows,
    const TensorView& logits,
    const Truncation& truncation,
    const SampleKey& key,
    RowState* state,
    const TruncatedDraw& out
);

}  // namespace logitless::cpu
