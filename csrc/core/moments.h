// The moments of one softmax row and how two pieces of it merge.
//
// With x = (y - m) * scale, m a running maximum of y: s0 = sum e^x, s1 = sum x e^x, s2 = sum x^2
// e^x, q0 = sum e^2x, q1 = sum x e^2x. `scale` is logit_scale / temperature, applied after the
// subtraction so that large logits lose nothing to it. Merging is a monoid: one rule serves lanes,
// cache tiles, threads and vocabulary shards.
#pragma once

#include <cmath>

#include "config.h"

namespace logitless {

struct Moments {
  double m = -INFINITY;
  double s0 = 0, s1 = 0, s2 = 0, q0 = 0, q1 = 0;
};

// The same distribution seen from a maximum larger by -dm / scale (dm <= 0).
LOGITLESS_HD inline Moments shifted(const Moments& a, double dm) {
  const double d = exp(dm);
  Moments r;
  r.s0 = d * a.s0;
  r.s1 = d * (a.s1 + dm * a.s0);
  r.s2 = d * (a.s2 + dm * (2 * a.s1 + dm * a.s0));
  r.q0 = d * d * a.q0;
  r.q1 = d * d * (a.q1 + dm * a.q0);
  return r;
}

// A piece holding the row's maximum has s0 >= 1, so s0 == 0 means "nothing finite was seen": the
// identity, taken out before any shift can make inf - inf of its m. A NaN in s0 survives every
// merge.
LOGITLESS_HD inline Moments merged(const Moments& a, const Moments& b, double scale) {
  if (b.s0 == 0) return a;
  if (a.s0 == 0) return b;
  const bool a_is_larger = a.m >= b.m;
  Moments big = a_is_larger ? a : b;
  const Moments small = a_is_larger ? b : a;
  const Moments s = shifted(small, (small.m - big.m) * scale);
  big.s0 += s.s0;
  big.s1 += s.s1;
  big.s2 += s.s2;
  big.q0 += s.q0;
  big.q1 += s.q1;
  return big;
}

// What a row's moments say, in nats. `target` is y of the sampled token.
struct TokenValues {
  double logp, entropy, lse;
};

// log s0 >= 0 and s1 <= 0, so the entropy is a sum of two non-negative terms; target <= m, so logp
// <= 0.
LOGITLESS_HD inline TokenValues token_values(const Moments& a, double target, double scale) {
  const double log_s0 = log(a.s0);
  return {(target - a.m) * scale - log_s0, log_s0 - a.s1 / a.s0, a.m * scale + log_s0};
}

// Statistics that a caller may ask for beside those, each a field of `TokenExtras`, an array of
// `RowOutputs` and an output of the bound `finalize`.
#define LOGITLESS_STATISTICS(X) \
  X(varentropy) X(sum_p2) X(log_sum_p2) X(mean_logit) X(entropy_change)

struct TokenExtras {
#define LOGITLESS_FIELD(name) double name;
  LOGITLESS_STATISTICS(LOGITLESS_FIELD)
#undef LOGITLESS_FIELD
};

// entropy_change = -(S_a - C) with S_a = p_a (log p_a + H) and C = sum_v p_v^2 (log p_v + H): the
// first-order change of this token's entropy per unit of a policy-gradient step on its own logits.
LOGITLESS_HD inline TokenExtras token_extras(const Moments& a, const TokenValues& v) {
  const double mean = a.s1 / a.s0;
  const double own = v.logp == -INFINITY ? 0 : exp(v.logp) * (v.logp + v.entropy);
  const double all = (a.q1 - a.q0 * mean) / (a.s0 * a.s0);
  TokenExtras extras;
  extras.varentropy = a.s2 / a.s0 - mean * mean;
  extras.sum_p2 = a.q0 / (a.s0 * a.s0);
  // q0 >= 1: finite where sum_p2 is below what its dtype holds
  extras.log_sum_p2 = log(a.q0) - 2 * log(a.s0);
  extras.mean_logit = v.lse - v.entropy;
  extras.entropy_change = all - own;
  return extras;
}

}  // namespace logitless
