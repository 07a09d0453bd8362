// Softmaxes over sets: a row a warp. Sums go to double, since a set may be the whole vocabulary.
#pragma once

#include "../rows/backward.cuh"
#include "set_logits.cuh"

namespace logitless::cuda {

struct SetForwardArgs {
  Rows rows;
  SparseRows sets;
  RowState* state;
  bool extras;
};

// Sums in base 2 of the entries of a lane, and of the row.
struct SetSums {
  double s0 = 0, s1 = 0, s2 = 0, q0 = 0, q1 = 0;

  // An entry that is t bits from the maximum.
  LOGITLESS_DEVICE void add(float t) {
    const float e = exp2_fast(t), te = t * e;
    s0 += e;
    s1 += te;
    s2 += t * te;
    q0 += e * e;
    q1 += te * e;
  }
  LOGITLESS_DEVICE Moments over_warp(float m) const {
    constexpr double ln2 = 0.6931471805599453;
    return {
        m,
        warp_sum(s0),
        warp_sum(s1) * ln2,
        warp_sum(s2) * (ln2 * ln2),
        warp_sum(q0),
        warp_sum(q1) * ln2
    };
  }
};

LOGITLESS_KERNEL(kSetThreads, 8) set_forward_kernel(const SetForwardArgs args) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t row = block_index() * kSetWarps + threadIdx.x / kWarp;
  const Rows& rows = args.rows;
  const SparseRows& sets = args.sets;
  if (row >= rows.n) return;
  const Range range = rows.active(row) ? range_of(sets, row) : Range{0, 0};
  const TransformMath transform(rows.transform);
  const auto y_of_entry = [&](int64_t i) {
    float slope;
    return transform.differentiate(sets.values[i], slope);
  };
  float m = -INFINITY;
  for (int64_t i = range.start + lane; i < range.stop; i += kWarp) m = larger(m, y_of_entry(i));
  m = warp_max(m);
  // Without a finite logit everything is shifted by 0: -inf adds nothing and a NaN shows in s0.
  const float base = m == -INFINITY ? 0.0f : m;
  const float scale = static_cast<float>(rows.scale_of(row) * 1.4426950408889634);
  const int64_t target = rows.targets[row];
  SetSums sums;
  float y_target = NAN;
  int64_t argmax = INT64_MAX;
  for (int64_t i = range.start + lane; i < range.stop; i += kWarp) {
    const float y = y_of_entry(i);
    const int64_t column = sets.columns[i];
    sums.add(larger_or_nan((y - base) * scale, -150.0f));
    if (column == target) y_target = y;
    if (y == m && column < argmax) argmax = column;
  }
  RowState state;
  state.moments = sums.over_warp(m);
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) {
    const float y = exchange(y_target, bits);
    const int64_t column = exchange(argmax, bits);
    y_target = y_target == y_target ? y_target : y;
    argmax = column < argmax ? column : argmax;
  }
  state.target = y_target;
  if (args.extras && argmax != INT64_MAX) state.argmax = static_cast<double>(argmax);
  if (lane == 0) args.state[row] = state;
}

struct SetGradientArgs {
  Rows rows;
  SparseRows sets;
  const RowState* state;
  Upstream g_logp, g_entropy, g_lse;
  float* out;
};

LOGITLESS_KERNEL(kSetThreads, 8) set_gradient_kernel(const SetGradientArgs args) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t row = block_index() * kSetWarps + threadIdx.x / kWarp;
  const Rows& rows = args.rows;
  const SparseRows& sets = args.sets;
  if (row >= rows.n) return;
  const Range range = range_of(sets, row);
  const double gl = args.g_logp.at(row), ge = args.g_entropy.at(row), gz = args.g_lse.at(row);
  const bool idle = !rows.active(row) || (gl == 0 && ge == 0 && gz == 0);
  const TransformMath transform(rows.transform);
  Coefficients c = {};
  if (!idle) c = coefficients(row_gradient(args.state[row].moments, gl, ge, gz), rows, row);
  for (int64_t i = range.start + lane; i < range.stop; i += kWarp) {
    float slope = 1.0f, d = 0.0f;
    if (!idle) {
      const float y = transform.differentiate(sets.values[i], slope);
      const float t = larger_or_nan((y - c.m) * c.scale, -150.0f);
      const float own = sets.columns[i] == rows.targets[row] ? c.own : 0.0f;
      d = (exp2_fast(t) * (c.constant + c.linear * t) + own) * slope;
    }
    args.out[i] = d;
  }
}

}  // namespace logitless::cuda
