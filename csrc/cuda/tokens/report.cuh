// The covariance of log-prob and advantage: its exact sums, and some of its quantiles at once.
#pragma once

#include "radix.cuh"
#include "sums.cuh"

namespace logitless::cuda {

// The three sums of a covariance: squares of both, and their products.
constexpr int kSpreads = 3;

template <typename T>
LOGITLESS_KERNEL(kTokenThreads, 2)
covariance_sums_kernel(const CovarianceArgs<T> args) {
  FixedSum sums[kSpreads];
  int64_t above = 0, count = 0;
  const TokenMeans means = args.means.get();
  for (int j = 0; j < kSumTokens / kTokenThreads; ++j) {
    const int64_t i = block_index() * kSumTokens + j * kTokenThreads + thread_index();
    if (i >= args.n) continue;
    if (args.mask[i] == 0) {
      args.scores[i] = 0;
      continue;
    }
    const double a = args.advantages[i] - means.advantage, lp = args.logp[i] - means.logp;
    const double terms[kSpreads] = {a * a, lp * lp, a * lp};
    args.scores[i] = ordered_bits(terms[2]);
    if (!(finite(terms[0]) && finite(terms[1]) && finite(terms[2]))) {
      flag_token(args.flag, i);
      continue;
    }
#pragma unroll
    for (int k = 0; k < kSpreads; ++k)
      add_number(sums[k], terms[k], args.words + k * ExactSum::kDigits);
    above += terms[2] > args.above;
    ++count;
  }
#pragma unroll
  for (int k = 0; k < kSpreads; ++k) sums[k].value = sum_of_warp(sums[k].value);
  above = sum_of_warp(above);
  count = sum_of_warp(count);
  if (thread_index() % kWarp != 0) return;
#pragma unroll
  for (int k = 0; k < kSpreads; ++k)
    add_parts(args.words + k * ExactSum::kDigits, ExactSum::parts_of(sums[k].value));
  atomic_add(args.words + kSpreads * ExactSum::kDigits, above);
  atomic_add(args.words + kSpreads * ExactSum::kDigits + 1, count);
}

// One block; a warp divides each sum.
LOGITLESS_KERNEL(kTokenThreads, 1) covariance_means_kernel(const CovarianceMeansArgs args) {
  LOGITLESS_SHARED_ARRAY(int64_t, digits, kSpreads* ExactSum::kDigits);
  LOGITLESS_SHARED_ARRAY(double, means, kSpreads);
  const int thread = thread_index(), which = thread / kWarp;
  const int64_t above = args.words[kSpreads * ExactSum::kDigits];
  const int64_t count = args.words[kSpreads * ExactSum::kDigits + 1];
  if (thread < kSpreads * ExactSum::kDigits) digits[thread] = args.words[thread];
  sync_block();
  if (thread % kWarp == 0 && which < kSpreads) {
    DigitsOf<decltype(digits)> own{digits, which * ExactSum::kDigits};
    means[which] = exact_mean(own, count);
  }
  sync_block();
  if (thread != 0) return;
  const double mean = means[2];
  const double spread = sqrt(static_cast<double>(means[0])) * sqrt(static_cast<double>(means[1]));
  args.out[0] = mean;
  args.out[1] = spread > 0 ? mean / spread : 0;
  args.out[2] = count > 0 ? static_cast<double>(above) / static_cast<double>(count) : 0;
}

// Where the searches for the quantiles are before the digit of a level, in all threads of a block.
struct QuantileStates {
  RadixState of[kQuantiles];

  // The first search that looks at the same keys: it counts for both.
  LOGITLESS_DEVICE int counter(int q) const {
    for (int p = 0; p < q; ++p)
      if (of[p].prefix.score == of[q].prefix.score) return p;
    return q;
  }
};

LOGITLESS_DEVICE QuantileStates quantiles_at(const QuantileArgs& args) {
  QuantileStates states;
  const int before = args.level - 1;
#pragma unroll
  for (int q = 0; q < kQuantiles; ++q) {
    if (args.level == 0) {
      const int64_t count = *args.count;
      const auto below = static_cast<int64_t>(ceil(args.share[q] * static_cast<double>(count)));
      states.of[q] = {{0, 0}, count - below + 1, 0};
    } else {
      states.of[q] = args.states[before * kQuantiles + q];
    }
  }
  if (args.level == 0) return states;
  QuantileStates next;
#pragma unroll
  for (int q = 0; q < kQuantiles; ++q) {
    const int64_t* bins =
        args.bins + int64_t{kRadixBins} * (before * kQuantiles + states.counter(q));
    next.of[q] = after_level(states.of[q], bins, before, true);
    // nobody reads what the search before has left
    sync_block();
  }
  return next;
}

// The level after the last digit writes the numbers.
LOGITLESS_KERNEL(kTokenThreads, 2) quantile_level_kernel(const QuantileArgs args) {
  LOGITLESS_SHARED_ARRAY(int32_t, counts, kQuantiles* kRadixBins);
  const QuantileStates states = quantiles_at(args);
  const int thread = thread_index();
  if (args.level == kQuantileLevels) {
#pragma unroll
    for (int q = 0; q < kQuantiles; ++q)
      if (thread == q) args.out[q] = from_ordered_bits(states.of[q].prefix.score);
    return;
  }
  bool counts_itself[kQuantiles];
#pragma unroll
  for (int q = 0; q < kQuantiles; ++q) {
    counts_itself[q] = states.counter(q) == q;
    counts[q * kRadixBins + thread] = 0;
    if (block_index() == 0 && thread == 0) args.states[args.level * kQuantiles + q] = states.of[q];
  }
  sync_block();
  for (int j = 0; j < kRadixTokens / kTokenThreads; ++j) {
    const int64_t i = block_index() * kRadixTokens + j * kTokenThreads + thread;
    if (i >= args.n || args.scores[i] == 0) continue;
    const SelectionKey key = {args.scores[i], 0};
    const int digit = radix_digit(key, args.level);
#pragma unroll
    for (int q = 0; q < kQuantiles; ++q) {
      if (counts_itself[q] && radix_matches(key, states.of[q].prefix, args.level))
        atomic_add(counts[q * kRadixBins + digit], 1);
    }
  }
  sync_block();
#pragma unroll
  for (int q = 0; q < kQuantiles; ++q) {
    const int32_t count = counts[q * kRadixBins + thread];
    if (count == 0) continue;
    const int64_t bin = int64_t{kRadixBins} * (args.level * kQuantiles + q) + thread;
    atomic_add(args.bins + bin, int64_t{count});
  }
}

}  // namespace logitless::cuda
