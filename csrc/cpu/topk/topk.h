// The largest logits of every row, kept while tiles stream by: for a backward that touches only
// them, and for drawing from the top of the distribution. What a row holds: core/topk.h.
#pragma once

#include "../../core/topk.h"
#include "../rows/rows.h"

namespace logitless::cpu {

// Starts a row afresh.
void clear_topk(const TopK& topk, int64_t row);

// Keeps the largest logits of the rows that stream by. Most blocks of a peaked row cost two
// comparisons: neither the block nor the row so far raises an entry above the threshold.
class TopKObserver final : public BlockObserver {
 public:
  explicit TopKObserver(const TopK& topk) : topk_(topk) {}
  void clear(int64_t row) const override { clear_topk(topk_, row); }
  void push(
      int64_t row,
      Dtype dtype,
      const BlockInput& block,
      int64_t first_id,
      double block_max,
      double row_max
  ) const override;

 private:
  const TopK& topk_;
};

// What TopKObserver keeps, of whole rows, whose state is known and whose tiles are still there.
// Masked rows stay as they are.
void recapture_topk(
    const Rows& rows,
    const TensorView& logits,
    int64_t start,
    bool first,
    const RowState* state,
    const TopK& topk
);

// After the last tile: sorts each row, largest first, and drops what the whole row rules out.
// Masked rows stay as they are: empty, where rows_forward had the same mask.
void finalize_topk(const Rows& rows, const RowState* state, const TopK& topk);

}  // namespace logitless::cpu
