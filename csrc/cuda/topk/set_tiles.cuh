// Entries of sets out of tiles of logits, and into them.
#pragma once

#include "set_logits.cuh"

namespace logitless::cuda {

struct SetTileArgs {
  SparseRows sets;
  TensorView tile;  // [n, width]
  int64_t start;
};

// The first entry of a row whose column is not before `start`: columns ascend.
LOGITLESS_DEVICE int64_t first_from(const SparseRows& sets, const Range& range, int64_t start) {
  int64_t low = range.start, high = range.stop;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (sets.columns[middle] < start)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// A row a warp.
template <typename S, bool kRead>
LOGITLESS_KERNEL(kSetThreads, 8) set_tile_kernel(const SetTileArgs args) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t row = block_index() * kSetWarps + threadIdx.x / kWarp;
  const SparseRows& sets = args.sets;
  if (row >= sets.n) return;
  const Range range = range_of(sets, row);
  S* tile = static_cast<S*>(args.tile.data) + row * args.tile.strides[0];
  for (int64_t i = first_from(sets, range, args.start) + lane; i < range.stop; i += kWarp) {
    const int64_t column = sets.columns[i] - args.start;
    // looked at, not trusted: columns that do not ascend would lead out of the tile
    if (column < 0 || column >= args.tile.shape[1]) break;
    if constexpr (kRead) {
      sets.values[i] = value_of(tile[column]);
    } else {
      const float pair[Packed<S>::kPerWord] = {sets.values[i]};
      tile[column] = Packed<S>::element(Packed<S>::pack(pair), 0);
    }
  }
}

}  // namespace logitless::cuda
