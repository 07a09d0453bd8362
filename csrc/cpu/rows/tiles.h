// A tile of logits as rows of blocks, and how a block's moments join a row's state.
#pragma once

#include "rows.h"

namespace logitless::cpu {

// One row of a tile as blocks.
struct TileRow {
  const char* raw;
  Dtype dtype;
  int64_t columns;
  LogitTransform transform;
  double scale;

  int64_t blocks() const { return (columns + kBlock - 1) / kBlock; }
  BlockInput block(int64_t index) const {
    const int64_t first = index * kBlock;
    const int64_t n = columns - first < kBlock ? columns - first : kBlock;
    return {raw + first * dtype_bytes(dtype), n, first, transform, scale};
  }
};

inline TileRow tile_row(const Rows& rows, const TensorView& logits, int64_t row) {
  return {
      static_cast<const char*>(logits.data) + row_offset(logits, row) * dtype_bytes(logits.dtype),
      logits.dtype,
      logits.shape[logits.ndim - 1],
      rows.transform,
      rows.scale_of(row)
  };
}

inline void check_tile(const Rows& rows, const TensorView& tile, const char* name, int64_t start) {
  logitless::check_tile(rows, tile, name);
  check(
      start % kBlock == 0, "vocabulary tiles must start at a multiple of ", kBlock, ", got ", start
  );
}

inline void combine(RowState& state, const BlockMoments& block, double scale) {
  if (!std::isnan(block.target)) state.target = block.target;
  state.moments = merged(state.moments, block.moments, scale);
}

}  // namespace logitless::cpu
