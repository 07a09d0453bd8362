// Sparse rows times a dense matrix: a thread has some columns of a row and adds the entries up in
// their order, so that nothing depends on who comes first.
#pragma once

#include <cuda/runtime/device.cuh>
#include <cuda/runtime/launch.cuh>

#include "../rows/transform.cuh"
#include "topk.h"

namespace logitless::cuda {

constexpr int kMultiplyThreads = 128;
// Rows of the dense matrix lie anywhere: so many are asked for before the first is waited for.
constexpr int kAhead = 4;
// Blocks of a launch, which take rows in turns: most rows of a transpose have no entry, and a block
// of its own would cost each more than to look.
constexpr int64_t kMultiplyBlocks = 1 << 14;

struct MultiplyArgs {
  SparseRows sparse;
  const int32_t* names;
  TensorView dense, out;
  bool add;
  Chains chains;
  int64_t tiles;  // of columns, of a row
};

// Columns of a thread, from `first` on; `left` are there.
template <typename S>
struct Columns {
  static constexpr int kCount = kPerVector<S>;
  int64_t first;
  int left;

  LOGITLESS_DEVICE Columns(const MultiplyArgs& args, int64_t tile) {
    first = (tile * kMultiplyThreads + threadIdx.x) * kCount;
    const int64_t rest = args.dense.shape[1] - first;
    left = static_cast<int>(rest < 0 ? 0 : rest < kCount ? rest : kCount);
  }
};

// Adds entries from `start` to `stop` to the sums of a thread's columns. Of an entry that is 0 the
// row is not read.
template <typename S>
LOGITLESS_DEVICE void add_entries(
    const MultiplyArgs& args,
    int64_t start,
    int64_t stop,
    const Columns<S>& columns,
    float (&sums)[kPerVector<S>]
) {
  const TensorView& dense = args.dense;
  const S* source = static_cast<const S*>(dense.data) + columns.first;
  for (int64_t i = start; i < stop; i += kAhead) {
    Words4 raw[kAhead];
    float values[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      raw[u] = Words4{};
      values[u] = i + u < stop ? args.sparse.values[i + u] : 0.0f;
      const int64_t row = values[u] != 0.0f ? args.sparse.columns[i + u] : -1;
      if (row < 0 || row >= dense.shape[0]) {
        values[u] = 0;
        continue;
      }
      const S* mine = source + row * dense.strides[0];
      const bool wide = columns.left == columns.kCount && aligned16(mine);
      raw[u] = wide ? load16(mine) : load_elements(mine, columns.left, 1);
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      float x[kPerVector<S>];
      unpack<S>(raw[u], x);
#pragma unroll
      for (int h = 0; h < columns.kCount; ++h) sums[h] = fmaf(values[u], x[h], sums[h]);
    }
  }
}

// out (+)= sums, rounded once.
template <typename S, typename O>
LOGITLESS_DEVICE void deposit(
    O* out, bool add, const Columns<S>& columns, float (&sums)[kPerVector<S>]
) {
  constexpr int kCount = kPerVector<S>;
  if constexpr (kPerVector<O> == kCount) {
    if (columns.left == kCount && aligned16(out)) {
      if (add) {
        float old[kCount];
        unpack<O>(load16(out), old);
#pragma unroll
        for (int h = 0; h < kCount; ++h) sums[h] += old[h];
      }
      store16(out, pack<O>(sums));
      return;
    }
  }
#pragma unroll
  for (int h = 0; h < kCount; ++h) {
    if (h >= columns.left) continue;
    const float total[Packed<O>::kPerWord] = {add ? sums[h] + value_of(out[h]) : sums[h]};
    out[h] = Packed<O>::element(Packed<O>::pack(total), 0);
  }
}

// Of the sums of the chains of row i: the place of the first, and how many there are.
LOGITLESS_DEVICE Range chains_of(const Chains& chains, int64_t row) {
  const int64_t first = row > 0 ? chains.ends[row - 1] : 0, end = chains.ends[row];
  return 0 <= first && first <= end && end <= chains.slots ? Range{first, end} : Range{0, 0};
}

template <typename S, typename O>
LOGITLESS_KERNEL(kMultiplyThreads, 8) multiply_kernel(const MultiplyArgs args) {
  const int64_t items = args.sparse.n * args.tiles, width = args.dense.shape[1];
  for (int64_t item = block_index(); item < items; item += kMultiplyBlocks) {
    const int64_t row = item / args.tiles;
    const Range range = range_of(args.sparse, row);
    const int64_t name = args.names[row];
    if ((args.add && range.start == range.stop) || name < 0 || name >= args.out.shape[0]) continue;
    const Columns<S> columns(args, item % args.tiles);
    float sums[kPerVector<S>] = {};
    if (args.chains.ends != nullptr && range.stop - range.start > kChain) {
      const Range parts = chains_of(args.chains, row);
      for (int64_t part = parts.start; part < parts.stop; ++part) {
        const float* source = args.chains.sums + part * width + columns.first;
#pragma unroll
        for (int h = 0; h < columns.kCount; ++h) {
          if (h < columns.left) sums[h] += source[h];
        }
      }
    } else {
      add_entries<S>(args, range.start, range.stop, columns, sums);
    }
    O* out = static_cast<O*>(args.out.data) + name * args.out.strides[0] + columns.first;
    deposit<S, O>(out, args.add, columns, sums);
  }
}

// A chain of a long row, and a tile of columns, a block.
template <typename S>
LOGITLESS_KERNEL(kMultiplyThreads, 8) chains_kernel(const MultiplyArgs args) {
  const int64_t slot = block_index() / args.tiles, width = args.dense.shape[1];
  const Chains& chains = args.chains;
  if (slot >= chains.slots) return;
  // the first row whose chains end behind this one
  int64_t low = 0, high = args.sparse.n;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (chains.ends[middle] <= slot)
      low = middle + 1;
    else
      high = middle;
  }
  if (low == args.sparse.n) return;
  const Range range = range_of(args.sparse, low);
  const int64_t start = range.start + (slot - chains_of(chains, low).start) * kChain;
  const int64_t end = start + kChain, stop = end < range.stop ? end : range.stop;
  if (start < range.start) return;
  const Columns<S> columns(args, block_index() % args.tiles);
  float sums[kPerVector<S>] = {};
  add_entries<S>(args, start, stop, columns, sums);
#pragma unroll
  for (int h = 0; h < columns.kCount; ++h) {
    if (h < columns.left) chains.sums[slot * width + columns.first + h] = sums[h];
  }
}

struct RowSumsArgs {
  SparseRows sparse;
  const int32_t* names;
  float* out;
  int64_t size;
};

// A row a warp, in double; in an order that does not depend on anything.
LOGITLESS_KERNEL(kMultiplyThreads, 8) row_sums_kernel(const RowSumsArgs args) {
  constexpr int kWarps = kMultiplyThreads / kWarp;
  const int64_t row = block_index() * kWarps + threadIdx.x / kWarp;
  if (row >= args.sparse.n) return;
  const Range range = range_of(args.sparse, row);
  const int64_t name = args.names[row];
  if (range.start == range.stop || name < 0 || name >= args.size) return;
  const int64_t lane = threadIdx.x % kWarp;
  double sum = 0;
  for (int64_t i = range.start + lane; i < range.stop; i += kWarp) sum += args.sparse.values[i];
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) sum += exchange(sum, bits);
  if (lane == 0) args.out[name] += static_cast<float>(sum);
}

}  // namespace logitless::cuda
