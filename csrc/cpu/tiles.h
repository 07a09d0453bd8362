// A tile of logits as rows of blocks, and how a block's moments join a row's state.
#pragma once

#include "rows.h"

namespace logitless::cpu {

// One row of a tile as blocks.
struct TileRow {
  const char* raw;
  Dtype dtype;
  int64_t columns;
  Chain chain;
  double scale;

  int64_t blocks() const { return (columns + kBlock - 1) / kBlock; }
  BlockInput block(int64_t index) const {
    const int64_t first = index * kBlock;
    const int64_t n = columns - first < kBlock ? columns - first : kBlock;
    return {raw + first * dtype_bytes(dtype), n, first, chain, scale};
  }
};

// Rows are those of [N, V] or, with strides of their own, of [B, T, V].
inline int64_t row_offset(const TensorView& tile, int64_t row) {
  if (tile.ndim == 2) return row * tile.strides[0];
  return row / tile.shape[1] * tile.strides[0] + row % tile.shape[1] * tile.strides[1];
}

inline TileRow tile_row(const Rows& rows, const TensorView& logits, int64_t row) {
  return {
      static_cast<const char*>(logits.data) + row_offset(logits, row) * dtype_bytes(logits.dtype),
      logits.dtype,
      logits.shape[logits.ndim - 1],
      rows.chain,
      rows.scale_of(row)
  };
}

inline void check_tile(const Rows& rows, const TensorView& tile, const char* name, int64_t start) {
  check(tile.on_cpu, name, " must be on the CPU");
  check(
      tile.ndim == 2 || tile.ndim == 3,
      name,
      " must be [N, V] or [B, T, V], got ",
      tile.ndim,
      " dimensions"
  );
  const int64_t n = tile.ndim == 2 ? tile.shape[0] : tile.shape[0] * tile.shape[1];
  const int last = tile.ndim - 1;
  check(n == rows.n, name, " must have ", rows.n, " rows, got ", n);
  check(
      tile.shape[last] <= 1 || tile.strides[last] == 1,
      name,
      " must have contiguous rows (last stride 1)"
  );
  check(
      start % kBlock == 0, "vocabulary tiles must start at a multiple of ", kBlock, ", got ", start
  );
}

inline void fold(RowState& state, const BlockMoments& piece, double scale) {
  if (!std::isnan(piece.target)) state.target = piece.target;
  state.moments = merged(state.moments, piece.moments, scale);
}

}  // namespace logitless::cpu
