// Which k of the candidates have the largest keys, by a histogram of one digit after the other.
// Each launch finds where the one before it has led to, so that nobody on the host needs to know.
#pragma once

#include "block.cuh"

namespace logitless::cuda {

static_assert(kRadixBins == kTokenThreads, "a thread has a bin");
constexpr int kRadixTokens = 16 * kTokenThreads;

LOGITLESS_DEVICE uint64_t digit_bits(int digit, int level) {
  return static_cast<uint64_t>(digit) << (64 - kRadixBits * (level % (kRadixLevels / 2) + 1));
}

// After the digit of `level`, of which `bins` counts the keys: every thread of the block calls it,
// and all get the same.
LOGITLESS_DEVICE RadixState
after_level(const RadixState before, const int64_t* bins, int level, bool exact) {
  LOGITLESS_SHARED_ARRAY(int64_t, warps, kTokenWarps);
  LOGITLESS_SHARED_ARRAY(int64_t, found, 3);
  if (before.done != 0) return before;
  // the topmost bin comes first; `above` is the number of keys in the bins before this thread's
  const int thread = thread_index(), digit = kRadixBins - 1 - thread;
  const int64_t mine = bins[digit];
  int64_t total = mine, above = 0;
#pragma unroll
  for (int bits = 1; bits < kWarp; bits *= 2) {
    const int64_t other = exchange(total, bits);
    above += (thread & bits) != 0 ? other : 0;
    total += other;
  }
  if (thread % kWarp == 0) warps[thread / kWarp] = total;
  if (thread < 3) found[thread] = 0;
  sync_block();
  total = 0;
  for (int i = 0; i < kTokenWarps; ++i) {
    const int64_t warp = warps[i];
    above += i < thread / kWarp ? warp : 0;
    total += warp;
  }
  if (above < before.needed && before.needed <= above + mine) {
    found[0] = digit;
    found[1] = above;
    found[2] = mine;
  }
  sync_block();
  RadixState state = before;
  if (!exact && level == 0 && total <= before.needed) {
    // no more than k candidates: all keys are at least 0
    state.done = 1;
    return state;
  }
  const uint64_t bits = digit_bits(static_cast<int>(static_cast<int64_t>(found[0])), level);
  if (level < kRadixLevels / 2)
    state.prefix.score |= bits;
  else
    state.prefix.inverted_id |= bits;
  state.needed -= found[1];
  state.done = static_cast<int64_t>(!exact && state.needed == found[2]);
  return state;
}

LOGITLESS_DEVICE RadixState state_at(const RadixArgs& args) {
  if (args.level == 0) return {{0, 0}, args.k.get(), 0};
  const int before = args.level - 1;
  const int64_t* bins = args.bins + int64_t{kRadixBins} * before;
  return after_level(args.states[before], bins, before, args.exact);
}

LOGITLESS_KERNEL(kTokenThreads, 4) radix_level_kernel(const RadixArgs args) {
  LOGITLESS_SHARED_ARRAY(int32_t, counts, kRadixBins);
  const RadixState state = state_at(args);
  const int thread = thread_index();
  if (block_index() == 0 && thread == 0) args.states[args.level] = state;
  if (state.done != 0) return;
  counts[thread] = 0;
  sync_block();
  for (int j = 0; j < kRadixTokens / kTokenThreads; ++j) {
    const int64_t i = block_index() * kRadixTokens + j * kTokenThreads + thread;
    if (i >= args.n || args.ids[i] < 0) continue;
    const SelectionKey key = selection_key(args.scores[i], args.ids[i]);
    if (radix_matches(key, state.prefix, args.level))
      atomic_add(counts[radix_digit(key, args.level)], 1);
  }
  sync_block();
  const int32_t count = counts[thread];
  if (count != 0) atomic_add(args.bins + int64_t{kRadixBins} * args.level + thread, int64_t{count});
}

LOGITLESS_KERNEL(kTokenThreads, 4) radix_take_kernel(const TakeArgs args) {
  const RadixArgs& search = args.search;
  const RadixState state = state_at(search);
  const int64_t i = token_index();
  if (i >= search.n) return;
  const int64_t id = search.ids[i];
  const SelectionKey key = selection_key(search.scores[i], id);
  const SelectionKey& least = state.prefix;
  const bool reaches =
      key.score > least.score || (key.score == least.score && key.inverted_id >= least.inverted_id);
  const bool taken = id >= 0 && reaches;
  if (args.taken != nullptr) args.taken[i] = static_cast<uint8_t>(taken);
  if (args.taken_ids != nullptr) args.taken_ids[i] = taken ? id : -1;
  // all digits are known, and the last bin has more keys than are needed
  if (state.done == 0 && id >= 0 && key.score == least.score &&
      key.inverted_id == least.inverted_id)
    flag_token(args.flag, i);
}

}  // namespace logitless::cuda
