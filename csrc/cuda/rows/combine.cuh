// From the partials of a row's splits to its state: a warp a row, always in the same order.
#pragma once

#include <cuda/runtime/device.cuh>
#include <cuda/runtime/launch.cuh>
#include <cuda/runtime/warp.cuh>

#include "kernels.h"

namespace logitless::cuda {

constexpr int kCombineThreads = 128;

// A partial in natural-log units.
LOGITLESS_DEVICE Moments moments_of(const Partial& partial) {
  constexpr double ln2 = 0.6931471805599453;
  return {
      partial.m,
      partial.s0,
      partial.s1 * ln2,
      partial.s2 * (ln2 * ln2),
      partial.q0,
      partial.q1 * ln2
  };
}

LOGITLESS_KERNEL(kCombineThreads, 8) combine_kernel(const CombineArgs args) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t row = block_index() * (kCombineThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= args.rows.n) return;
  if (!args.rows.active(row)) {
    if (args.first && lane == 0) args.state[row] = RowState{};
    return;
  }
  const Partial* partials = args.partials + row * args.splits;
  float m = -INFINITY;
  for (int64_t i = lane; i < args.splits; i += kWarp) m = larger(m, partials[i].m);
  m = warp_max(m);

  // All splits are shifted to the row's maximum at once: one exp each, and then plain sums.
  const double scale = args.rows.scale_of(row);
  Moments sum;
  int64_t argmax = INT64_MAX;
  for (int64_t i = lane; i < args.splits; i += kWarp) {
    const Partial partial = partials[i];
    if (partial.s0 == 0) continue;
    const Moments split =
        shifted(moments_of(partial), (partial.m - static_cast<double>(m)) * scale);
    sum.s0 += split.s0;
    sum.s1 += split.s1;
    sum.s2 += split.s2;
    sum.q0 += split.q0;
    sum.q1 += split.q1;
    if (partial.m == m && argmax == INT64_MAX) argmax = i * args.split_columns + partial.argmax;
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
    state.target = partials[target / args.split_columns].target;
  }
  args.state[row] = state;
}

}  // namespace logitless::cuda
