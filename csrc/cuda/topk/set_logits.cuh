// Products of rows of two matrices, one for each entry of sets.
#pragma once

#include <cuda/runtime/device.cuh>
#include <cuda/runtime/launch.cuh>
#include <cuda/runtime/warp.cuh>

#include "../rows/transform.cuh"
#include "sets.h"

namespace logitless::cuda {

constexpr int kSetThreads = 128, kSetWarps = kSetThreads / kWarp;
// Entries of a warp. Rows of weight lie anywhere: so many are asked for before the first is waited
// for, and the row of hidden, which is mostly the same one, is read once.
constexpr int kSetEntries = 4;

struct SetLogitsArgs {
  SparseRows sets;
  TensorView hidden, weight;
};

// The row of an entry: the last whose offset is not behind it.
LOGITLESS_DEVICE int64_t row_of_entry(const SparseRows& sets, int64_t entry) {
  int64_t low = 0, high = sets.n;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    if (sets.offsets[middle] <= entry)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// A row of a matrix, or null where there is none.
template <typename S>
LOGITLESS_DEVICE const S* row_at(const TensorView& matrix, int64_t row) {
  if (row < 0 || row >= matrix.shape[0]) return nullptr;
  return static_cast<const S*>(matrix.data) + row * matrix.strides[0];
}

// The vector of a row at `column`, of which `left` elements are there.
template <typename S>
LOGITLESS_DEVICE Words4 vector_at(const S* row, int64_t column, int64_t left) {
  if (left >= kPerVector<S> && aligned16(row + column)) return load16(row + column);
  const int some = static_cast<int>(left < kPerVector<S> ? left : kPerVector<S>);
  return load_elements(row + column, some, 1);
}

// The same as numbers, and zeros behind its end.
template <typename S>
LOGITLESS_DEVICE void numbers_of(const Words4& raw, int64_t left, float (&x)[kPerVector<S>]) {
  unpack<S>(raw, x);
  if (left >= kPerVector<S>) return;
#pragma unroll
  for (int h = 0; h < kPerVector<S>; ++h) x[h] = h < left ? x[h] : 0.0f;
}

// A few entries a warp. The lane of an element depends on its column alone, and so the bits of a
// product on its two rows.
template <typename S>
LOGITLESS_KERNEL(kSetThreads, 5) set_logits_kernel(const SetLogitsArgs args) {
  constexpr int kCount = kPerVector<S>;
  const SparseRows& sets = args.sets;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t first = (block_index() * kSetWarps + threadIdx.x / kWarp) * kSetEntries;
  if (first >= sets.entries) return;
  const S *own[kSetEntries], *other[kSetEntries];
  int64_t row = row_of_entry(sets, first);
#pragma unroll
  for (int u = 0; u < kSetEntries; ++u) {
    const int64_t entry = first + u;
    own[u] = other[u] = nullptr;
    if (entry >= sets.entries) continue;
    if (sets.offsets[row + 1] <= entry) row = row_of_entry(sets, entry);
    own[u] = row_at<S>(args.hidden, row);
    other[u] = row_at<S>(args.weight, sets.columns[entry]);
  }
  const int64_t width = args.weight.shape[1];
  float sums[kSetEntries] = {};
  for (int64_t c = lane * kCount; c < width; c += kWarp * kCount) {
    const int64_t left = width - c;
    Words4 left_raw = {}, raw[kSetEntries];
#pragma unroll
    for (int u = 0; u < kSetEntries; ++u) {
      raw[u] = other[u] != nullptr ? vector_at(other[u], c, left) : Words4{};
    }
    float a[kCount], b[kCount];
#pragma unroll
    for (int u = 0; u < kSetEntries; ++u) {
      if (own[u] == nullptr) continue;
      if (u == 0 || own[u] != own[u - 1]) {
        left_raw = vector_at(own[u], c, left);
        numbers_of<S>(left_raw, left, a);
      }
      numbers_of<S>(raw[u], left, b);
#pragma unroll
      for (int h = 0; h < kCount; ++h) sums[u] = fmaf(a[h], b[h], sums[u]);
    }
  }
#pragma unroll
  for (int u = 0; u < kSetEntries; ++u) {
    const float sum = warp_sum(sums[u]);
    const int64_t entry = first + u;
    if (lane == 0 && entry < sets.entries) sets.values[entry] = other[u] != nullptr ? sum : NAN;
  }
}

}  // namespace logitless::cuda
