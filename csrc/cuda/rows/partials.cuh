// Moments of the splits of a row: a warp holds a split in registers, so memory is read once, with
// all reads in flight before the first is waited for.
#pragma once

#include <cuda/runtime/device.cuh>
#include <cuda/runtime/launch.cuh>
#include <cuda/runtime/warp.cuh>
#include <type_traits>

#include "kernels.h"
#include "transform.cuh"

namespace logitless::cuda {

// Warps do not talk to each other; small blocks start and end without waiting for many. On compute
// capability 9.0 the plain bfloat16 kernel has 80 registers, so that a multiprocessor holds 24
// warps and 192 KiB of logits, and 8.5 instructions a column (13.8 with extras): at 4.8 TB/s
// and 1.9 GHz there is room for 14 before arithmetic sets the pace.
constexpr int kPartialThreads = 128;
constexpr int kPartialWarps = kPartialThreads / kWarp;

// A lane holds 64 registers of logits: 8 KiB a warp. A transform makes floats of 16-bit logits
// first.
template <typename S, bool kTransformed>
struct Split {
  using Register = std::conditional_t<kTransformed, float, S>;
  static constexpr int kWords = 64;
  static constexpr int kPerLane = kWords * Packed<Register>::kPerWord;
  static constexpr int kVectors = kPerLane / kPerVector<S>;
  static constexpr int kColumns = kPerLane * kWarp;

  // Vectors of the lanes follow each other, whatever the alignment: a lane's vector k starts at
  // column k * kStep + lane * kPerVector of the split.
  static constexpr int kStep = kWarp * kPerVector<S>;
  static constexpr int kPerLine = kLineBytes / static_cast<int>(sizeof(S));
};

// The split at `source`, of whose columns `left` are there; the others are -inf. `column` is that
// of its first in the tile.
template <typename S, bool kTransformed>
LOGITLESS_DEVICE void load_split(
    const S* source,
    int64_t column,
    int left,
    int lane,
    const TransformMath& transform,
    uint32_t* registers
) {
  using P = Split<S, kTransformed>;
  constexpr int kCount = kPerVector<S>;
  Words4 raw[P::kVectors];
  const bool aligned = aligned16(source);
  const bool whole = aligned && left >= P::kColumns;
  // of the lane: its first column, and the columns from there on
  const S* mine = source + lane * kCount;
  const int rest = left - lane * kCount;
  if (whole) {
#pragma unroll
    for (int k = 0; k < P::kVectors; ++k) raw[k] = load16(mine + k * P::kStep);
  } else {
    // Elements are waited for a vector at a time, so they are asked for in advance.
    for (int i = lane * P::kPerLine; i < left; i += kWarp * P::kPerLine) prefetch(source + i);
#pragma unroll
    for (int k = 0; k < P::kVectors; ++k) {
      raw[k] = aligned && rest - k * P::kStep >= kCount
                   ? load16(mine + k * P::kStep)
                   : load_elements(mine + k * P::kStep, rest - k * P::kStep, 1);
    }
  }
#pragma unroll
  for (int k = 0; k < P::kVectors; ++k) {
    if constexpr (!kTransformed) {
#pragma unroll
      for (int w = 0; w < 4; ++w) registers[k * 4 + w] = raw[k].word[w];
    } else {
      float y[kCount];
      unpack<S>(raw[k], y);
      transform.apply(y, column + lane * kCount + k * P::kStep, rest - k * P::kStep, 1);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        // padding stays -inf, whatever the cap
        registers[k * kCount + i] = as_bits(whole || k * P::kStep + i < rest ? y[i] : -INFINITY);
      }
    }
  }
}

LOGITLESS_DEVICE int warp_min(int value) {
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) {
    const int other = exchange(value, bits);
    value = other < value ? other : value;
  }
  return value;
}

// The largest of each half of the words that vector k of a lane became.
template <typename P>
LOGITLESS_DEVICE uint32_t vector_peak(const uint32_t (&registers)[P::kWords], int k) {
  constexpr int kCount = P::kWords / P::kVectors;
  uint32_t peak = registers[k * kCount];
#pragma unroll
  for (int i = 1; i < kCount; ++i)
    peak = Packed<typename P::Register>::larger(peak, registers[k * kCount + i]);
  return peak;
}

// The largest number of the split, -inf if there is none.
template <typename P>
LOGITLESS_DEVICE float warp_peak(const uint32_t (&registers)[P::kWords]) {
  using Words = Packed<typename P::Register>;
  uint32_t peak = vector_peak<P>(registers, 0);
#pragma unroll
  for (int k = 1; k < P::kVectors; ++k) peak = Words::larger(peak, vector_peak<P>(registers, k));
  float values[Words::kPerWord];
  Words::unpack(peak, values);
  float m = -INFINITY;
#pragma unroll
  for (float value : values) m = larger(m, value);
  return warp_max(m);
}

template <typename P, bool kExtras>
LOGITLESS_DEVICE Partial warp_moments(const uint32_t (&registers)[P::kWords], float scale) {
  using Words = Packed<typename P::Register>;
  constexpr int kPerWord = Words::kPerWord;
  const float m = warp_peak<P>(registers);
  // Without a finite logit everything is shifted by 0: -inf adds nothing and a NaN shows in s0.
  const float base = m == -INFINITY ? 0.0f : m;
  // Four sums each: additions do not wait for each other, and errors stay those of 32 terms.
  float s0[4] = {}, s1[4] = {}, s2[4] = {}, q0[4] = {}, q1[4] = {};
#pragma unroll
  for (int w = 0; w < P::kWords; ++w) {
    float y[kPerWord];
    Words::unpack(registers[w], y);
#pragma unroll
    for (int h = 0; h < kPerWord; ++h) {
      const int u = (w * kPerWord + h) % 4;
      // subtracted first: scaled large logits would lose digits. 2^-150 is 0, and 0 * -150 is 0.
      const float t = larger_or_nan((y[h] - base) * scale, -150.0f);
      const float e = exp2_fast(t);
      s0[u] += e;
      if constexpr (kExtras) {
        const float te = t * e;
        s1[u] += te;
        s2[u] += t * te;
        q0[u] += e * e;
        q1[u] += te * e;
      } else {
        s1[u] += t * e;
      }
    }
  }
  const auto total = [](const float (&v)[4]) { return warp_sum((v[0] + v[1]) + (v[2] + v[3])); };
  Partial partial = {m, total(s0), total(s1), 0, 0, 0, NAN, -1};
  if constexpr (kExtras) {
    partial.s2 = total(s2);
    partial.q0 = total(q0);
    partial.q1 = total(q1);
  }
  return partial;
}

// The first column of the split whose y is m, the same in all lanes: first which vector, by its
// peak, then which of its columns, by reading those again. To search all columns would cost as much
// as a sum.
template <typename S, bool kTransformed>
LOGITLESS_DEVICE int warp_find(
    const S* source,
    int64_t column,
    int left,
    int lane,
    const TransformMath& transform,
    const uint32_t (&registers)[Split<S, kTransformed>::kWords],
    float m
) {
  using P = Split<S, kTransformed>;
  using Words = Packed<typename P::Register>;
  constexpr int kNone = P::kColumns;
  int vector = kNone;
#pragma unroll
  for (int k = P::kVectors - 1; k >= 0; --k) {
    float peaks[Words::kPerWord];
    Words::unpack(vector_peak<P>(registers, k), peaks);
#pragma unroll
    for (float peak : peaks) {
      if (peak == m) vector = k * kWarp + lane;
    }
  }
  vector = warp_min(vector);
  const int mine = vector * kPerVector<S> + lane;
  int found = kNone;
  if (lane < kPerVector<S> && mine < left) {
    float y[1] = {value_of(source[mine])};
    if (kTransformed) transform.apply(y, column + mine, 1, 1);
    if (y[0] == m) found = mine;
  }
  return warp_min(found);
}

template <typename S, bool kTransformed, bool kExtras>
LOGITLESS_KERNEL(kPartialThreads, (kExtras ? 4 : kTransformed ? 5 : 6)) partials_kernel(const PartialsArgs args) {
  using P = Split<S, kTransformed>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const uint64_t index = block_index() * kPartialWarps + threadIdx.x / kWarp;
  const uint64_t splits = args.splits;
  if (index >= args.rows.n * splits) return;
  const int64_t row = index / splits;
  if (!args.rows.active(row)) return;
  const int64_t first = index % splits * P::kColumns;
  const int64_t rest = args.columns - first;
  const int left = static_cast<int>(rest < P::kColumns ? rest : P::kColumns);
  const S* source = static_cast<const S*>(args.logits.data) + row_offset(args.logits, row) + first;
  const TransformMath transform(args.rows.transform);

  uint32_t registers[P::kWords];
  load_split<S, kTransformed>(source, first, left, lane, transform, registers);
  const int64_t target = column_from(args.rows.targets[row], args.start + first);
  const bool has_target = target >= 0 && target < left;
  float y_target[1] = {has_target ? value_of(source[target]) : NAN};
  const float scale = static_cast<float>(args.rows.scale_of(row) * 1.4426950408889634);

  Partial partial = warp_moments<P, kExtras>(registers, scale);
  if constexpr (kExtras) {
    partial.argmax =
        warp_find<S, kTransformed>(source, first, left, lane, transform, registers, partial.m);
  }
  if (lane != 0) return;
  if (kTransformed && has_target) transform.apply(y_target, first + target, 1, 1);
  partial.target = y_target[0];
  args.partials[index] = partial;
}

}  // namespace logitless::cuda
