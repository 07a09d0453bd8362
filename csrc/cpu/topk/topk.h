// The largest logits of every row, kept while tiles stream by: for a backward that touches only
// them, and for drawing from the top of the distribution.
#pragma once

#include "../rows/rows.h"

namespace logitless::cpu {

// The most that a row may have room for: it is sorted on the stack.
constexpr int64_t kMostCapacity = 2048;

// A row holds up to `capacity` entries; where they are full, the `keep` = capacity / 2 largest
// stay. Entries are ordered by (y, -id): of equal ones the smaller id comes first.
//
// What finalize_topk leaves is a function of the row's logits alone, whatever the tiling, the
// threads or the instruction set: the `keep` first of all entries with y > max y - margin / scale.
// Tiles must come in ascending order of their start.
struct TopK {
  int64_t capacity = 0;         // entries a row has memory for
  double margin = INFINITY;     // nats below the row's maximum; infinite: only the count limits
  double* values = nullptr;     // [n, capacity] y of the entries
  int32_t* ids = nullptr;       // [n, capacity] global vocabulary ids
  double* threshold = nullptr;  // [n] an entry that is not larger cannot be among the kept
  int64_t* count = nullptr;     // [n]

  int64_t keep() const { return capacity / 2; }
};

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

// After the last tile: sorts each row, largest first, and drops what the whole row rules out.
// Masked rows are left empty.
void finalize_topk(const Rows& rows, const RowState* state, const TopK& topk);

}  // namespace logitless::cpu
