// What is made of the values of each sequence: a block a sequence, always in the same order.
#pragma once

#include "block.cuh"

namespace logitless::cuda {

LOGITLESS_DEVICE double folded(double a, double b, Fold fold) {
  return fold == Fold::sum ? a + b : fmax(a, b);
}

LOGITLESS_KERNEL(kTokenThreads, 4) fold_sequences_kernel(const FoldArgs args) {
  LOGITLESS_SHARED_ARRAY(double, warps, kTokenWarps);
  const int64_t sequence = block_index();
  const int thread = thread_index();
  // offsets that do not rise from 0 to n reach no other memory
  const int64_t begin = sequence == 0 ? 0 : args.ends[sequence - 1];
  const int64_t end = args.ends[sequence] < args.n ? args.ends[sequence] : args.n;
  double value = 0;
  for (int64_t i = (begin > 0 ? begin : 0) + thread; i < end; i += kTokenThreads) {
    if (args.mask[i] != 0) value = folded(value, args.values[i], args.fold);
  }
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2)
    value = folded(value, exchange(value, bits), args.fold);
  if (thread % kWarp == 0) warps[thread / kWarp] = value;
  sync_block();
  if (thread != 0) return;
  double all = warps[0];
  for (int i = 1; i < kTokenWarps; ++i) all = folded(all, warps[i], args.fold);
  args.out[sequence] = all;
}

}  // namespace logitless::cuda
