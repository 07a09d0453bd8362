// The policy loss of tokens: coefficients of each, and sums that are added in a fixed order.
#pragma once

#include "../../core/exp.h"
#include "block.cuh"

namespace logitless::cuda {

// What a token adds to the sums: `SUMS` of backends/token_kernels/protocol.py, without the last
// three, which name a token to the host.
constexpr int kAdded = 10;
struct TokenSums {
  double loss, policy, kl, clipped, clipped_lower, selected, old_minus_new, entropy, covariance;
  double tokens;
};

template <typename T>
LOGITLESS_DEVICE double overflow_of() {
  return sizeof(T) == sizeof(float) ? 0x1.ffffffp127 : INFINITY;
}

LOGITLESS_DEVICE double times(double coefficient, double x) {
  return coefficient == 0 ? 0 : coefficient * x;
}

// x[i], or 0 where there is no such array.
template <typename T>
LOGITLESS_DEVICE double at(const T* x, int64_t i) {
  return x != nullptr ? static_cast<double>(x[i]) : 0;
}

LOGITLESS_DEVICE Term policy_of(const PolicyToken& t, const TokenLossParams& p) {
  switch (p.surrogate) {
    case Surrogate::clip: return surrogate_term<Surrogate::clip>(t, p);
    case Surrogate::reinforce: return surrogate_term<Surrogate::reinforce>(t, p);
    case Surrogate::cispo: return surrogate_term<Surrogate::cispo>(t, p);
    case Surrogate::sapo: return surrogate_term<Surrogate::sapo>(t, p);
    case Surrogate::trust_mask: return surrogate_term<Surrogate::trust_mask>(t, p);
    case Surrogate::dro: return surrogate_term<Surrogate::dro>(t, p);
    case Surrogate::vespo: return surrogate_term<Surrogate::vespo>(t, p);
    case Surrogate::bounded: return surrogate_term<Surrogate::bounded>(t, p);
    case Surrogate::dcpo: return surrogate_term<Surrogate::dcpo>(t, p);
    case Surrogate::aspo: return surrogate_term<Surrogate::aspo>(t, p);
    case Surrogate::none:
    case Surrogate::precomputed: break;
  }
  return {0, 0};
}

// The clip bounds and the weight of the entropy may be numbers that an earlier kernel has found.
template <typename T>
LOGITLESS_DEVICE TokenLossParams params_of(const LossArgs<T>& args) {
  TokenLossParams params = args.params;
  if (args.log_low != nullptr) {
    params.log_low = *args.log_low;
    params.ratio_low = exp_of(params.log_low);
  }
  if (args.log_high != nullptr) {
    params.log_high = *args.log_high;
    params.ratio_high = exp_of(params.log_high);
  }
  if (args.entropy_coefficient != nullptr) {
    params.entropy_coefficient = *args.entropy_coefficient;
  }
  return params;
}

// Writes the coefficients of a token inside the mask.
template <typename T>
LOGITLESS_DEVICE TokenSums loss_of(const LossArgs<T>& args, int64_t i, double weight) {
  const TokenLossParams params = params_of(args);
  const double logp = args.logp[i], advantage = args.advantages[i], entropy = at(args.entropy, i);
  const double own = args.old_logp != nullptr ? logp - static_cast<double>(args.old_logp[i]) : 0;
  const double u = args.log_ratio != nullptr ? args.log_ratio[i] : own;
  const double x = args.kl_logp != nullptr ? logp - static_cast<double>(args.kl_logp[i]) : 0;
  const double factor = args.factor != nullptr ? args.factor[i] : 1;
  const bool selected = args.selected != nullptr && args.selected[i] != 0;
  const bool penalised = selected && params.control == Control::penalise_selected;
  const double away = penalised ? logp - static_cast<double>(args.penalty_logp[i]) : 0;
  const bool good = finite(logp) && finite(advantage) && finite(own) && finite(u) &&
                    finite(entropy) && finite(x) && finite(factor) && finite(away);

  const bool given = params.surrogate == Surrogate::precomputed;
  Term term = given ? Term{args.precomputed_loss[i], args.precomputed_slope[i]}
                    : policy_of({u, exp_of(u), advantage, logp}, params);
  term = controlled(term, advantage, selected, away, params);
  // by select: the term may be infinite
  term = factor == 0 ? Term{0, 0} : Term{factor * term.loss, factor * term.slope};
  const Term kl = kl_term(x, own, params.kl);
  const Term bonus = entropy_term(entropy, params);
  const double scaled = args.grad_scale * weight;
  const double slope = scaled * term.slope;
  const double kl_slope = times(scaled * params.kl.coefficient, kl.slope);
  const double rest = scaled * (times(params.kl.coefficient, kl.loss) + bonus.loss);
  const bool apart = args.g_policy != nullptr;
  const double g = apart ? kl_slope : slope + kl_slope;
  const double g_entropy = scaled * bonus.slope;
  const double limit = overflow_of<T>();
  const bool held = fabs(g) < limit && finite(slope) && fabs(g_entropy) < limit &&
                    fabs(scaled * term.loss + rest) < limit;
  if (!(good && held)) flag_token(args.flag, i);
  const double none = good ? 0 : NAN;
  args.g_logp[i] = static_cast<T>(g + none);
  if (args.g_entropy != nullptr) args.g_entropy[i] = static_cast<T>(g_entropy + none);
  if (apart) args.g_policy[i] = slope + none;

  // the geometric mean clips each token's own ratio
  const double clip_ratio = given ? own : u;
  const bool cut = ratio_clipped(clip_ratio, advantage, params.log_low, params.log_high);
  return {
      scaled * term.loss + rest + none,
      weight * term.loss,
      weight * kl.loss,
      static_cast<double>(cut),
      static_cast<double>(dual_clipped(clip_ratio, advantage, params)),
      static_cast<double>(selected),
      -own,
      entropy,
      covariance(advantage, logp, args.means.get()),
      1
  };
}

template <typename T>
LOGITLESS_KERNEL(kTokenThreads, 2)
token_loss_kernel(const LossArgs<T> args) {
  LOGITLESS_SHARED_ARRAY(double, warps, kTokenWarps* kAdded);
  const int thread = thread_index();
  TokenSums all = {};
  for (int j = 0; j < kLossTokens / kTokenThreads; ++j) {
    const int64_t i = block_index() * kLossTokens + j * kTokenThreads + thread;
    if (i >= args.n) break;
    const bool valid = args.weights != nullptr ? args.weights[i] != 0 : args.mask[i] != 0;
    if (!valid) {
      args.g_logp[i] = 0;
      if (args.g_entropy != nullptr) args.g_entropy[i] = 0;
      if (args.g_policy != nullptr) args.g_policy[i] = 0;
      continue;
    }
    const double weight = args.weights != nullptr ? args.weights[i] : args.weight.get();
    const TokenSums one = loss_of(args, i, weight);
    all.loss += one.loss;
    all.policy += one.policy;
    all.kl += one.kl;
    all.clipped += one.clipped;
    all.clipped_lower += one.clipped_lower;
    all.selected += one.selected;
    all.old_minus_new += one.old_minus_new;
    all.entropy += one.entropy;
    all.covariance += one.covariance;
    all.tokens += one.tokens;
  }
  const double mine[kAdded] = {
      all.loss,
      all.policy,
      all.kl,
      all.clipped,
      all.clipped_lower,
      all.selected,
      all.old_minus_new,
      all.entropy,
      all.covariance,
      all.tokens
  };
#pragma unroll
  for (int k = 0; k < kAdded; ++k) {
    const double sum = sum_of_warp(mine[k]);
    if (thread % kWarp == 0) warps[thread / kWarp * kAdded + k] = sum;
  }
  sync_block();
  if (thread >= kAdded) return;
  double sum = 0;
  for (int w = 0; w < kTokenWarps; ++w) sum += warps[w * kAdded + thread];
  args.blocks[block_index() * kLossSums + thread] = sum;
}

struct LossSumsArgs {
  int64_t blocks;
  const double* parts;
  double* sums;
};

// A block a sum. The last three numbers are the host's to look at, and nobody's here.
LOGITLESS_KERNEL(kTokenThreads, 1) loss_sums_kernel(const LossSumsArgs args) {
  LOGITLESS_SHARED_ARRAY(double, warps, kTokenWarps);
  const int64_t k = block_index();
  const int thread = thread_index();
  double sum = 0;
  if (k < kAdded) {
    for (int64_t i = thread; i < args.blocks; i += kTokenThreads)
      sum += args.parts[i * kLossSums + k];
  }
  sum = sum_of_warp(sum);
  if (thread % kWarp == 0) warps[thread / kWarp] = sum;
  sync_block();
  if (thread != 0) return;
  double all = 0;
  for (int w = 0; w < kTokenWarps; ++w) all += warps[w];
  args.sums[k] = k < kAdded ? all : k < kLossSums - 1 ? -1 : 0;
}

}  // namespace logitless::cuda
