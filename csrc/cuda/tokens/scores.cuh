// The order in which tokens may be selected, as keys.
#pragma once

#include "../../core/exp.h"
#include "../../core/philox.h"
#include "block.cuh"

namespace logitless::cuda {

template <typename T>
LOGITLESS_KERNEL(kTokenThreads, 4)
covariance_scores_kernel(const ScoresArgs<T> args) {
  const int64_t i = token_index();
  if (i >= args.n) return;
  bool inside = args.mask[i] != 0;
  const double advantage = args.advantages[i], logp = args.logp[i];
  const double value = covariance(advantage, logp, args.means.get());
  if (inside && args.old_logp != nullptr) {
    const double old = args.old_logp[i];
    if (!finite(old)) flag_token(args.flag, i);
    inside = !ratio_clipped(logp - old, advantage, args.log_low, args.log_high);
  }
  inside = inside && value > args.low && value < args.high;
  args.scores[i] = inside ? ordered_bits(value) : 0;
  args.out_ids[i] = inside ? args.ids[i] : -1;
}

LOGITLESS_KERNEL(kTokenThreads, 4) ordered_scores_kernel(const OrderedArgs args) {
  const int64_t i = token_index();
  if (i >= args.n) return;
  const bool inside = args.which[i] != 0;
  args.scores[i] = inside ? ordered_bits(args.values[i]) : 0;
  args.out_ids[i] = inside ? args.ids[i] : -1;
}

LOGITLESS_KERNEL(kTokenThreads, 4) random_scores_kernel(const RandomArgs args) {
  const int64_t i = token_index();
  if (i >= args.n) return;
  const int64_t id = args.ids[i];
  args.scores[i] = id < 0 ? 0 : random_key(args.seed, args.step, static_cast<uint64_t>(id));
}

LOGITLESS_KERNEL(kTokenThreads, 4) exp_kernel(const ExpArgs args) {
  const int64_t i = token_index();
  if (i < args.n) args.out[i] = exp_of(args.x[i]);
}

}  // namespace logitless::cuda
