// Sums of p log(p / mix) and q log(q / mix) over the splits of a row: a warp a split.
#pragma once

#include "combine.cuh"
#include "moments.cuh"

namespace logitless::cuda {

struct MixArgs {
  PairRows rows;
  PairTile tile;
  int64_t columns;
  int64_t splits;
  const PairTerms* terms;
  float own, others;  // mix_offset and teacher_mix_offset
  MixPartial* partials;
};

template <Steps kSteps>
LOGITLESS_KERNEL(kPairThreads, 4)
mix_kernel(const MixArgs args) {
  LOGITLESS_SHARED_ARRAY(float, noise, noise_room(kSteps, kPairWarps * kPairColumns));
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const uint64_t number = block_index() * kPairWarps + warp;
  if (number >= static_cast<uint64_t>(args.rows.student.n * args.splits)) return;
  const PairSplit split(number, args.splits, args.columns, lane);
  if (!args.rows.student.active(split.row)) return;

  Quads y, z;
  read_split<kSteps>(args.rows, args.tile, split, warp, lane, noise, y, z);
  const PairTerms row = args.terms[split.row];
  float student[2] = {}, teacher[2] = {};
#pragma unroll
  for (int k = 0; k < kQuads; ++k) {
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      const float x = (y[k][i] - row.m) * row.scale;
      const float u = (z[k][i] - row.teacher_m) * row.teacher_scale;
      add_to_mix(student[i % 2], teacher[i % 2], x, u, row.odds, args.own, args.others);
    }
  }
  const MixPartial partial = {warp_sum(student[0] + student[1]), warp_sum(teacher[0] + teacher[1])};
  if (lane == 0) args.partials[number] = partial;
}

}  // namespace logitless::cuda
