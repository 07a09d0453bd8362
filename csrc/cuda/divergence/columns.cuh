// What a column is under both softmaxes, wherever its logits come from.
#pragma once

#include <cuda/runtime/device.cuh>

#include "divergence.h"

namespace logitless::cuda {

// Without a finite logit everything is counted from 0: -inf adds nothing and a NaN shows in s0.
LOGITLESS_DEVICE float reference_of(float m) { return m == -INFINITY ? 0.0f : m; }

LOGITLESS_DEVICE float scale_in_bits(const Rows& rows, int64_t row) {
  return static_cast<float>(rows.scale_of(row) * kBitsPerNat);
}

// A column that is x bits from one side's maximum, and `apart` bits from the other side's, to sums
// of that side.
template <typename Sum>
LOGITLESS_DEVICE void add_column(Sum& s0, Sum& s1, Sum& gap, float x, float apart) {
  const float low = larger_or_nan(x, -150.0f), p = exp2_fast(low);
  s0 += p;
  s1 += low * p;
  // by select: both sides may be -inf there, and the other one where this has mass
  gap += p > 0.0f ? apart * p : 0.0f;
}

// One side's sums; two each, so that additions do not wait for each other.
struct SideSums {
  float s0[2] = {}, s1[2] = {}, gap[2] = {};

  LOGITLESS_DEVICE void add(int which, float x, float apart) {
    add_column(s0[which], s1[which], gap[which], x, apart);
  }
};

// With d = log2 of (1 - beta) p over beta q: log2 of (1 - beta) p over mix. Where q has no mass d
// is +inf, and this 0.
LOGITLESS_DEVICE float mix_share(float d) {
  return (d > 0.0f ? 0.0f : d) - log2_1p<float>(exp2_fast(-fabsf(d)));
}

// What a column adds to the sums of a mix, of which `own` and `others` are the offsets.
template <typename Sum>
LOGITLESS_DEVICE void add_to_mix(
    Sum& student, Sum& teacher, float x, float u, float odds, float own, float others
) {
  const float p = exp2_fast(x), q = exp2_fast(u);
  const float d = (x - u) + odds, share = mix_share(d);
  student += p > 0.0f ? (share + own) * p : 0.0f;
  // log2 of beta q over mix; where p has no mass both are -inf, and it is 0
  const float rest = d > -INFINITY ? share - d : 0.0f;
  teacher += q > 0.0f ? (rest + others) * q : 0.0f;
}

// d(y) of a column of which the student's is x bits from its maximum, and the teacher's u.
template <Divergence kKind>
LOGITLESS_DEVICE float pair_slope(const PairTerms& row, float x, float u) {
  const float low = larger_or_nan(x, -150.0f), p = exp2_fast(low);
  float factor = row.constant + row.linear * low, other = 0.0f;
  // a gap counts only where the row's divergence has a gradient: it may be infinite
  if constexpr (kKind == Divergence::reverse_kl) {
    if (row.gap != 0.0f) factor += row.gap * (x - u);
  } else if constexpr (kKind == Divergence::jsd) {
    factor += row.gap * mix_share((x - u) + row.odds);
  } else {
    other = row.other * exp2_fast(u);
  }
  // by select: a gap may be anything where p has no mass, and a bad row's p is NaN
  return (p == 0.0f ? 0.0f : factor * p) + other;
}

}  // namespace logitless::cuda
