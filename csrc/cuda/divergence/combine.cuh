// From what the splits of a row have to the row's state, and to its sums of a mix: a warp a row,
// always in the same order.
#pragma once

#include <cuda/runtime/device.cuh>
#include <cuda/runtime/launch.cuh>
#include <cuda/runtime/warp.cuh>

#include "divergence.h"

namespace logitless::cuda {

constexpr int kPairCombineThreads = 128, kPairCombineWarps = kPairCombineThreads / kWarp;

struct PairCombineArgs {
  PairRows rows;
  int64_t splits;
  const PairPartial* partials;
  PairState* state;
  bool first;
};

// A partial in natural-log units.
LOGITLESS_DEVICE PairState state_of(const PairPartial& a) {
  return {
      {a.m, a.s0, a.s1 * kNatsPerBit, a.gap * kNatsPerBit},
      {a.teacher_m, a.teacher_s0, a.teacher_s1 * kNatsPerBit, a.teacher_gap * kNatsPerBit}
  };
}

LOGITLESS_DEVICE void sum_over_warp(PairSide& side) {
  side.s0 = warp_sum(side.s0);
  side.s1 = warp_sum(side.s1);
  side.gap = warp_sum(side.gap);
}

LOGITLESS_KERNEL(kPairCombineThreads, 4) pair_combine_kernel(const PairCombineArgs args) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t row = block_index() * kPairCombineWarps + threadIdx.x / kWarp;
  if (row >= args.rows.student.n) return;
  if (!args.rows.student.active(row)) {
    if (args.first && lane == 0) args.state[row] = PairState{};
    return;
  }
  const PairPartial* partials = args.partials + row * args.splits;
  float m = -INFINITY, m_other = -INFINITY;
  for (int64_t i = lane; i < args.splits; i += kWarp) {
    m = larger(m, partials[i].m);
    m_other = larger(m_other, partials[i].teacher_m);
  }
  // All splits are shifted to the row's maxima at once.
  const double scale = args.rows.student.scale_of(row);
  const double scale_other = args.rows.teacher.scale_of(row);
  PairState sum;
  sum.student.m = warp_max(m);
  sum.teacher.m = warp_max(m_other);
  for (int64_t i = lane; i < args.splits; i += kWarp) {
    add_part(sum, state_of(partials[i]), scale, scale_other);
  }
  sum_over_warp(sum.student);
  sum_over_warp(sum.teacher);
  if (lane != 0) return;
  const PairState before = args.first ? PairState{} : args.state[row];
  args.state[row] = merged(before, sum, scale, scale_other);
}

// Sums of e^x log2(p / mix) of a split, and of the other side alike.
struct MixPartial {
  float student, teacher;
};
static_assert(sizeof(MixPartial) <= sizeof(PairPartial), "a workspace is measured in the latter");

struct MixCombineArgs {
  PairRows rows;
  int64_t splits;
  const MixPartial* partials;
  const PairState* state;
  MixSums* sums;
  bool first;
};

LOGITLESS_KERNEL(kPairCombineThreads, 8) mix_combine_kernel(const MixCombineArgs args) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t row = block_index() * kPairCombineWarps + threadIdx.x / kWarp;
  if (row >= args.rows.student.n) return;
  MixSums sum;
  if (args.rows.student.active(row)) {
    const MixPartial* partials = args.partials + row * args.splits;
    for (int64_t i = lane; i < args.splits; i += kWarp) {
      sum.student += partials[i].student;
      sum.teacher += partials[i].teacher;
    }
    const PairState& state = args.state[row];
    sum.student = warp_sum(sum.student) * kNatsPerBit / state.student.s0;
    sum.teacher = warp_sum(sum.teacher) * kNatsPerBit / state.teacher.s0;
  }
  if (lane != 0) return;
  const MixSums before = args.first ? MixSums{} : args.sums[row];
  args.sums[row] = {before.student + sum.student, before.teacher + sum.teacher};
}

}  // namespace logitless::cuda
