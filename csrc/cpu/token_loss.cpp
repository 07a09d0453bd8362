#include "token_loss.h"

#include <algorithm>
#include <vector>

#include "exp.h"
#include "parallel.h"

namespace logitless::cpu {
namespace {

// Sums are taken block by block and the blocks added in order, so that threads cannot reorder them.
constexpr int64_t kBlock = 4096;
// Valid tokens taken at once: what a step needs of them stays in the nearest cache.
constexpr int kStep = 256;

struct Step {
  int64_t token[kStep];
  double log_ratio[kStep];
  double ratio[kStep];
  int count = 0;
};

inline bool finite(double x) { return std::fabs(x) < INFINITY; }

template <Surrogate kind, typename T>
Term policy_term(const TokenLossArgs<T>& args, int64_t i, const PolicyToken& token) {
  const TokenLossParams& params = args.params;
  Term term = kind == Surrogate::given ? Term{args.given_loss[i], args.given_slope[i]}
                                       : surrogate_term<kind>(token, params);
  const double factor = args.factor != nullptr ? args.factor[i] : 1;
  if (factor == 0) return {0, 0};
  const bool selected = args.selected != nullptr && args.selected[i];
  const double away =
      args.penalty_logp != nullptr ? token.logp - static_cast<double>(args.penalty_logp[i]) : 0;
  term = controlled(term, token.advantage, selected, away, params);
  return {factor * term.loss, factor * term.slope};
}

template <Surrogate kind, typename T>
bool add_token(const TokenLossArgs<T>& args, const Step& step, int j, TokenLossSums& sums) {
  const TokenLossParams& params = args.params;
  const int64_t i = step.token[j];
  const double weight = args.weights != nullptr ? args.weights[i] : args.weight;
  const double logp = args.logp[i];
  const double own_ratio =
      args.old_logp != nullptr ? logp - static_cast<double>(args.old_logp[i]) : 0;
  const double entropy = args.entropy != nullptr ? static_cast<double>(args.entropy[i]) : 0;
  const double kl_ratio = args.kl_logp != nullptr ? logp - static_cast<double>(args.kl_logp[i]) : 0;
  const PolicyToken token = {
      step.log_ratio[j], step.ratio[j], static_cast<double>(args.advantages[i]), logp
  };
  if (!(finite(logp) && finite(own_ratio) && finite(token.log_ratio) && finite(token.advantage) &&
        finite(entropy) && finite(kl_ratio))) {
    return false;
  }
  const Term policy = policy_term<kind>(args, i, token);
  const Term kl = kl_term(kl_ratio, own_ratio, params.kl);
  const Term bonus = entropy_term(entropy, params);

  const double scaled = args.grad_scale * weight;
  sums.loss += scaled * (policy.loss + params.kl.coefficient * kl.loss + bonus.loss);
  sums.policy += weight * policy.loss;
  sums.kl += weight * kl.loss;
  // the geometric mean clips each token's own ratio
  const double clip_ratio = kind == Surrogate::given ? own_ratio : token.log_ratio;
  sums.clipped += ratio_clipped(clip_ratio, token.advantage, params.log_low, params.log_high);
  sums.clipped_lower += dual_clipped(clip_ratio, token.advantage, params);
  sums.selected += args.selected != nullptr && args.selected[i];
  sums.old_minus_new -= own_ratio;
  sums.entropy += entropy;
  sums.covariance += covariance(token.advantage, logp, args.means);

  const double kl_slope = params.kl.coefficient * kl.slope;
  if (args.g_policy != nullptr) {
    args.g_policy[i] = scaled * policy.slope;
    args.g_logp[i] = static_cast<T>(scaled * kl_slope);
  } else {
    args.g_logp[i] = static_cast<T>(scaled * (policy.slope + kl_slope));
  }
  if (args.g_entropy != nullptr) args.g_entropy[i] = static_cast<T>(scaled * bonus.slope);
  return true;
}

template <Surrogate kind, typename T>
void add_step(const TokenLossArgs<T>& args, Step& step, TokenLossSums& sums) {
  for (int j = 0; j < step.count; ++j) {
    const int64_t i = step.token[j];
    if (args.log_ratio != nullptr) {
      step.log_ratio[j] = args.log_ratio[i];
    } else {
      const double old = args.old_logp != nullptr ? args.old_logp[i] : args.logp[i];
      step.log_ratio[j] = static_cast<double>(args.logp[i]) - old;
    }
  }
  if constexpr (
      kind != Surrogate::reinforce && kind != Surrogate::nothing && kind != Surrogate::dro &&
      kind != Surrogate::given
  ) {
    exp_all(step.log_ratio, step.ratio, step.count);
  }
  for (int j = 0; j < step.count; ++j) {
    if (!add_token<kind>(args, step, j, sums) && sums.bad_token < 0) {
      sums.bad_token = step.token[j];
    }
  }
  step.count = 0;
}

template <Surrogate kind, typename T>
TokenLossSums block_sums(const TokenLossArgs<T>& args, int64_t begin, int64_t end) {
  TokenLossSums sums;
  Step step;
  for (int64_t i = begin; i < end; ++i) {
    const bool valid = args.weights != nullptr ? args.weights[i] != 0 : args.mask[i];
    args.g_logp[i] = 0;
    if (args.g_entropy != nullptr) args.g_entropy[i] = 0;
    if (args.g_policy != nullptr) args.g_policy[i] = 0;
    // no branch: masks are hard to predict
    step.token[step.count] = i;
    step.count += valid;
    if (step.count == kStep) add_step<kind>(args, step, sums);
  }
  add_step<kind>(args, step, sums);
  return sums;
}

template <Surrogate kind, typename T>
TokenLossSums all_sums(const TokenLossArgs<T>& args) {
  const int64_t blocks = (args.tokens + kBlock - 1) / kBlock;
  std::vector<TokenLossSums> parts(static_cast<size_t>(blocks));
  parallel_for(blocks, args.threads, [&](int64_t block) {
    const int64_t begin = block * kBlock;
    parts[static_cast<size_t>(block)] =
        block_sums<kind>(args, begin, std::min(begin + kBlock, args.tokens));
  });
  TokenLossSums sums;
  for (const TokenLossSums& part : parts) {
    sums.loss += part.loss;
    sums.policy += part.policy;
    sums.kl += part.kl;
    sums.clipped += part.clipped;
    sums.clipped_lower += part.clipped_lower;
    sums.selected += part.selected;
    sums.old_minus_new += part.old_minus_new;
    sums.entropy += part.entropy;
    sums.covariance += part.covariance;
    if (sums.bad_token < 0) sums.bad_token = part.bad_token;
  }
  return sums;
}

}  // namespace

template <typename T>
TokenLossSums token_loss(const TokenLossArgs<T>& args) {
  switch (args.params.surrogate) {
    case Surrogate::clip: return all_sums<Surrogate::clip>(args);
    case Surrogate::reinforce: return all_sums<Surrogate::reinforce>(args);
    case Surrogate::nothing: return all_sums<Surrogate::nothing>(args);
    case Surrogate::cispo: return all_sums<Surrogate::cispo>(args);
    case Surrogate::sapo: return all_sums<Surrogate::sapo>(args);
    case Surrogate::trust_mask: return all_sums<Surrogate::trust_mask>(args);
    case Surrogate::dro: return all_sums<Surrogate::dro>(args);
    case Surrogate::vespo: return all_sums<Surrogate::vespo>(args);
    case Surrogate::given: break;
  }
  return all_sums<Surrogate::given>(args);
}

template TokenLossSums token_loss(const TokenLossArgs<float>& args);
template TokenLossSums token_loss(const TokenLossArgs<double>& args);

}  // namespace logitless::cpu
