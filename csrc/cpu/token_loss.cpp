#include "token_loss.h"

#include <algorithm>
#include <vector>

#include "parallel.h"

namespace logitless::cpu {
namespace {

// Sums are taken block by block and the blocks added in order, so that threads cannot reorder them.
constexpr int64_t kBlock = 4096;

template <typename T>
bool add_token(const TokenLossArgs<T>& args, int64_t i, TokenLossSums& sums) {
  const TokenLossParams& params = args.params;
  const double weight = args.weights[i];
  const double logp = args.logp[i];
  const double advantage = args.advantages[i];
  const double log_ratio = logp - static_cast<double>(args.old_logp[i]);
  const double entropy = args.entropy != nullptr ? static_cast<double>(args.entropy[i]) : 0.0;
  const double kl_ratio =
      args.ref_logp != nullptr ? logp - static_cast<double>(args.ref_logp[i]) : 0.0;
  if (!(std::isfinite(log_ratio) && std::isfinite(advantage) && std::isfinite(entropy) &&
        std::isfinite(kl_ratio))) {
    return false;
  }
  const bool selected = args.selected != nullptr && args.selected[i];
  const Term policy =
      controlled(surrogate(log_ratio, advantage, params), log_ratio, selected, params);
  const Term kl = kl_term(kl_ratio, params.kl);

  const double total =
      policy.loss + params.kl_coefficient * kl.loss - params.entropy_coefficient * entropy;
  sums.loss += args.grad_scale * weight * total;
  sums.policy += weight * policy.loss;
  sums.kl += weight * kl.loss;
  sums.clipped += ratio_clipped(log_ratio, advantage, params.log_low, params.log_high);
  sums.clipped_lower += dual_clipped(log_ratio, advantage, params);
  sums.selected += selected;
  sums.old_minus_new -= log_ratio;
  sums.entropy += entropy;
  sums.covariance += covariance(advantage, logp, args.means);

  const double slope = policy.slope + params.kl_coefficient * kl.slope;
  args.g_logp[i] = static_cast<T>(args.grad_scale * weight * slope);
  if (args.g_entropy != nullptr) {
    args.g_entropy[i] = static_cast<T>(-args.grad_scale * weight * params.entropy_coefficient);
  }
  return true;
}

template <typename T>
TokenLossSums block_sums(const TokenLossArgs<T>& args, int64_t begin, int64_t end) {
  TokenLossSums sums;
  for (int64_t i = begin; i < end; ++i) {
    if (args.weights[i] != 0) {
      if (!add_token(args, i, sums) && sums.bad_token < 0) sums.bad_token = i;
    } else {
      args.g_logp[i] = 0;
      if (args.g_entropy != nullptr) args.g_entropy[i] = 0;
    }
  }
  return sums;
}

}  // namespace

template <typename T>
TokenLossSums token_loss(const TokenLossArgs<T>& args) {
  const int64_t blocks = (args.tokens + kBlock - 1) / kBlock;
  std::vector<TokenLossSums> parts(static_cast<size_t>(blocks));
  parallel_for(blocks, args.threads, [&](int64_t block) {
    const int64_t begin = block * kBlock;
    parts[static_cast<size_t>(block)] =
        block_sums(args, begin, std::min(begin + kBlock, args.tokens));
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

template TokenLossSums token_loss(const TokenLossArgs<float>& args);
template TokenLossSums token_loss(const TokenLossArgs<double>& args);

}  // namespace logitless::cpu
