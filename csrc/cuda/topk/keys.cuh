// Entries of a row as numbers of 64 bits that a block sorts in shared memory.
#pragma once

#include <cuda/runtime/device.cuh>
#include <cuda/runtime/launch.cuh>

#include "topk.h"

namespace logitless::cuda {

constexpr int kTopKThreads = 128;
constexpr int kTopKWarps = kTopKThreads / kWarp;
// Keys of a block: 16 KiB.
constexpr int kRoom = static_cast<int>(kMostCapacity);

// y in the high half, in an order of integers; below it the complement of the id. The larger key
// comes first, and no two entries of a row are equal. 0 is none: neither a NaN nor what is absent.
using Key = uint64_t;

// Both zeros are equal.
LOGITLESS_DEVICE uint32_t ordered(float y) {
  const uint32_t bits = as_bits(y == 0 ? 0.0f : y);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
LOGITLESS_DEVICE float unordered(uint32_t bits) {
  return as_float((bits & 0x80000000u) != 0 ? bits & 0x7fffffffu : ~bits);
}

LOGITLESS_DEVICE Key key_of(float y, int32_t id) {
  if (y != y) return 0;
  return static_cast<Key>(ordered(y)) << 32 | static_cast<uint32_t>(~id);
}
LOGITLESS_DEVICE float y_of(Key key) { return unordered(static_cast<uint32_t>(key >> 32)); }
LOGITLESS_DEVICE int32_t id_of(Key key) {
  return static_cast<int32_t>(~static_cast<uint32_t>(key));
}

// The largest key that is not above `limit`, where no float is skipped: an entry is above it iff
// its y is above the limit.
LOGITLESS_DEVICE Key floor_of(double limit) {
  if (limit != limit) return key_of(-INFINITY, 0);
  const float near = static_cast<float>(limit);
  uint32_t bits = ordered(near);
  if (static_cast<double>(near) > limit) --bits;
  return static_cast<Key>(bits) << 32 | 0xffffffffu;
}

// How many entries of a row there are, whatever the memory says.
LOGITLESS_DEVICE int count_of(const TopK& topk, int64_t row, int64_t most) {
  const int64_t count = topk.count[row];
  return count < 0 || count > most ? 0 : static_cast<int>(count);
}

LOGITLESS_DEVICE Key key_at(const TopK& topk, int64_t row, int i) {
  return key_of(static_cast<float>(topk.values_of(row)[i]), topk.ids_of(row)[i]);
}

LOGITLESS_DEVICE void write_entry(const TopK& topk, int64_t row, int i, Key key) {
  topk.values_of(row)[i] = y_of(key);
  topk.ids_of(row)[i] = id_of(key);
}

// Sorts `count` keys, largest first. All threads of the block call it, and no barrier is needed
// before or after.
template <typename Keys>
LOGITLESS_DEVICE void sort_keys(Keys& keys, int count) {
  const int thread = static_cast<int>(threadIdx.x);
  int size = 2;
  while (size < count) size *= 2;
  for (int i = count + thread; i < size; i += kTopKThreads) keys[i] = 0;
  sync_block();
  for (int run = 2; run <= size; run *= 2) {
    for (int step = run / 2; step > 0; step /= 2) {
      for (int i = thread; i < size / 2; i += kTopKThreads) {
        const int left = 2 * i - i % step, right = left + step;
        const Key a = keys[left], b = keys[right];
        if ((a < b) == ((left & run) == 0)) {
          keys[left] = b;
          keys[right] = a;
        }
      }
      sync_block();
    }
  }
}

}  // namespace logitless::cuda
