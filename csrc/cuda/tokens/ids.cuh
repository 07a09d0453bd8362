// Token ids of a call: whether each is its own, and those that are some in rising order.
#pragma once

#include "block.cuh"

namespace logitless::cuda {

// SplitMix64's last step: ids that follow each other, or lie a power of two apart, spread.
LOGITLESS_DEVICE int64_t slot_of(int64_t id, int64_t slots) {
  auto z = static_cast<uint64_t>(id);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  z ^= z >> 31;
  return static_cast<int64_t>(
      static_cast<unsigned __int128>(z) * static_cast<uint64_t>(slots) >> 64
  );
}

// A slot of the table belongs to one id, and has 1 and the first token of that id that has come. Of
// two tokens that meet there the later one is flagged: whatever their order, the second of an id is
// among those that are.
LOGITLESS_KERNEL(kTokenThreads, 4) unique_ids_kernel(const UniqueArgs args) {
  const int64_t i = token_index();
  if (i >= args.n || args.mask[i] == 0) return;
  const int64_t id = args.ids[i];
  if (id < 0) {
    flag_token(args.flag, i);
    return;
  }
  const auto own = static_cast<int32_t>(i + 1);
  int64_t slot = slot_of(id, args.slots);
  // a table that held anything before ends the search, and reaches no other memory
  for (int64_t step = 0; step < args.slots; ++step) {
    const int32_t first = atomic_claim(args.table + slot, own);
    if (first == 0) return;
    if (first > 0 && first <= args.n && args.ids[first - 1] == id) {
      const int32_t before = atomic_lower(args.table + slot, own);
      flag_token(args.flag, (before > own ? before : own) - 1);
      return;
    }
    slot = slot + 1 < args.slots ? slot + 1 : 0;
  }
}

LOGITLESS_KERNEL(kTokenThreads, 4) flag_tokens_kernel(const FlagArgs args) {
  const int64_t i = token_index();
  if (i >= args.n || args.good[i] != 0) return;
  flag_token(args.flag, args.places != nullptr ? args.places[i] : i);
}

// How many of the sorted ids [low, high) are below `id`, or not above it.
LOGITLESS_DEVICE int64_t
ids_below(const int64_t* sorted, int64_t low, int64_t high, int64_t id, bool or_equal) {
  const int64_t begin = low;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (sorted[middle] < id || (or_equal && sorted[middle] == id))
      low = middle + 1;
    else
      high = middle;
  }
  return low - begin;
}

LOGITLESS_KERNEL(kTokenThreads, 4) members_kernel(const MembersArgs args) {
  const int64_t i = token_index();
  if (i >= args.n) return;
  const int64_t id = args.ids[i];
  const int64_t place = ids_below(args.sorted, 0, args.chosen, id, false);
  args.out[i] = static_cast<uint8_t>(place < args.chosen && args.sorted[place] == id);
}

// ---- in rising order: those that are gathered, sorted by blocks, and their runs merged

constexpr int kGatherTokens = 16 * kTokenThreads;

// How many ids were gathered, whatever the memory says.
LOGITLESS_DEVICE int64_t gathered(const int64_t* found, int64_t n) {
  return *found < 0 ? 0 : *found < n ? *found : n;
}

// The ids that are not negative, in any order.
LOGITLESS_KERNEL(kTokenThreads, 4) gather_ids_kernel(const SortArgs args) {
  LOGITLESS_SHARED_ARRAY(int32_t, total, 1);
  LOGITLESS_SHARED_ARRAY(int64_t, start, 1);
  const int thread = thread_index();
  if (thread == 0) total[0] = 0;
  sync_block();
  const int64_t first = block_index() * kGatherTokens + thread;
  int32_t mine = 0;
  for (int j = 0; j < kGatherTokens / kTokenThreads; ++j) {
    const int64_t i = first + j * kTokenThreads;
    mine += i < args.n && args.ids[i] >= 0;
  }
  const int32_t before = atomic_add(total[0], mine);
  sync_block();
  if (thread == 0) start[0] = atomic_take(args.found, static_cast<int32_t>(total[0]));
  sync_block();
  int64_t place = start[0] + before;
  for (int j = 0; j < kGatherTokens / kTokenThreads; ++j) {
    const int64_t i = first + j * kTokenThreads;
    if (i >= args.n || args.ids[i] < 0) continue;
    if (place >= 0 && place < args.n) args.room[place++] = args.ids[i];
  }
}

LOGITLESS_KERNEL(kTokenThreads, 2) sort_run_kernel(const SortArgs args) {
  LOGITLESS_SHARED_ARRAY(int64_t, run, kSortRun);
  const int64_t begin = block_index() * kSortRun, left = gathered(args.found, args.n) - begin;
  if (left <= 0) return;
  const int thread = thread_index(), count = static_cast<int>(left < kSortRun ? left : kSortRun);
  int size = 2;
  while (size < count) size *= 2;
  for (int i = thread; i < size; i += kTokenThreads)
    run[i] = i < count ? args.room[begin + i] : INT64_MAX;
  sync_block();
  for (int part = 2; part <= size; part *= 2) {
    for (int step = part / 2; step > 0; step /= 2) {
      for (int i = thread; i < size / 2; i += kTokenThreads) {
        const int low = 2 * i - i % step, high = low + step;
        const int64_t a = run[low], b = run[high];
        if ((a > b) == ((low & part) == 0)) {
          run[low] = b;
          run[high] = a;
        }
      }
      sync_block();
    }
  }
  for (int i = thread; i < count; i += kTokenThreads) args.room[begin + i] = run[i];
}

// An id's place among those of kSortWays runs of `width`: how many of each are before it. The last
// merge writes to `out`, behind a -1 for each token that is none.
LOGITLESS_KERNEL(kTokenThreads, 4) merge_runs_kernel(const MergeArgs args) {
  const int64_t i = token_index(), n = args.n, found = gathered(args.found, n);
  if (i >= n) return;
  if (args.last && i < n - found) args.to[i] = -1;
  if (i >= found) return;
  const int64_t id = args.from[i], own = i / args.width * args.width;
  const int64_t group = i / (args.width * kSortWays) * args.width * kSortWays;
  int64_t place = group + i - own;
  for (int way = 0; way < kSortWays; ++way) {
    const int64_t begin = group + way * args.width, end = begin + args.width;
    if (begin >= found) break;
    if (begin != own)
      place += ids_below(args.from, begin, end < found ? end : found, id, begin < own);
  }
  args.to[(args.last ? n - found : 0) + place] = id;
}

}  // namespace logitless::cuda
