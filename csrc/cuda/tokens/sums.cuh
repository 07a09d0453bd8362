// Exact sums over the tokens of a call, and their means: no order of threads changes a bit.
#pragma once

#include "block.cuh"

namespace logitless::cuda {

// Tokens of a block: a sum of so many fits into FixedSum.
constexpr int kSumTokens = 16 * kTokenThreads;
static_assert(kSumTokens <= FixedSum::kNumbers, "a block's sums fit into 128 bits");

LOGITLESS_DEVICE void add_parts(int64_t* digits, const ExactSum::Parts& parts) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (parts.part[i] != 0) atomic_add(digits + parts.place + i, parts.part[i]);
  }
}

LOGITLESS_DEVICE __int128 sum_of_warp(__int128 value) {
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) {
    const auto low = static_cast<uint64_t>(exchange(static_cast<int64_t>(value), bits));
    const auto high = static_cast<uint64_t>(exchange(static_cast<int64_t>(value >> 64), bits));
    value += static_cast<__int128>(static_cast<unsigned __int128>(high) << 64 | low);
  }
  return value;
}

// Few numbers are so large, or so small, that they go to the digits one by one.
LOGITLESS_DEVICE void add_number(FixedSum& sum, double value, int64_t* digits) {
  if (!sum.add(value)) add_parts(digits, ExactSum::parts_of(value));
}

template <typename T>
LOGITLESS_KERNEL(kTokenThreads, 2)
value_sums_kernel(const SumsArgs<T> args) {
  FixedSum first, second;
  int64_t count = 0;
  for (int j = 0; j < kSumTokens / kTokenThreads; ++j) {
    const int64_t i = block_index() * kSumTokens + j * kTokenThreads + thread_index();
    if (i >= args.n || args.mask[i] == 0) continue;
    const double a = args.first[i], b = args.second[i];
    if (!(finite(a) && finite(b))) {
      flag_token(args.flag, i);
      continue;
    }
    add_number(first, a, args.words);
    add_number(second, b, args.words + ExactSum::kDigits);
    ++count;
  }
  first.value = sum_of_warp(first.value);
  second.value = sum_of_warp(second.value);
  count = sum_of_warp(count);
  if (thread_index() % kWarp != 0) return;
  add_parts(args.words, ExactSum::parts_of(first.value));
  add_parts(args.words + ExactSum::kDigits, ExactSum::parts_of(second.value));
  atomic_add(args.words + 2 * ExactSum::kDigits, count);
}

// The digits of one of several sums, read as those of an ExactSum.
template <typename Words>
struct DigitsOf {
  Words& words;
  int from;
  LOGITLESS_DEVICE auto operator[](int i) -> decltype(words[i]) { return words[from + i]; }
};

// One block; a thread divides each sum.
LOGITLESS_KERNEL(kTokenThreads, 1) sum_means_kernel(const MeansArgs args) {
  LOGITLESS_SHARED_ARRAY(int64_t, digits, 2 * ExactSum::kDigits);
  const int thread = thread_index();
  if (thread < 2 * ExactSum::kDigits) digits[thread] = args.words[thread];
  sync_block();
  if (thread % kWarp != 0 || thread / kWarp >= 2) return;
  const int which = thread / kWarp;
  DigitsOf<decltype(digits)> own{digits, which * ExactSum::kDigits};
  args.means[which] = exact_mean(own, args.words[2 * ExactSum::kDigits]);
}

}  // namespace logitless::cuda
