// Included once per instruction set; see token_steps.h. Plain loops that the compiler vectorises,
// no templates of the standard library.
#include "../../core/exp.h"
#include "token_steps.h"

namespace logitless::cpu {
namespace LOGITLESS_ISA {
namespace {

template <typename To, typename From>
inline To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

// out[i] = exp_of(x[i])
void exp_all(const double* __restrict x, double* __restrict out, int n) {
  int64_t far = 0;
  for (int i = 0; i < n; ++i) {
    out[i] = exp_inside(x[i]);
    far |= static_cast<int64_t>(!(__builtin_fabs(x[i]) < kExpLimit));
  }
  if (far == 0) return;
  for (int i = 0; i < n; ++i) {
    if (!(__builtin_fabs(x[i]) < kExpLimit)) out[i] = __builtin_exp(x[i]);
  }
}

template <typename T>
bool load(const TokenSource<T>& source, int64_t i, int n, TokenStep& step) {
  double* __restrict weight = step.weight;
  double* __restrict logp = step.logp;
  double* __restrict advantage = step.advantage;
  double* __restrict own = step.own_ratio;
  const T* __restrict from_logp = source.logp + i;
  const T* __restrict from_advantage = source.advantages + i;
  if (source.weights != nullptr) {
    const double* __restrict from = source.weights + i;
    for (int j = 0; j < n; ++j) weight[j] = from[j];
  } else {
    const uint8_t* __restrict from = source.mask + i;
    const double uniform = source.weight;
    for (int j = 0; j < n; ++j) weight[j] = from[j] != 0 ? uniform : 0.0;
  }
  for (int j = 0; j < n; ++j) {
    const double lp = from_logp[j];
    const double a = from_advantage[j];
    logp[j] = weight[j] != 0 ? lp : 0.0;
    advantage[j] = weight[j] != 0 ? a : 0.0;
  }
  if (source.old_logp != nullptr) {
    const T* __restrict from = source.old_logp + i;
    for (int j = 0; j < n; ++j) {
      const double d = logp[j] - static_cast<double>(from[j]);
      own[j] = weight[j] != 0 ? d : 0.0;
    }
  } else {
    for (int j = 0; j < n; ++j) own[j] = 0.0;
  }
  // x - x is 0 of a finite number and NaN of all others
  int64_t bad = 0;
  for (int j = 0; j < n; ++j) {
    const double sum = (logp[j] - logp[j]) + (advantage[j] - advantage[j]) + (own[j] - own[j]);
    bad |= static_cast<int64_t>(sum != 0.0);
  }
  return bad == 0;
}

// `clip_term` of csrc/core/token_loss.h by selects.
void clip(const TokenLossParams& params, const double* __restrict u, int n, TokenStep& step) {
  const TokenLossParams p = params;
  const double* __restrict r = step.ratio;
  const double* __restrict a = step.advantage;
  double* __restrict loss = step.loss;
  double* __restrict slope = step.slope;
  for (int j = 0; j < n; ++j) {
    const bool up = a[j] > 0;
    const bool down = a[j] < 0;
    const bool cut = (up & (u[j] > p.log_high)) | (down & (u[j] < p.log_low));
    const bool dual = down & (u[j] > p.log_dual);
    double ratio = dual ? p.ratio_dual : r[j];
    ratio = cut ? (up ? p.ratio_high : p.ratio_low) : ratio;
    // a zero advantage is zero loss even where the ratio overflows
    const double term = (up | down) ? -a[j] * ratio : 0.0;
    loss[j] = term;
    slope[j] = (cut | dual) ? 0.0 : term;
  }
}

int select(bool keep, const uint8_t* __restrict selected, int n, TokenStep& step) {
  double* __restrict loss = step.loss;
  double* __restrict slope = step.slope;
  const uint8_t kept = keep ? 1 : 0;
  int count = 0;
  for (int j = 0; j < n; ++j) {
    const uint8_t flag = selected[j] != 0 ? 1 : 0;
    count += static_cast<int>(flag & (step.weight[j] != 0));
    loss[j] = flag == kept ? loss[j] : 0.0;
    slope[j] = flag == kept ? slope[j] : 0.0;
  }
  return count;
}

template <typename T>
bool write(double scale, bool kl, int n, const TokenStep& step, T* __restrict g) {
  const double* __restrict weight = step.weight;
  const double* __restrict slope = step.slope;
  const double* __restrict other = step.kl_slope;
  const double limit = overflow_of<T>();
  int64_t bad = 0;
  if (kl) {
    for (int j = 0; j < n; ++j) {
      const double policy = weight[j] != 0 ? scale * weight[j] * slope[j] : 0.0;
      const double both = policy + other[j];
      bad |= static_cast<int64_t>(!(__builtin_fabs(both) < limit));
      g[j] = static_cast<T>(both);
    }
  } else {
    for (int j = 0; j < n; ++j) {
      const double policy = weight[j] != 0 ? scale * weight[j] * slope[j] : 0.0;
      bad |= static_cast<int64_t>(!(__builtin_fabs(policy) < limit));
      g[j] = static_cast<T>(policy);
    }
  }
  return bad == 0;
}

void add(
    const TokenLossParams& params,
    const TokenMeans& means,
    const double* __restrict clip_ratio,
    int n,
    const TokenStep& step,
    TokenLanes& lanes
) {
  const TokenLossParams p = params;
  const TokenMeans m = means;
  TokenLanes sums = lanes;
  // the rest of a step is padded with tokens of weight 0
  for (int i = 0; i < n; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) {
      const double w = step.weight[i + j];
      const double a = step.advantage[i + j];
      const double u = clip_ratio[i + j];
      const bool cut = ((a > 0) & (u > p.log_high)) | ((a < 0) & (u < p.log_low));
      const bool dual = (a < 0) & (u > p.log_dual);
      const double cov = (a - m.advantage) * (step.logp[i + j] - m.logp);
      sums.policy[j] += w != 0 ? w * step.loss[i + j] : 0.0;
      sums.clipped[j] += cut ? 1.0 : 0.0;
      sums.clipped_lower[j] += dual ? 1.0 : 0.0;
      sums.old_minus_new[j] -= step.own_ratio[i + j];
      sums.covariance[j] += w != 0 ? cov : 0.0;
    }
  }
  lanes = sums;
}

template <typename T>
bool sum(const T* __restrict values, const uint8_t* __restrict valid, int n, SplitSum& total) {
  // Adding 1.5 * 2^52 rounds to an integer, which then stands in the low bits: of v 2^16, and of
  // what is left of v 2^64. Both stay below 2^48, so that 4096 of them fit into int64.
  constexpr double round = 0x1.8p52;
  const uint64_t base = bits_as<uint64_t>(round);
  const int64_t limit = bits_as<int64_t>(SplitSum::kLimit);
  // unsigned: the bases wrap around and leave again at the end
  uint64_t high = 0, low = 0, left = 0;
  int64_t largest = 0;
  for (int i = 0; i < n; ++i) {
    const double given = values[i];
    const double v = valid[i] != 0 ? given : 0.0;
    // the bits of magnitudes are in their order, and NaN is above all of them
    const int64_t magnitude = bits_as<int64_t>(v) & INT64_MAX;
    largest = magnitude > largest ? magnitude : largest;
    const double shifted = v * 0x1p16 + round;
    const double rest = v - (shifted - round) * 0x1p-16;
    const double shifted_rest = rest * 0x1p64 + round;
    high += bits_as<uint64_t>(shifted);
    low += bits_as<uint64_t>(shifted_rest);
    left |= bits_as<uint64_t>(rest - (shifted_rest - round) * 0x1p-64);
  }
  total.high = static_cast<int64_t>(high - static_cast<uint64_t>(n) * base);
  total.low = static_cast<int64_t>(low - static_cast<uint64_t>(n) * base);
  total.largest = largest;
  // shifted: a difference of -0 is none
  return largest < limit && left << 1 == 0;
}

bool take(double* __restrict values, int n, double large, int64_t& total) {
  const uint64_t base = bits_as<uint64_t>(large);
  uint64_t sum = 0, rest = 0;
  for (int i = 0; i < n; ++i) {
    const double v = values[i];
    const double rounded = v + large;
    const double left = v - (rounded - large);
    values[i] = left;
    sum += bits_as<uint64_t>(rounded);
    rest |= bits_as<uint64_t>(left);
  }
  total += static_cast<int64_t>(sum - static_cast<uint64_t>(n) * base);
  // shifted: a difference of -0 is none
  return rest << 1 != 0;
}

int count(const uint8_t* __restrict valid, int n) {
  int total = 0;
  for (int i = 0; i < n; ++i) total += valid[i] != 0;
  return total;
}

void random(
    const int64_t* __restrict ids, int n, uint64_t seed, uint64_t step, uint64_t* __restrict out
) {
  constexpr uint64_t low = 0xffffffff;
  // products of 32-bit halves in 64-bit lanes; the ids are the halves 0 and 1 of the counter
  for (int i = 0; i < n; ++i) {
    uint64_t c0 = static_cast<uint64_t>(ids[i]) & low, c1 = static_cast<uint64_t>(ids[i]) >> 32;
    uint64_t c2 = step & low, c3 = step >> 32;
    uint64_t key0 = seed & low, key1 = seed >> 32;
    for (int round = 0; round < 10; ++round) {
      const uint64_t product0 = uint64_t{0xD2511F53} * c0;
      const uint64_t product1 = uint64_t{0xCD9E8D57} * c2;
      c0 = (product1 >> 32) ^ c1 ^ key0;
      c1 = product1 & low;
      c2 = (product0 >> 32) ^ c3 ^ key1;
      c3 = product0 & low;
      key0 = (key0 + 0x9E3779B9) & low;
      key1 = (key1 + 0xBB67AE85) & low;
    }
    out[i] = c0 | c1 << 32;
  }
}

template <typename T>
bool cov(
    const TokenSource<T>& source,
    const CovarianceBand& band,
    int64_t start,
    int n,
    uint64_t* __restrict scores
) {
  const CovarianceBand b = band;
  const T* __restrict logp = source.logp + start;
  const T* __restrict a = source.advantages + start;
  const uint8_t* __restrict valid = source.mask + start;
  for (int i = 0; i < n; ++i) {
    // + 0.0 makes -0 and 0 the same
    const double value = (static_cast<double>(a[i]) - b.means.advantage) *
                             (static_cast<double>(logp[i]) - b.means.logp) +
                         0.0;
    const int64_t bits = bits_as<int64_t>(value);
    // all bits of a negative number turn, the sign of the others
    const int64_t sign = bits < 0 ? int64_t{-1} : int64_t{0};
    const bool inside = (value > b.low) & (value < b.high) & (valid[i] != 0);
    scores[i] = inside ? static_cast<uint64_t>(bits ^ (sign | INT64_MIN)) : kNoCandidate;
  }
  if (source.old_logp == nullptr) return true;
  const T* __restrict old = source.old_logp + start;
  int64_t bad = 0;
  for (int i = 0; i < n; ++i) {
    const double advantage = a[i];
    const double before = valid[i] != 0 ? static_cast<double>(old[i]) : 0.0;
    const double u = static_cast<double>(logp[i]) - before;
    const bool cut = ((advantage > 0) & (u > b.log_high)) | ((advantage < 0) & (u < b.log_low));
    scores[i] = cut ? kNoCandidate : scores[i];
    bad |= static_cast<int64_t>(before - before != 0.0);
  }
  return bad == 0;
}

int at_least(
    const uint64_t* __restrict scores,
    const int64_t* __restrict ids,
    int n,
    uint64_t least,
    uint64_t* __restrict out_scores,
    int64_t* __restrict out_ids
) {
  int kept = 0;
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    uint64_t any = 0;
    for (int j = 0; j < 8; ++j) any |= static_cast<uint64_t>(scores[i + j] >= least);
    if (any == 0) continue;
    for (int j = i; j < i + 8; ++j) {
      // no branch: what is written too much, the next one overwrites
      out_scores[kept] = scores[j];
      out_ids[kept] = ids[j];
      kept += static_cast<int>(scores[j] >= least);
    }
  }
  for (; i < n; ++i) {
    out_scores[kept] = scores[i];
    out_ids[kept] = ids[i];
    kept += static_cast<int>(scores[i] >= least);
  }
  return kept;
}

bool consecutive(const int64_t* __restrict ids, int n) {
  const uint64_t first = static_cast<uint64_t>(ids[0]);
  uint64_t odd = 0;
  for (int i = 0; i < n; ++i)
    odd |= static_cast<uint64_t>(ids[i]) ^ (first + static_cast<uint64_t>(i));
  return odd == 0;
}

}  // namespace

extern const TokenKernels token_kernels;
const TokenKernels token_kernels = {
    load<float>,
    load<double>,
    exp_all,
    clip,
    select,
    write<float>,
    write<double>,
    add,
    sum<float>,
    sum<double>,
    count,
    take,
    random,
    cov<float>,
    cov<double>,
    at_least,
    consecutive,
};

}  // namespace LOGITLESS_ISA
}  // namespace logitless::cpu
