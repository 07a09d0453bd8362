// From the records of a row's pieces to its state: a warp a row, always in the same order.
#pragma once

#include <cuda/device.cuh>
#include <cuda/launch.cuh>

#include "kernels.h"

namespace logitless::cuda {

constexpr int kFoldThreads = 128;

LOGITLESS_DEVICE double warp_sum(double value) {
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) value += exchange(value, bits);
  return value;
}

// A record in natural-log units.
LOGITLESS_DEVICE Moments moments_of(const Record& record) {
  constexpr double ln2 = 0.6931471805599453;
  return {
      record.m, record.s0, record.s1 * ln2, record.s2 * (ln2 * ln2), record.q0, record.q1 * ln2
  };
}

LOGITLESS_KERNEL(kFoldThreads, 8) fold_kernel(const FoldArgs args) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t row = block_index() * (kFoldThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= args.rows.n) return;
  if (!args.rows.active(row)) {
    if (args.first && lane == 0) args.state[row] = RowState{};
    return;
  }
  const Record* records = args.records + row * args.pieces;
  float m = -INFINITY;
  for (int64_t i = lane; i < args.pieces; i += kWarp) m = larger(m, records[i].m);
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) m = larger(m, exchange(m, bits));

  // All pieces are shifted to the row's maximum at once: one exp each, and then plain sums.
  const double scale = args.rows.scale_of(row);
  Moments sum;
  int64_t argmax = INT64_MAX;
  for (int64_t i = lane; i < args.pieces; i += kWarp) {
    const Record record = records[i];
    if (record.s0 == 0) continue;
    const Moments piece = shifted(moments_of(record), (record.m - static_cast<double>(m)) * scale);
    sum.s0 += piece.s0;
    sum.s1 += piece.s1;
    sum.s2 += piece.s2;
    sum.q0 += piece.q0;
    sum.q1 += piece.q1;
    if (record.m == m && argmax == INT64_MAX) argmax = i * args.piece_columns + record.argmax;
  }
  sum.m = m;
  sum.s0 = warp_sum(sum.s0);
  sum.s1 = warp_sum(sum.s1);
  if (args.extras) {
    sum.s2 = warp_sum(sum.s2);
    sum.q0 = warp_sum(sum.q0);
    sum.q1 = warp_sum(sum.q1);
#pragma unroll
    for (int bits = kWarp / 2; bits > 0; bits /= 2) {
      const int64_t other = exchange(argmax, bits);
      argmax = other < argmax ? other : argmax;
    }
  }
  if (lane != 0) return;
  RowState state = args.first ? RowState{} : args.state[row];
  // A tie keeps the earlier tile's column.
  if (args.extras && m > state.moments.m) state.argmax = static_cast<double>(args.start + argmax);
  state.moments = merged(state.moments, sum, scale);
  const int64_t target = column_from(args.rows.targets[row], args.start);
  if (target >= 0 && target < args.columns) {
    state.target = records[target / args.piece_columns].target;
  }
  args.state[row] = state;
}

}  // namespace logitless::cuda
