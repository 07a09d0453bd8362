// The sums of the splits of a row under both softmaxes: a warp holds a split of either side in
// registers, so that memory is read once and maxima come before sums.
#pragma once

#include <cuda/runtime/device.cuh>
#include <cuda/runtime/launch.cuh>
#include <cuda/runtime/warp.cuh>

#include "columns.cuh"
#include "noise.cuh"

namespace logitless::cuda {

constexpr int kPairThreads = 128, kPairWarps = kPairThreads / kWarp;

struct PairMomentsArgs {
  PairRows rows;  // the biases start at the tile's first column
  PairTile tile;
  int64_t columns;
  int64_t splits;         // of a row
  PairPartial* partials;  // [n, splits]
};

LOGITLESS_DEVICE float quads_max(const Quads& y) {
  float m = -INFINITY;
#pragma unroll
  for (const auto& quad : y) {
#pragma unroll
    for (float value : quad) m = larger(m, value);
  }
  return m;
}

template <Steps kSteps>
LOGITLESS_KERNEL(kPairThreads, 4)
pair_moments_kernel(const PairMomentsArgs args) {
  LOGITLESS_SHARED_ARRAY(float, noise, noise_room(kSteps, kPairWarps * kPairColumns));
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const uint64_t number = block_index() * kPairWarps + warp;
  if (number >= static_cast<uint64_t>(args.rows.student.n * args.splits)) return;
  const PairSplit split(number, args.splits, args.columns, lane);
  if (!args.rows.student.active(split.row)) return;

  Quads y, z;
  read_split<kSteps>(args.rows, args.tile, split, warp, lane, noise, y, z);
  const float m = warp_max(quads_max(y)), m_other = warp_max(quads_max(z));
  const float from = reference_of(m), from_other = reference_of(m_other);
  const float scale = scale_in_bits(args.rows.student, split.row);
  const float scale_other = scale_in_bits(args.rows.teacher, split.row);
  SideSums own, other;
#pragma unroll
  for (int k = 0; k < kQuads; ++k) {
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      const float x = (y[k][i] - from) * scale, u = (z[k][i] - from_other) * scale_other;
      own.add(i % 2, x, x - u);
      other.add(i % 2, u, u - x);
    }
  }
  const auto total = [](const float (&v)[2]) { return warp_sum(v[0] + v[1]); };
  const PairPartial partial = {
      m,
      total(own.s0),
      total(own.s1),
      total(own.gap),
      m_other,
      total(other.s0),
      total(other.s1),
      total(other.gap)
  };
  if (lane == 0) args.partials[number] = partial;
}

}  // namespace logitless::cuda
