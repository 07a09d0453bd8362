// The loops over tokens that are worth vectors: written once in token_steps.inl, compiled once per
// instruction set, and the same bits from each, for nothing in them is fused or reordered.
#pragma once

#include "../../core/token_loss.h"
#include "../../core/tokens/covariance.h"

namespace logitless::cpu {

// Tokens taken at once: what a step keeps of them stays in the nearest cache.
constexpr int kStep = 256;

// One step of the token loss, masked tokens as zeros. 64-byte aligned for the vectors.
struct alignas(64) TokenStep {
  double weight[kStep];
  double logp[kStep];
  double advantage[kStep];
  // logp - old_logp, and the log ratio that the surrogate sees
  double own_ratio[kStep];
  double log_ratio[kStep];
  double ratio[kStep];
  double loss[kStep];
  double slope[kStep];
  // what the KL term adds to the slope, weighted
  double kl_slope[kStep];
};

// The least positive number that T rounds to infinity.
template <typename T>
constexpr double overflow_of() {
  return sizeof(T) == sizeof(float) ? 0x1.ffffffp127 : INFINITY;
}

// Sums of a step in lanes: added in a fixed order whatever the vectors' width.
constexpr int kLanes = 8;
struct alignas(64) TokenLanes {
  double policy[kLanes] = {};
  double clipped[kLanes] = {};
  double clipped_lower[kLanes] = {};
  double old_minus_new[kLanes] = {};
  double covariance[kLanes] = {};
};

template <typename T>
struct TokenSource {
  const T* logp;
  const T* old_logp;  // or null
  const T* advantages;
  // weights[i], or null and `weight` where mask[i]
  const double* weights;
  const uint8_t* mask;
  double weight;
};

// Sums of values as multiples of 2^-64, in two halves: high 2^-16, low 2^-64.
struct SplitSum {
  static constexpr double kLimit = 0x1p31;

  int64_t high = 0;
  int64_t low = 0;
  // the bits of the largest magnitude; those of numbers that are not finite are above all others
  int64_t largest = 0;
};

// The score of a token that is none: below those of all finite numbers.
constexpr uint64_t kNoCandidate = 0;

// Tokens whose covariance lies strictly inside a band and whose ratio is not clipped.
struct CovarianceBand {
  TokenMeans means = {0, 0};
  double low = -INFINITY;
  double high = INFINITY;
  double log_low = -INFINITY;
  double log_high = INFINITY;
};

// Masks are bytes, of which each but 0 is true: Python's booleans may be views of other bytes, and
// what else than 0 and 1 a C++ bool holds is undefined.
struct TokenKernels {
  // Fills weight, logp, advantage, own_ratio of n tokens from i on; false: some value is not
  // finite.
  bool (*load_f32)(const TokenSource<float>& source, int64_t i, int n, TokenStep& step);
  bool (*load_f64)(const TokenSource<double>& source, int64_t i, int n, TokenStep& step);
  void (*exp)(const double* x, double* out, int n);
  // loss and slope of Surrogate::clip at log ratios u
  void (*clip)(const TokenLossParams& params, const double* u, int n, TokenStep& step);
  // Control::drop_selected, or keep_selected; returns how many are selected.
  int (*select)(bool keep, const uint8_t* selected, int n, TokenStep& step);
  // g[j] = scale * weight * slope + kl_slope, or without the KL; false: some are not finite.
  bool (*write_f32)(double scale, bool kl, int n, const TokenStep& step, float* g);
  bool (*write_f64)(double scale, bool kl, int n, const TokenStep& step, double* g);
  // Adds the step to the lanes; `clip_ratio` is what counts as clipped.
  void (*add)(
      const TokenLossParams& params,
      const TokenMeans& means,
      const double* clip_ratio,
      int n,
      const TokenStep& step,
      TokenLanes& lanes
  );
  // values[mask] of up to 4096 tokens; false: some value is not below kLimit or no multiple of
  // 2^-64, and only `largest` is right. A float of at least 2^-40 is such a multiple.
  bool (*sum_f32)(const float* values, const uint8_t* mask, int n, SplitSum& sum);
  bool (*sum_f64)(const double* values, const uint8_t* mask, int n, SplitSum& sum);
  int (*count)(const uint8_t* mask, int n);
  // Takes from up to 4096 values, below large / 2, what adding `large` = 1.5 * 2^k rounds them to:
  // multiples of 2^(k - 52), in units of which it adds them to `total`. Returns whether any is
  // left.
  bool (*take)(double* values, int n, double large, int64_t& total);
  // `random_key` of csrc/core/philox.h for each id
  void (*random)(const int64_t* ids, int n, uint64_t seed, uint64_t step, uint64_t* out);
  // Ordered bits of the covariances of n tokens from i on, kNoCandidate for those outside the band,
  // clipped or masked; false: some old_logp is not finite.
  bool (*cov_f32)(
      const TokenSource<float>& source,
      const CovarianceBand& band,
      int64_t i,
      int n,
      uint64_t* scores
  );
  bool (*cov_f64)(
      const TokenSource<double>& source,
      const CovarianceBand& band,
      int64_t i,
      int n,
      uint64_t* scores
  );
  // Moves the tokens whose score is at least `least` to the front of the outputs, which have room
  // for n; returns how many.
  int (*at_least)(
      const uint64_t* scores,
      const int64_t* ids,
      int n,
      uint64_t least,
      uint64_t* out_scores,
      int64_t* out_ids
  );
  // Whether n >= 1 ids rise by one from each to the next.
  bool (*consecutive)(const int64_t* ids, int n);
};

// Those of the instruction set that row_kernels() has.
const TokenKernels& token_kernels();

}  // namespace logitless::cpu
