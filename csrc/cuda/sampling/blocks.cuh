// A warp and a block of the vocabulary: its largest logit and its sum, added as the CPU adds it, so
// that both give a block the same score.
#pragma once

#include <cuda/runtime/device.cuh>
#include <cuda/runtime/launch.cuh>

#include "../../core/exp2.h"
#include "../rows/transform.cuh"
#include "sampling.h"

namespace logitless::cuda {

struct BlocksArgs {
  Rows rows;  // the bias of the transform starts at the tile's first column
  TensorView logits;
  int64_t columns;
  int64_t blocks;  // of a row
  BlockSum* sums;  // [n, blocks]
};

constexpr int kBlocksThreads = 128;
constexpr double kLog2E = 1.4426950408889634074;
// Columns of a lane.
constexpr int kPerLane = static_cast<int>(kBlock) / kWarp;

template <typename S>
LOGITLESS_DEVICE const S* row_of(const TensorView& logits, int64_t row) {
  return static_cast<const S*>(logits.data) + row_offset(logits, row);
}

// y of one column of a row; `column` is that of the tile.
template <typename S, bool kTransformed>
LOGITLESS_DEVICE float y_at(const S* row, int64_t column, const TransformMath& transform) {
  float y[1] = {value_of(row[column])};
  if (kTransformed) transform.apply(y, column, 1, 1);
  return y[0];
}

// y of kPerLane columns `stride` apart, of which the first is `column` of the tile; -inf from
// `left` columns on.
template <typename S, bool kTransformed>
LOGITLESS_DEVICE void load_columns(
    const S* row,
    int64_t column,
    int left,
    int stride,
    const TransformMath& transform,
    float (&y)[kPerLane]
) {
  const S* mine = row + column;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    y[i] = i * stride < left ? value_of(mine[i * stride]) : -INFINITY;
  }
  if (!kTransformed) return;
  transform.apply(y, column, left, stride);
  // padding stays -inf, whatever the cap
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (i * stride >= left) y[i] = -INFINITY;
  }
}

// (y - m) scale in bits, where e^ of that is no number too small to be normal.
LOGITLESS_DEVICE float exponent(float y, float m, float scale) {
  return larger_or_nan((y - m) * scale, kExp2Lowest);
}

// The CPU adds in 64 lanes, of floats, column after column; the lanes then fold onto each other in
// double. A lane here has two of these. Of bfloat16 the CPU adds a ragged end in other lanes.
template <typename S, bool kTransformed>
LOGITLESS_KERNEL(kBlocksThreads, 4)
block_sums_kernel(const BlocksArgs args) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t index = block_index() * (kBlocksThreads / kWarp) + threadIdx.x / kWarp;
  if (index >= args.rows.n * args.blocks) return;
  const int64_t row = index / args.blocks;
  const int64_t first = index % args.blocks * kBlock;
  const int64_t rest = args.columns - first;
  const int left = static_cast<int>(rest < kBlock ? rest : kBlock);
  const TransformMath transform(args.rows.transform);
  float y[kPerLane];
  load_columns<S, kTransformed>(
      row_of<S>(args.logits, row), first + lane, left - lane, kWarp, transform, y
  );
  float m = -INFINITY;
#pragma unroll
  for (float value : y) m = larger(m, value);
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) m = larger(m, exchange(m, bits));
  // Without a finite logit everything is shifted by 0: -inf adds nothing and a NaN shows in s0.
  const float base = m == -INFINITY ? 0.0f : m;
  const auto scale = static_cast<float>(args.rows.scale_of(row) * kLog2E);
  float sums[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) sums[i % 2] += exp2_term(exponent(y[i], base, scale));
  double s0 = static_cast<double>(sums[0]) + static_cast<double>(sums[1]);
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) s0 += exchange(s0, bits);
  if (lane == 0) args.sums[index] = {m, s0};
}

}  // namespace logitless::cuda
