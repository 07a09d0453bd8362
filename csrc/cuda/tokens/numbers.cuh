// A call's few numbers, which the host does not know: one small kernel in place of several.
#pragma once

#include "block.cuh"

namespace logitless::cuda {

static_assert(kMostNumbers <= kWarp, "a thread has a number");

LOGITLESS_KERNEL(kWarp, 1) collect_numbers_kernel(const NumbersArgs args) {
  const int thread = thread_index();
  if (thread >= args.n) return;
  const NumberOf& from = args.from[thread];
  args.out[thread] = from.whole != nullptr ? static_cast<double>(*from.whole) : from.real.get();
}

LOGITLESS_KERNEL(kWarp, 1) count_shares_kernel(const CountArgs args) {
  if (thread_index() != 0) return;
  const auto count = static_cast<double>(*args.count);
  if (args.inverse != nullptr) *args.inverse = 1 / (count > 1 ? count : 1);
  if (args.part != nullptr) {
    const auto part = static_cast<int64_t>(args.fraction * count);
    *args.part = part > 1 ? part : 1;
  }
}

LOGITLESS_KERNEL(kWarp, 1) loss_outputs_kernel(const OutputsArgs args) {
  const int thread = thread_index();
  if (thread == 0) {
    if (args.wide_loss != nullptr)
      *args.wide_loss = args.sums[0];
    else
      *args.loss = static_cast<float>(args.sums[0]);
  }
  if (thread >= args.n) return;
  const MetricOf metric = args.metric[thread];
  double total = 1;
  if (metric.per_token != 0)
    total = args.call ? args.sums[args.tokens] : static_cast<double>(args.total.get());
  args.metrics[thread] = static_cast<float>(args.sums[metric.sum] / (total > 1 ? total : 1));
}

}  // namespace logitless::cuda
