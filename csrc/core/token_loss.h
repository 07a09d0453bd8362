// The policy loss of one token and its derivatives in closed form: every loss is
// weight * (policy term + kl_coefficient * kl - entropy_coefficient * entropy).
#pragma once

#include <cmath>

#include "config.h"

namespace logitless {

// What being selected (by covariance or entropy, over the whole batch) does to the policy term.
enum class Control : uint8_t { none, drop_selected, penalise_selected, keep_selected };

// One-sample estimators of KL(policy || reference).
enum class KlEstimator : uint8_t { none, k1, k2, k3 };

struct TokenLossParams {
  // The ratio is flat beyond [ratio_low, ratio_high]; -inf and inf clip nothing. The tests compare
  // log ratios, which every machine subtracts to the same bits, against logs taken once.
  double ratio_low = -INFINITY;
  double ratio_high = INFINITY;
  double log_low = -INFINITY;
  double log_high = INFINITY;
  // Dual clip: where the advantage is negative the ratio counts as at most this.
  double ratio_dual = INFINITY;
  double log_dual = INFINITY;
  Control control = Control::none;
  double penalty = 0;
  KlEstimator kl = KlEstimator::none;
  double kl_coefficient = 0;
  double entropy_coefficient = 0;
};

// A policy term and its derivative in logp.
struct Term {
  double loss;
  double slope;
};

// The ratio left the clip range on the side to which the advantage pushes.
LOGITLESS_HD inline bool ratio_clipped(
    double log_ratio, double advantage, double log_low, double log_high
) {
  return (advantage > 0 && log_ratio > log_high) || (advantage < 0 && log_ratio < log_low);
}

LOGITLESS_HD inline bool dual_clipped(
    double log_ratio, double advantage, const TokenLossParams& params
) {
  return advantage < 0 && log_ratio > params.log_dual;
}

// max(-A r, -A clip(r)), at most -A * dual where A < 0. A zero advantage is zero loss even where
// the ratio overflows.
LOGITLESS_HD inline Term surrogate(
    double log_ratio, double advantage, const TokenLossParams& params
) {
  if (advantage == 0) return {0, 0};
  if (ratio_clipped(log_ratio, advantage, params.log_low, params.log_high)) {
    return {-advantage * (advantage > 0 ? params.ratio_high : params.ratio_low), 0};
  }
  if (dual_clipped(log_ratio, advantage, params)) return {-advantage * params.ratio_dual, 0};
  const double loss = -advantage * std::exp(log_ratio);
  return {loss, loss};
}

LOGITLESS_HD inline Term controlled(
    Term term, double log_ratio, bool selected, const TokenLossParams& params
) {
  switch (params.control) {
    case Control::none: return term;
    case Control::drop_selected: return selected ? Term{0, 0} : term;
    case Control::keep_selected: return selected ? term : Term{0, 0};
    case Control::penalise_selected: break;
  }
  if (!selected) return term;
  // |log ratio| has slope 0 at 0, so the penalty does nothing on the first, on-policy update
  const double sign = static_cast<double>(log_ratio > 0) - static_cast<double>(log_ratio < 0);
  return {term.loss + params.penalty * std::fabs(log_ratio), term.slope + params.penalty * sign};
}

LOGITLESS_HD inline Term kl_term(double log_ratio, KlEstimator estimator) {
  switch (estimator) {
    case KlEstimator::none: return {0, 0};
    case KlEstimator::k1: return {log_ratio, 1};
    case KlEstimator::k2: return {0.5 * log_ratio * log_ratio, log_ratio};
    case KlEstimator::k3: break;
  }
  // e^-x - 1 + x without cancellation near 0
  const double surplus = std::expm1(-log_ratio);
  return {surplus + log_ratio, -surplus};
}

}  // namespace logitless
