// The largest logits of every row, kept while tiles stream by: for a backward that touches only
// them, and for drawing from the top of the distribution.
#pragma once

#include "rows.h"

namespace logitless::cpu {

// The most that a row may have room for: it is sorted on the stack.
constexpr int64_t kMostCandidates = 2048;

// A row holds up to `room` entries; where they are full, the `keep` = room / 2 largest stay.
// Entries are ordered by (y, -id): of equal ones the smaller id comes first.
//
// What settle_candidates leaves is a function of the row's logits alone, whatever the tiling, the
// threads or the instruction set: the `keep` first of all entries with y > max y - tau / scale.
// Tiles must come in ascending order of their start.
struct Candidates {
  int64_t room = 0;          // entries a row has memory for
  double tau = INFINITY;     // nats below the row's maximum; infinite: only the count limits
  double* y = nullptr;       // [n, room]
  int32_t* ids = nullptr;    // [n, room], global vocabulary ids
  double* floor = nullptr;   // [n] what is not larger cannot be among the kept
  int64_t* count = nullptr;  // [n]

  int64_t keep() const { return room / 2; }
};

// Starts a row afresh.
void clear_candidates(const Candidates& candidates, int64_t row);

// Takes a block into account, whose largest y is `block_max`. `row_max` is that of the row so far.
// Nearly every block of a peaked row ends at the comparison of the two with the floor.
void capture_block(
    const Candidates& candidates,
    int64_t row,
    Dtype dtype,
    const BlockInput& block,
    int64_t first_id,
    double block_max,
    double row_max
);

// After the last tile: sorts each row, largest first, and drops what the whole row rules out.
// Masked rows are left empty.
void settle_candidates(const Rows& rows, const RowState* state, const Candidates& candidates);

}  // namespace logitless::cpu
