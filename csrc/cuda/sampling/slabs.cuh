// The entries of a row in order, largest first, a slab at a time: a block sorts as many as fit into
// shared memory, and goes on with those below them as long as it has to.
#pragma once

#include "blocks.cuh"

namespace logitless::cuda {

constexpr int kSlabThreads = 512;
constexpr int kSlabWarps = kSlabThreads / kWarp;
// Entries of a slab at most. Half as many there are at least, but in the last.
constexpr int kSlab = 1024;
constexpr int kPerThread = kSlab / kSlabThreads;
// Digits of a key by which the end of a slab is found.
constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;
static_assert(kDigits <= kSlabThreads, "a thread has a digit");

LOGITLESS_DEVICE int slab_thread() { return static_cast<int>(threadIdx.x); }

// Of every thread's value: the sum over the threads before it, and over all, always in the same
// order. Every thread of the block calls it.
struct BlockSums {
  double before, total;
};
LOGITLESS_DEVICE BlockSums sums_of_block(double value) {
  LOGITLESS_SHARED_ARRAY(double, warps, kSlabWarps);
  const int thread = slab_thread(), warp = thread / kWarp;
  BlockSums sums = {0, value};
#pragma unroll
  for (int bits = 1; bits < kWarp; bits *= 2) {
    const double other = exchange(sums.total, bits);
    sums.before += (thread & bits) != 0 ? other : 0;
    sums.total += other;
  }
  // nobody reads what the last call has left
  sync_block();
  if (thread % kWarp == 0) warps[warp] = sums.total;
  sync_block();
  double before = 0, total = 0;
  for (int i = 0; i < kSlabWarps; ++i) {
    const double one = warps[i];
    before += i < warp ? one : 0;
    total += one;
  }
  return {before + sums.before, total};
}

LOGITLESS_DEVICE int count_of_block(int value) {
  return static_cast<int>(sums_of_block(value).total);
}

// A row, whose entries the threads of a block share.
template <typename S, bool kTransformed>
class RowEntries {
 public:
  LOGITLESS_DEVICE RowEntries(const Rows& rows, const TensorView& logits, int64_t row)
      : source_(row_of<S>(logits, row)),
        columns_(static_cast<int>(logits.shape[logits.ndim - 1])),
        transform_(rows.transform) {}

  // fn(key) of every entry above -inf that is this thread's.
  template <typename Fn>
  LOGITLESS_DEVICE void each(Fn&& fn) const {
    constexpr int kCount = kPerVector<S>;
    const bool aligned = aligned16(source_);
    for (int c = slab_thread() * kCount; c < columns_; c += kSlabThreads * kCount) {
      const int left = columns_ - c;
      const Words4 raw =
          aligned && left >= kCount ? load16(source_ + c) : load_elements(source_ + c, left, 1);
      float y[kCount];
      unpack<S>(raw, y);
      if (kTransformed) transform_.apply(y, c, left, 1);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (i < left && y[i] > -INFINITY) fn(entry_key(y[i], c + i));
      }
    }
  }

  // The set of the entries from `least` on, a bit an id.
  LOGITLESS_DEVICE void write_set(uint64_t least, uint8_t* bits) const {
    for (int byte = slab_thread(); byte * 8 < columns_; byte += kSlabThreads) {
      int set = 0;
      for (int i = 0; i < 8 && byte * 8 + i < columns_; ++i) {
        const int c = byte * 8 + i;
        const float y = y_at<S, kTransformed>(source_, c, transform_);
        set |= static_cast<int>(y > -INFINITY && entry_key(y, c) >= least) << i;
      }
      bits[byte] = static_cast<uint8_t>(set);
    }
  }

 private:
  const S* source_;
  int columns_;
  TransformMath transform_;
};

// The entries with floor <= key < upper, sorted in shared memory.
struct Slab {
  uint64_t upper = 0, floor = 0;
  int n = 0;
};

// The slab below `upper`, before it is sorted: floor 0 where nothing is left below it. Digit after
// digit, as many of the largest as fit.
template <typename Row>
LOGITLESS_DEVICE Slab slab_below(const Row& row, uint64_t upper) {
  LOGITLESS_SHARED_ARRAY(int32_t, counts, kDigits);
  const int thread = slab_thread();
  const bool counting = thread < kDigits;
  Slab slab = {upper, upper, 0};
  uint64_t prefix = 0;
  for (int shift = 64 - kDigitBits;; shift -= kDigitBits) {
    if (counting) counts[thread] = 0;
    sync_block();
    // a shift by 64 is undefined, and every key matches there
    const int above = shift + kDigitBits;
    row.each([&](uint64_t key) {
      if (key >= upper || (above < 64 && (key ^ prefix) >> above != 0)) return;
      atomic_add(counts[static_cast<int>(key >> shift) & (kDigits - 1)], 1);
    });
    sync_block();
    // from the largest digit on
    const int mine = counting ? static_cast<int>(counts[kDigits - 1 - thread]) : 0;
    const int through = slab.n + static_cast<int>(sums_of_block(mine).before) + mine;
    const bool fits = counting && through <= kSlab;
    const int digits = count_of_block(fits);
    slab.n += count_of_block(fits ? mine : 0);
    if (digits == kDigits) {
      // only of all entries: a digit that did not fit has no more room further down
      slab.floor = 0;
      return slab;
    }
    if (digits > 0) slab.floor = prefix | static_cast<uint64_t>(kDigits - digits) << shift;
    if (2 * slab.n >= kSlab) return slab;
    prefix |= static_cast<uint64_t>(kDigits - 1 - digits) << shift;
  }
}

// The n entries of a slab, sorted; zeros behind them.
template <typename Row, typename Keys>
LOGITLESS_DEVICE void sort_slab(const Row& row, const Slab& slab, Keys& keys) {
  LOGITLESS_SHARED_ARRAY(int32_t, next, 1);
  const int thread = slab_thread();
  int size = kWarp;
  while (size < slab.n) size *= 2;
  if (thread == 0) next[0] = 0;
  sync_block();
  row.each([&](uint64_t key) {
    if (slab.floor <= key && key < slab.upper) keys[atomic_add(next[0], 1)] = key;
  });
  for (int i = slab.n + thread; i < size; i += kSlabThreads) keys[i] = 0;
  sync_block();
  for (int width = 2; width <= size; width *= 2) {
    for (int step = width / 2; step > 0; step /= 2) {
      for (int i = thread; i < size / 2; i += kSlabThreads) {
        const int low = 2 * i - (i & (step - 1)), high = low + step;
        const uint64_t a = keys[low], b = keys[high];
        const bool falling = (low & width) == 0;
        if ((a < b) == falling) {
          keys[low] = b;
          keys[high] = a;
        }
      }
      sync_block();
    }
  }
}

}  // namespace logitless::cuda
