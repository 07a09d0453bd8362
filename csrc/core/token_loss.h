// The policy loss of one token and its derivatives in closed form: every loss is
// weight * (factor * policy term + kl_coefficient * kl + entropy term).
#pragma once

#include <cmath>
#include <iterator>
#include <type_traits>

#include "config.h"
#include "exp.h"

namespace logitless {

// The policy terms; a new one is a function `term` below and a case of `surrogate_term`. A term
// that is `precomputed` comes with its value and its slope.
enum class Surrogate : uint8_t {
  clip,
  reinforce,
  none,
  cispo,
  sapo,
  trust_mask,
  dro,
  vespo,
  bounded,
  dcpo,
  aspo,
  precomputed
};

// Their names, in order.
inline constexpr const char* kSurrogates[] = {
    "clip",
    "reinforce",
    "none",
    "cispo",
    "sapo",
    "trust_mask",
    "dro",
    "vespo",
    "bounded",
    "dcpo",
    "aspo",
    "precomputed"
};
static_assert(std::size(kSurrogates) == static_cast<size_t>(Surrogate::precomputed) + 1);

// What being selected (by covariance or entropy, over the whole batch) does to the policy term.
enum class Control : uint8_t { none, drop_selected, penalise_selected, keep_selected };

// One-sample estimators of KL(policy || reference).
enum class KlEstimator : uint8_t { none, k1, k2, k3, abs, low_var };

// What multiplies a KL estimate: nothing, exp(logp - old_logp), or exp(logp - constant logp) = 1.
enum class KlWeight : uint8_t { none, ratio, score };

struct KlParams {
  KlEstimator estimator = KlEstimator::none;
  // The value of the estimator with the gradient of k2.
  bool straight_through = false;
  KlWeight weight = KlWeight::none;
  double coefficient = 0;
};

struct TokenLossParams {
  Surrogate surrogate = Surrogate::clip;
  // Of the surrogate, in the order of its `term`, which names each: an index that is computed would
  // keep all of a device's numbers in memory.
  double constants[4] = {0, 0, 0, 0};
  // The ratio counts as clipped beyond [ratio_low, ratio_high]; -inf and inf clip nothing. The
  // tests compare log ratios, which every machine subtracts to the same bits, against logs taken
  // once.
  double ratio_low = -INFINITY;
  double ratio_high = INFINITY;
  double log_low = -INFINITY;
  double log_high = INFINITY;
  // Dual clip: where the advantage is negative the ratio counts as at most this.
  double ratio_dual = INFINITY;
  double log_dual = INFINITY;
  // Factors of the policy term by the sign of the advantage.
  double positive = 1;
  double negative = 1;
  Control control = Control::none;
  // Of the selected tokens; coefficient 0 where the control is another one.
  KlParams penalty;
  KlParams kl;
  double entropy_coefficient = 0;
  // 0: -coefficient * H. Above 0: coefficient / (2 target) * max(target - H, 0)^2.
  double entropy_target = 0;
};

// What a surrogate may use of its token.
struct PolicyToken {
  double log_ratio;
  double ratio;
  double advantage;
  double logp;
};

// A term and its derivative in logp (or in the entropy).
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

// max(-A r, -A clip(r)), at most -A * dual where A < 0.
LOGITLESS_HD inline Term clip_term(const PolicyToken& t, const TokenLossParams& p) {
  if (ratio_clipped(t.log_ratio, t.advantage, p.log_low, p.log_high)) {
    return {-t.advantage * (t.advantage > 0 ? p.ratio_high : p.ratio_low), 0};
  }
  if (dual_clipped(t.log_ratio, t.advantage, p)) return {-t.advantage * p.ratio_dual, 0};
  const double loss = -t.advantage * t.ratio;
  return {loss, loss};
}

// -A w logp with a constant weight w.
LOGITLESS_HD inline Term score_term(const PolicyToken& t, double weight) {
  const double slope = -t.advantage * weight;
  return {slope * t.logp, slope};
}

// constants: lowest and highest weight.
LOGITLESS_HD inline Term cispo_term(const PolicyToken& t, const TokenLossParams& p) {
  return score_term(t, std::fmin(std::fmax(t.ratio, p.constants[0]), p.constants[1]));
}

// constants: tau where A > 0, tau elsewhere. -A 4/tau sigmoid(tau (r - 1)).
LOGITLESS_HD inline Term sapo_term(const PolicyToken& t, const TokenLossParams& p) {
  const double tau = t.advantage > 0 ? p.constants[0] : p.constants[1];
  const double e = exp_of(-tau * std::fabs(t.ratio - 1));
  const double gate = (t.ratio > 1 ? 1 : e) / (1 + e);
  // q (1 - q) of the sigmoid; 0 for a large ratio, which may be infinite
  const double bell = e / ((1 + e) * (1 + e));
  const double slope = bell > 0 ? -t.advantage * 4 * bell * t.ratio : 0;
  return {-t.advantage * 4 / tau * gate, slope};
}

// KL of Bernoulli(exp(old)) from Bernoulli(exp(now)): the token against all others.
LOGITLESS_HD inline double bernoulli_kl(double old_logp, double logp) {
  // what keeps log(1 - p) finite where p rounds to 1
  const double tiny = 1e-8;
  const double old_p = exp_of(old_logp);
  const double p = exp_of(logp);
  return old_p * (old_logp - logp) + (1 - old_p) * std::log((1 - old_p + tiny) / (1 - p + tiny));
}

// constants: low, high, cap (0: none), 2 * (KL instead of p - p_old) + two_sided.
LOGITLESS_HD inline Term trust_mask_term(const PolicyToken& t, const TokenLossParams& p) {
  const double low = p.constants[0];
  const double high = p.constants[1];
  const double cap = p.constants[2];
  const bool two_sided = p.constants[3] == 1 || p.constants[3] == 3;
  const double old_logp = t.logp - t.log_ratio;
  const double move = exp_of(t.logp) - exp_of(old_logp);
  const bool up = t.advantage > 0;
  bool kept;
  if (p.constants[3] >= 2) {
    const bool against = up ? move <= 0 : move >= 0;
    kept = bernoulli_kl(old_logp, t.logp) <= (up ? high : low) || (against && !two_sided);
  } else {
    kept = (move <= high || !(up || two_sided)) && (move >= -low || (up && !two_sided));
  }
  if (!kept) return {0, 0};
  if (cap > 0) return score_term(t, std::fmin(t.ratio, cap));
  const double loss = -t.advantage * t.ratio;
  return {loss, loss};
}

// constants: beta.
LOGITLESS_HD inline Term dro_term(const PolicyToken& t, const TokenLossParams& p) {
  const double pull = p.constants[0] * t.log_ratio;
  return {-t.advantage * t.logp + 0.5 * pull * t.log_ratio, -t.advantage + pull};
}

// constants: k and lambda where A >= 0, k and lambda where A < 0.
LOGITLESS_HD inline Term vespo_term(const PolicyToken& t, const TokenLossParams& p) {
  const bool down = t.advantage < 0;
  const double k = down ? p.constants[2] : p.constants[0];
  const double lambda = down ? p.constants[3] : p.constants[1];
  return score_term(t, exp_of(lambda + k * t.log_ratio - lambda * t.ratio));
}

// constants: the factors of what a clipped token keeps, below and above. The bound in place of the
// ratio, as value and as slope; the dual clip cuts the gradient as in `clip_term`.
LOGITLESS_HD inline Term bounded_term(const PolicyToken& t, const TokenLossParams& p) {
  Term term = clip_term(t, p);
  if (ratio_clipped(t.log_ratio, t.advantage, p.log_low, p.log_high)) {
    term.loss *= t.advantage > 0 ? p.constants[1] : p.constants[0];
    term.slope = term.loss;
  }
  return term;
}

// constants: low, high and the highest upper bound. The clip of PPO and the dual clip with bounds
// (1 + sqrt(1 - 4 low / p)) / 2 and (1 + sqrt(1 + 4 high / p)) / 2, p of the old policy.
LOGITLESS_HD inline Term dcpo_term(const PolicyToken& t, const TokenLossParams& p) {
  // above 0, so that a bound of width 0 stays one
  const double old_p = std::fmax(exp_of(t.logp - t.log_ratio), 1e-300);
  const double below = std::fmax(1 - 4 * p.constants[0] / old_p, 0.0);
  const double low = 0.5 + 0.5 * std::sqrt(below);
  const double high =
      std::fmin(0.5 + 0.5 * std::sqrt(1 + 4 * p.constants[1] / old_p), p.constants[2]);
  if (t.advantage > 0 && t.ratio > high) return {-t.advantage * high, 0};
  if (t.advantage < 0 && t.ratio < low) return {-t.advantage * low, 0};
  if (dual_clipped(t.log_ratio, t.advantage, p)) return {-t.advantage * p.ratio_dual, 0};
  const double loss = -t.advantage * t.ratio;
  return {loss, loss};
}

// The inverse of the ratio as the weight where A > 0; the dual bound caps the weight on both sides,
// and what it caps keeps the gradient of a score function.
LOGITLESS_HD inline Term aspo_term(const PolicyToken& t, const TokenLossParams& p) {
  const bool up = t.advantage > 0;
  if ((up ? -t.log_ratio : t.log_ratio) > p.log_dual) return score_term(t, p.ratio_dual);
  const bool clipped = ratio_clipped(t.log_ratio, t.advantage, p.log_low, p.log_high);
  const double ratio = !clipped ? t.ratio : up ? p.ratio_high : p.ratio_low;
  const double loss = -t.advantage * (up ? 1 / ratio : ratio);
  return {loss, clipped ? 0 : loss};
}

// A zero advantage is zero loss even where the ratio overflows.
template <Surrogate kind>
LOGITLESS_HD inline Term surrogate_term(const PolicyToken& t, const TokenLossParams& p) {
  if constexpr (kind == Surrogate::dro) return dro_term(t, p);
  if (kind == Surrogate::none || t.advantage == 0) return {0, 0};
  if constexpr (kind == Surrogate::clip) return clip_term(t, p);
  if constexpr (kind == Surrogate::reinforce) return score_term(t, 1);
  if constexpr (kind == Surrogate::cispo) return cispo_term(t, p);
  if constexpr (kind == Surrogate::sapo) return sapo_term(t, p);
  if constexpr (kind == Surrogate::trust_mask) return trust_mask_term(t, p);
  if constexpr (kind == Surrogate::vespo) return vespo_term(t, p);
  if constexpr (kind == Surrogate::bounded) return bounded_term(t, p);
  if constexpr (kind == Surrogate::dcpo) return dcpo_term(t, p);
  if constexpr (kind == Surrogate::aspo) return aspo_term(t, p);
  return {0, 0};
}

// f(a constant that is `kind`).
template <size_t tried = 0, typename F>
auto with_surrogate(Surrogate kind, const F& f) {
  constexpr auto candidate = static_cast<Surrogate>(tried);
  if constexpr (candidate != Surrogate::precomputed) {
    if (kind != candidate) return with_surrogate<tried + 1>(kind, f);
  }
  return f(std::integral_constant<Surrogate, candidate>{});
}

LOGITLESS_HD inline double sign_of(double x) {
  return static_cast<double>(x > 0) - static_cast<double>(x < 0);
}

LOGITLESS_HD inline Term plain_kl(double x, KlEstimator estimator) {
  switch (estimator) {
    case KlEstimator::none: return {0, 0};
    case KlEstimator::k1: return {x, 1};
    case KlEstimator::k2: return {0.5 * x * x, x};
    // slope 0 at 0, so the penalty does nothing where the two policies are the same
    case KlEstimator::abs: return {std::fabs(x), sign_of(x)};
    case KlEstimator::k3:
    case KlEstimator::low_var: break;
  }
  const bool clamped = estimator == KlEstimator::low_var;
  if (clamped && std::fabs(x) > 20) {
    // below -20 the value is above its bound of 10; above 20 it is 19 and more
    return {10, 0};
  }
  // e^-x - 1 + x without cancellation near 0
  const double surplus = expm1_of(-x);
  if (clamped && surplus + x > 10) return {10, 0};
  return {surplus + x, -surplus};
}

// coefficient * weight * estimate, of x = logp - reference and d = logp - old.
LOGITLESS_HD inline Term kl_term(double x, double d, const KlParams& p) {
  Term term = plain_kl(x, p.estimator);
  if (p.straight_through) term.slope = x;
  if (p.weight == KlWeight::score) term.slope += term.loss;
  if (p.weight == KlWeight::ratio) {
    const double ratio = exp_of(d);
    term = {ratio * term.loss, ratio * (term.slope + term.loss)};
  }
  return term;
}

// Of a token and its penalty (d and x as for `kl_term`).
LOGITLESS_HD inline Term controlled(
    Term term, double advantage, bool selected, double x, const TokenLossParams& params
) {
  const double sign = advantage > 0 ? params.positive : advantage < 0 ? params.negative : 1;
  // by select: the term may be infinite
  term = sign == 0 ? Term{0, 0} : Term{sign * term.loss, sign * term.slope};
  switch (params.control) {
    case Control::none: return term;
    case Control::drop_selected: return selected ? Term{0, 0} : term;
    case Control::keep_selected: return selected ? term : Term{0, 0};
    case Control::penalise_selected: break;
  }
  if (!selected) return term;
  const Term extra = kl_term(x, 0, params.penalty);
  const double coefficient = params.penalty.coefficient;
  // no penalty, even where the estimate is infinite
  if (coefficient == 0) return term;
  return {term.loss + coefficient * extra.loss, term.slope + coefficient * extra.slope};
}

LOGITLESS_HD inline Term entropy_term(double entropy, const TokenLossParams& params) {
  const double coefficient = params.entropy_coefficient;
  if (params.entropy_target == 0) return {-coefficient * entropy, -coefficient};
  const double gap = std::fmax(params.entropy_target - entropy, 0.0);
  const double slope = -coefficient * gap / params.entropy_target;
  return {-0.5 * slope * gap, slope};
}

}  // namespace logitless
