// What the kept entries of a row are good for: sorted, measured, and made a sparse gradient.
#pragma once

#include "keys.cuh"

namespace logitless::cuda {

// Rows of a block that measures, a thread each: few, so that a call has enough blocks.
constexpr int kMeasureThreads = 32;

struct EntriesArgs {
  Rows rows;
  const RowState* state;
  TopK topk;
};

// A row a block.
LOGITLESS_KERNEL(kTopKThreads, 8) finalize_topk_kernel(const EntriesArgs args) {
  LOGITLESS_SHARED_ARRAY(Key, keys, kRoom);
  const int64_t row = block_index();
  const TopK& topk = args.topk;
  if (row >= args.rows.n || !args.rows.active(row)) return;
  const int thread = static_cast<int>(threadIdx.x);
  // the threshold may be the y of the least kept: what is ruled out is below the limit
  const double limit = args.state[row].moments.m - topk.margin / args.rows.scale_of(row);
  const Key floor = floor_of(limit);
  const int held = count_of(topk, row, static_cast<int>(topk.capacity));
  for (int i = thread; i < held; i += kTopKThreads) {
    const Key key = key_at(topk, row, i);
    keys[i] = key > floor ? key : 0;
  }
  sort_keys(keys, held);
  const int keep = static_cast<int>(topk.keep()), most = held < keep ? held : keep;
  for (int i = thread; i < most; i += kTopKThreads) {
    const Key key = keys[i];
    if (key == 0) continue;
    write_entry(topk, row, i, key);
    const Key next = i + 1 < most ? static_cast<Key>(keys[i + 1]) : 0;
    if (next == 0) topk.count[row] = i + 1;
  }
  if (thread == 0 && (held == 0 || static_cast<Key>(keys[0]) == 0)) topk.count[row] = 0;
}

struct MeasureArgs {
  EntriesArgs of;
  Economy economy;
  Dropped dropped;
};

// A row a thread, by the code that the CPU runs: sums of few entries, in their order.
LOGITLESS_KERNEL(kMeasureThreads, 8) measure_topk_kernel(const MeasureArgs args) {
  const int64_t row = block_index() * kMeasureThreads + threadIdx.x;
  const Rows& rows = args.of.rows;
  const TopK& topk = args.of.topk;
  if (row >= rows.n || !rows.active(row)) return;
  measure_row(
      topk,
      row,
      count_of(topk, row, static_cast<int>(topk.keep())),
      args.of.state[row],
      rows.targets[row],
      rows.scale_of(row),
      args.economy,
      args.dropped
  );
}

struct SparseGradientArgs {
  EntriesArgs of;
  const int64_t* index;
  Upstream g_logp, g_entropy, g_lse;
  SparseRows out;
};

// A row a warp.
LOGITLESS_KERNEL(kTopKThreads, 8) sparse_gradient_kernel(const SparseGradientArgs args) {
  const int64_t i = block_index() * kTopKWarps + threadIdx.x / kWarp;
  if (i >= args.out.n) return;
  const int64_t row = args.index[i];
  const Rows& rows = args.of.rows;
  const TopK& topk = args.of.topk;
  if (row < 0 || row >= rows.n) return;
  const Range range = range_of(args.out, i);
  const int64_t count = range.stop - range.start;
  if (count > topk.capacity) return;
  const RowGradient g = row_gradient(
      args.of.state[row].moments, args.g_logp.at(row), args.g_entropy.at(row), args.g_lse.at(row)
  );
  const double scale = rows.scale_of(row);
  for (int64_t j = threadIdx.x % kWarp; j < count; j += kWarp) {
    const double y = topk.values_of(row)[j];
    const int32_t id = topk.ids_of(row)[j];
    const bool is_target = id == rows.targets[row];
    args.out.columns[range.start + j] = id;
    args.out.values[range.start + j] =
        static_cast<float>(entry_gradient(g, rows.transform, scale, y, is_target));
  }
}

}  // namespace logitless::cuda
