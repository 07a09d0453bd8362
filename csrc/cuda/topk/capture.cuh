// The largest logits of a row a block, out of a tile whose partial statistics are known: a split
// whose maximum cannot be among them is not read again.
#pragma once

#include "../rows/kernels.h"
#include "../rows/transform.cuh"
#include "keys.cuh"

namespace logitless::cuda {

struct CaptureArgs {
  Rows rows;  // the bias of the transform starts at the tile's first column
  TensorView logits;
  int64_t start;
  int64_t columns;
  int64_t splits;  // of a row
  int64_t split_columns;
  const Partial* partials;  // [n, splits]; null: every split is read, of active rows alone
  const RowState* state;
  TopK topk;
  bool first;
};

// Keys of a row so far, the same count and floor in all threads; only keys above the floor can be
// among the kept.
template <typename Keys>
struct Collected {
  Keys& keys;
  int count;
  Key floor;

  // Leaves the `keep` first, sorted.
  LOGITLESS_DEVICE void prune(int keep) {
    sort_keys(keys, count);
    count = keep;
    floor = keys[keep - 1];
  }
};

// The sum over the block of numbers of its threads, and over those before this one. Two sets of
// `totals` take turns, so that one barrier is enough.
template <typename Totals>
LOGITLESS_DEVICE int sum_of_block(Totals& totals, int turn, int mine, int& before) {
  const int thread = static_cast<int>(threadIdx.x);
  int total = mine;
  before = 0;
#pragma unroll
  for (int bits = 1; bits < kWarp; bits *= 2) {
    const int other = exchange(total, bits);
    before += (thread & bits) != 0 ? other : 0;
    total += other;
  }
  if (thread % kWarp == 0) totals[turn * kTopKWarps + thread / kWarp] = total;
  sync_block();
  total = 0;
#pragma unroll
  for (int w = 0; w < kTopKWarps; ++w) {
    const int warp = totals[turn * kTopKWarps + w];
    before += w < thread / kWarp ? warp : 0;
    total += warp;
  }
  return total;
}

template <typename S, bool kTransformed>
LOGITLESS_KERNEL(kTopKThreads, 6) capture_kernel(const CaptureArgs args) {
  constexpr int kCount = kPerVector<S>;
  constexpr int kStep = kTopKThreads * kCount;
  static_assert(kMostCapacity / 2 + kStep <= kRoom, "what is kept and a step have room");
  LOGITLESS_SHARED_ARRAY(Key, keys, kRoom);
  LOGITLESS_SHARED_ARRAY(int, totals, 2 * kTopKWarps);
  const int64_t row = block_index();
  const TopK& topk = args.topk;
  if (row >= args.rows.n) return;
  const bool active = args.rows.active(row), all = args.partials == nullptr;
  if (all && !active) return;
  const int thread = static_cast<int>(threadIdx.x), keep = static_cast<int>(topk.keep());
  const double limit = args.state[row].moments.m - topk.margin / args.rows.scale_of(row);
  const double before = args.first ? -INFINITY : topk.threshold[row];
  Collected<decltype(keys)> found = {keys, 0, floor_of(limit)};
  if (floor_of(before) > found.floor) found.floor = floor_of(before);
  const int held = args.first || !active ? 0 : count_of(topk, row, static_cast<int>(topk.capacity));
  const Partial* partials = args.partials + row * args.splits;
  const S* source = static_cast<const S*>(args.logits.data) + row_offset(args.logits, row);
  const TransformMath transform(args.rows.transform);
  bool read = false;
  int turn = 0;

  for (int64_t split = 0; split < args.splits && active; ++split) {
    if (!all && ordered(partials[split].m) <= static_cast<uint32_t>(found.floor >> 32)) continue;
    if (!read) {
      for (int i = thread; i < held; i += kTopKThreads) {
        keys[i] = key_at(topk, row, i);
      }
      found.count = held;
      read = true;
    }
    const int64_t end = (split + 1) * args.split_columns;
    const int64_t stop = end < args.columns ? end : args.columns;
    for (int64_t c = split * args.split_columns; c < stop; c += kStep) {
      const int64_t column = c + thread * kCount, rest = stop - column;
      const int left = static_cast<int>(rest < 0 ? 0 : rest < kCount ? rest : kCount);
      const S* mine = source + column;
      const Words4 raw =
          left == kCount && aligned16(mine) ? load16(mine) : load_elements(mine, left, 1);
      float y[kCount];
      unpack<S>(raw, y);
      if (kTransformed) transform.apply(y, column, left, 1);
      const int32_t id = static_cast<int32_t>(args.start + column);
      // again where there was no room: then fewer are above the floor
      for (bool again = true; again;) {
        int above = 0;
#pragma unroll
        for (int h = 0; h < kCount; ++h)
          above += static_cast<int>(h < left && key_of(y[h], id + h) > found.floor);
        int place = 0;
        const int all = sum_of_block(totals, turn, above, place);
        turn = 1 - turn;
        again = found.count + all > kRoom;
        if (again) {
          found.prune(keep);
        } else if (all > 0) {
          place += found.count;
#pragma unroll
          for (int h = 0; h < kCount; ++h) {
            if (h < left && key_of(y[h], id + h) > found.floor)
              keys[place++] = key_of(y[h], id + h);
          }
          found.count += all;
        }
      }
    }
  }

  if (read && found.count > topk.capacity) found.prune(keep);
  sync_block();
  for (int i = thread; read && i < found.count; i += kTopKThreads) {
    write_entry(topk, row, i, keys[i]);
  }
  if (thread == 0 && (read || args.first)) {
    topk.count[row] = found.count;
    topk.threshold[row] = y_of(found.floor);
  }
}

}  // namespace logitless::cuda
