#include "token_loss.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "../runtime/parallel.h"
#include "token_steps.h"

namespace logitless::cpu {
namespace {

// Sums are taken block by block and the blocks added in order, so that threads cannot reorder them.
constexpr int64_t kBlock = 4096;

bool finite(double x) { return std::fabs(x) < INFINITY; }

// Whether T has it as a finite number.
template <typename T>
bool fits(double x) {
  return std::fabs(x) < overflow_of<T>();
}

// A coefficient of 0 is no term, even where the estimate is infinite.
double times(double coefficient, double x) { return coefficient == 0 ? 0 : coefficient * x; }

template <typename T>
bool load(
    const TokenKernels& kernels, const TokenLossArgs<T>& args, int64_t i, int n, TokenStep& step
) {
  const TokenSource<T> source = {
      args.logp, args.old_logp, args.advantages, args.weights, args.mask, args.weight
  };
  if constexpr (sizeof(T) == sizeof(float))
    return kernels.load_f32(source, i, n, step);
  else
    return kernels.load_f64(source, i, n, step);
}

// What few losses have: a factor, a penalty or weights by sign, a KL or entropy term. Adds to the
// sums what is not in `TokenLanes`; false: some value is not finite.
template <typename T>
bool extras(const TokenLossArgs<T>& args, int64_t i, int j, TokenStep& step, TokenLossSums& sums) {
  const TokenLossParams& params = args.params;
  const double weight = step.weight[j];
  const double logp = step.logp[j];
  const double entropy = args.entropy != nullptr ? static_cast<double>(args.entropy[i]) : 0;
  const double kl_ratio = args.kl_logp != nullptr ? logp - static_cast<double>(args.kl_logp[i]) : 0;
  const double away =
      args.penalty_logp != nullptr ? logp - static_cast<double>(args.penalty_logp[i]) : 0;
  if (!(finite(entropy) && finite(kl_ratio) && finite(away))) return false;

  const double factor = args.factor != nullptr ? args.factor[i] : 1;
  const bool selected = args.selected != nullptr && args.selected[i] != 0;
  const Term policy =
      controlled({step.loss[j], step.slope[j]}, step.advantage[j], selected, away, params);
  // by select: the term may be infinite
  step.loss[j] = factor == 0 ? 0 : factor * policy.loss;
  step.slope[j] = factor == 0 ? 0 : factor * policy.slope;

  const Term kl = kl_term(kl_ratio, step.own_ratio[j], params.kl);
  const Term bonus = entropy_term(entropy, params);
  const double scaled = args.grad_scale * weight;
  sums.loss += scaled * (times(params.kl.coefficient, kl.loss) + bonus.loss);
  sums.kl += weight * kl.loss;
  sums.selected += selected;
  sums.entropy += entropy;
  if (args.g_entropy != nullptr) {
    args.g_entropy[i] = static_cast<T>(scaled * bonus.slope);
    if (!fits<T>(scaled * bonus.slope)) sums.overflow_token = i;
  }
  step.kl_slope[j] = times(scaled * params.kl.coefficient, kl.slope);
  return true;
}

// The tokens of a step have none of these, but for a control that selects.
template <typename T>
bool without_extras(const TokenLossArgs<T>& args) {
  const TokenLossParams& params = args.params;
  return args.kl_logp == nullptr && args.factor == nullptr && args.g_entropy == nullptr &&
         params.entropy_coefficient == 0 && params.positive == 1 && params.negative == 1;
}

// The next byte from j on that is not 0, or n: mostly eight at once are 0.
int next_true(const uint8_t* bytes, int j, int n) {
  for (uint64_t eight; j + 8 <= n; j += 8) {
    std::memcpy(&eight, bytes + j, sizeof(eight));
    if (eight != 0) break;
  }
  while (j < n && bytes[j] == 0) ++j;
  return j;
}

// The selected tokens pay their penalty: few, so one by one.
template <typename T>
bool penalise(
    const TokenLossArgs<T>& args, int64_t i, int n, TokenStep& step, TokenLossSums& sums
) {
  bool good = true;
  const uint8_t* const selected = args.selected + i;
  for (int j = next_true(selected, 0, n); j < n; j = next_true(selected, j + 1, n)) {
    if (step.weight[j] == 0) continue;
    const double away = step.logp[j] - static_cast<double>(args.penalty_logp[i + j]);
    const Term term =
        controlled({step.loss[j], step.slope[j]}, step.advantage[j], true, away, args.params);
    step.loss[j] = term.loss;
    step.slope[j] = term.slope;
    sums.selected += 1;
    good &= finite(away);
  }
  return good;
}

template <Surrogate kind, typename T>
void surrogate_step(
    const TokenKernels& kernels, const TokenLossArgs<T>& args, int64_t i, int n, TokenStep& step
) {
  if (args.log_ratio != nullptr) {
    for (int j = 0; j < n; ++j) {
      step.log_ratio[j] = step.weight[j] != 0 ? args.log_ratio[i + j] : 0;
    }
  }
  if constexpr (kind == Surrogate::precomputed) {
    for (int j = 0; j < n; ++j) {
      const bool valid = step.weight[j] != 0;
      step.loss[j] = valid ? args.precomputed_loss[i + j] : 0;
      step.slope[j] = valid ? args.precomputed_slope[i + j] : 0;
    }
    return;
  }
  const double* u = args.log_ratio != nullptr ? step.log_ratio : step.own_ratio;
  if constexpr (kind != Surrogate::reinforce && kind != Surrogate::none && kind != Surrogate::dro) {
    kernels.exp(u, step.ratio, n);
  }
  if constexpr (kind == Surrogate::clip) {
    kernels.clip(args.params, u, n, step);
    return;
  }
  for (int j = 0; j < n; ++j) {
    const Term term =
        surrogate_term<kind>({u[j], step.ratio[j], step.advantage[j], step.logp[j]}, args.params);
    step.loss[j] = term.loss;
    step.slope[j] = term.slope;
  }
}

// The first of the tokens whose values are not all finite.
template <typename T>
int64_t first_bad(const TokenLossArgs<T>& args, int64_t i, int n, const TokenStep& step) {
  for (int j = 0; j < n; ++j) {
    const bool known =
        finite(step.logp[j]) && finite(step.own_ratio[j]) && finite(step.advantage[j]);
    if (!known) return i + j;
    if (step.weight[j] == 0) continue;
    const bool more =
        (args.log_ratio == nullptr || finite(args.log_ratio[i + j])) &&
        (args.penalty_logp == nullptr || finite(static_cast<double>(args.penalty_logp[i + j]))) &&
        (args.entropy == nullptr || finite(static_cast<double>(args.entropy[i + j]))) &&
        (args.kl_logp == nullptr || finite(static_cast<double>(args.kl_logp[i + j])));
    if (!more) return i + j;
  }
  return i;
}

template <Surrogate kind, typename T>
void add_step(
    const TokenKernels& kernels,
    const TokenLossArgs<T>& args,
    int64_t i,
    int n,
    TokenStep& step,
    TokenLanes& lanes,
    TokenLossSums& sums
) {
  bool good = load(kernels, args, i, n, step);
  surrogate_step<kind>(kernels, args, i, n, step);
  const bool plain = without_extras(args);
  if (!plain) {
    for (int j = 0; j < n; ++j) {
      if (step.weight[j] != 0) {
        good &= extras(args, i + j, j, step, sums);
      } else {
        step.kl_slope[j] = 0;
        if (args.g_entropy != nullptr) args.g_entropy[i + j] = 0;
      }
    }
  } else if (args.selected != nullptr && args.params.control == Control::penalise_selected) {
    good &= penalise(args, i, n, step, sums);
  } else if (args.selected != nullptr) {
    const bool keep = args.params.control == Control::keep_selected;
    sums.selected += kernels.select(keep, args.selected + i, n, step);
  }
  if (plain && args.entropy != nullptr) {
    for (int j = 0; j < n; ++j) {
      const double entropy = static_cast<double>(args.entropy[i + j]);
      sums.entropy += step.weight[j] != 0 ? entropy : 0;
    }
    good &= finite(sums.entropy);
  }
  if (args.log_ratio != nullptr) {
    for (int j = 0; j < n; ++j) good &= finite(step.log_ratio[j]);
  }
  if (!good) {
    if (sums.bad_token < 0) sums.bad_token = first_bad(args, i, n, step);
    return;
  }
  const double scale = args.grad_scale;
  bool written = true;
  if (args.g_policy != nullptr) {
    written = kernels.write_f64(scale, false, n, step, args.g_policy + i);
    for (int j = 0; j < n; ++j) {
      args.g_logp[i + j] = static_cast<T>(plain ? 0 : step.kl_slope[j]);
      written &= plain || fits<T>(step.kl_slope[j]);
    }
  } else if constexpr (sizeof(T) == sizeof(float)) {
    written = kernels.write_f32(scale, !plain, n, step, args.g_logp + i);
  } else {
    written = kernels.write_f64(scale, !plain, n, step, args.g_logp + i);
  }
  if (!written) sums.overflow_token = i;
  // the lanes take whole groups
  for (int j = n; j % kLanes != 0; ++j) {
    step.weight[j] = step.logp[j] = step.advantage[j] = step.own_ratio[j] = 0;
    step.log_ratio[j] = step.loss[j] = 0;
  }
  // the geometric mean clips each token's own ratio
  const bool own = kind == Surrogate::precomputed || args.log_ratio == nullptr;
  const double* clip_ratio = own ? step.own_ratio : step.log_ratio;
  kernels.add(args.params, args.means, clip_ratio, n, step, lanes);
}

double total(const double (&lanes)[kLanes]) {
  double sum = 0;
  for (double lane : lanes) sum += lane;
  return sum;
}

template <Surrogate kind, typename T>
TokenLossSums block_sums(
    const TokenKernels& kernels, const TokenLossArgs<T>& args, int64_t begin, int64_t end
) {
  TokenLossSums sums;
  TokenLanes lanes;
  TokenStep step;
  if (args.weights == nullptr)
    sums.tokens = kernels.count(args.mask + begin, static_cast<int>(end - begin));
  else
    for (int64_t i = begin; i < end; ++i) sums.tokens += args.weights[i] != 0;
  for (int64_t i = begin; i < end; i += kStep) {
    const int n = static_cast<int>(std::min<int64_t>(kStep, end - i));
    add_step<kind>(kernels, args, i, n, step, lanes, sums);
  }
  sums.policy = total(lanes.policy);
  sums.loss += args.grad_scale * sums.policy;
  sums.clipped = total(lanes.clipped);
  sums.clipped_lower = total(lanes.clipped_lower);
  sums.old_minus_new = total(lanes.old_minus_new);
  sums.covariance = total(lanes.covariance);
  return sums;
}

// Whether some result is not finite in the dtype that it is given in. The means of metrics count,
// the KL estimate does not: where its coefficient is 0 it is only looked at.
template <typename T>
bool overflows(const TokenLossSums& sums) {
  const double means = sums.policy + sums.old_minus_new + sums.covariance + sums.entropy;
  return sums.overflow_token >= 0 || !fits<T>(sums.loss) || !finite(means);
}

// Names the token, by going through them one by one.
template <Surrogate kind, typename T>
void find_overflow(const TokenKernels& kernels, const TokenLossArgs<T>& args, TokenLossSums& sums) {
  double largest = -1;
  for (int64_t i = 0; i < args.tokens; ++i) {
    const TokenLossSums alone = block_sums<kind>(kernels, args, i, i + 1);
    const bool found = overflows<T>(alone);
    if (!found && !(std::fabs(alone.loss) > largest)) continue;
    largest = std::fabs(alone.loss);
    sums.overflow_token = i;
    sums.overflow_loss = alone.loss;
    if (found) return;
  }
}

template <Surrogate kind, typename T>
TokenLossSums all_sums(const TokenLossArgs<T>& args) {
  const int64_t blocks = (args.tokens + kBlock - 1) / kBlock;
  std::vector<TokenLossSums> parts(static_cast<size_t>(blocks));
  const TokenKernels& kernels = token_kernels();
  parallel_for(blocks, args.threads, [&](int64_t block) {
    const int64_t begin = block * kBlock;
    parts[static_cast<size_t>(block)] =
        block_sums<kind>(kernels, args, begin, std::min(begin + kBlock, args.tokens));
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
    sums.tokens += part.tokens;
    if (sums.bad_token < 0) sums.bad_token = part.bad_token;
    if (sums.overflow_token < 0) sums.overflow_token = part.overflow_token;
  }
  if (sums.bad_token < 0 && overflows<T>(sums)) find_overflow<kind>(kernels, args, sums);
  return sums;
}

}  // namespace

template <typename T>
TokenLossSums token_loss(const TokenLossArgs<T>& args) {
  return with_surrogate(args.params.surrogate, [&](auto kind) {
    return all_sums<decltype(kind)::value>(args);
  });
}

template TokenLossSums token_loss(const TokenLossArgs<float>& args);
template TokenLossSums token_loss(const TokenLossArgs<double>& args);

}  // namespace logitless::cpu
