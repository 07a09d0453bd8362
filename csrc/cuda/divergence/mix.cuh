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

// With d = log2 of (1 - beta) p over beta q: log2 of (1 - beta) p over mix. Where q has no mass d
// is +inf, and this 0.
LOGITLESS_DEVICE float mix_share(float d) {
  return (d > 0.0f ? 0.0f : d) - log2_1p<float>(exp2_fast(-fabsf(d)));
}

template <bool kTransformed>
LOGITLESS_KERNEL(kPairThreads, 4)
mix_kernel(const MixArgs args) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const uint64_t number = block_index() * kPairWarps + threadIdx.x / kWarp;
  if (number >= static_cast<uint64_t>(args.rows.student.n * args.splits)) return;
  const PairSplit split(number, args.splits, args.columns, lane);
  if (!args.rows.student.active(split.row)) return;

  Quads y, z;
  read_pair<kTransformed>(args.rows, args.tile, split.row, split.at, y, z);
  const PairTerms row = args.terms[split.row];
  float student[2] = {}, teacher[2] = {};
#pragma unroll
  for (int k = 0; k < kQuads; ++k) {
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      const float x = (y[k][i] - row.m) * row.scale;
      const float u = (z[k][i] - row.teacher_m) * row.teacher_scale;
      const float p = exp2_fast(x), q = exp2_fast(u);
      const float d = (x - u) + row.odds, share = mix_share(d);
      student[i % 2] += p > 0.0f ? (share + args.own) * p : 0.0f;
      // log2 of beta q over mix; where p has no mass both are -inf, and it is 0
      const float rest = d > -INFINITY ? share - d : 0.0f;
      teacher[i % 2] += q > 0.0f ? (rest + args.others) * q : 0.0f;
    }
  }
  const MixPartial partial = {warp_sum(student[0] + student[1]), warp_sum(teacher[0] + teacher[1])};
  if (lane == 0) args.partials[number] = partial;
}

}  // namespace logitless::cuda
