// Moments of the pieces of a row: a warp holds a piece in registers, so memory is read once, with
// all reads in flight before the first is waited for.
#pragma once

#include <cuda/device.cuh>
#include <cuda/launch.cuh>
#include <type_traits>

#include "chain.cuh"
#include "kernels.h"

namespace logitless::cuda {

// Warps do not talk to each other; small blocks start and end without waiting for many.
constexpr int kPieceThreads = 128;
constexpr int kPieceWarps = kPieceThreads / kWarp;

// A lane holds 64 registers of logits: 8 KiB a warp. A chain makes floats of 16-bit logits first.
template <typename S, bool kChained>
struct Piece {
  using Held = std::conditional_t<kChained, float, S>;
  static constexpr int kWords = 64;
  static constexpr int kPerLane = kWords * Packed<Held>::kPerWord;
  static constexpr int kVectors = kPerLane / kPerVector<S>;
  static constexpr int kColumns = kPerLane * kWarp;

  // Where column i of a lane is in the piece; it depends on neither alignment nor width.
  LOGITLESS_DEVICE static constexpr int column(int i, int lane) {
    return (i / kPerVector<S> * kWarp + lane) * kPerVector<S> + i % kPerVector<S>;
  }
};

// The piece starting at column `first` of a row.
template <typename S, bool kChained>
LOGITLESS_DEVICE void load_piece(
    const S* row, int64_t first, int64_t columns, int lane, const ChainMath& chain, uint32_t* held
) {
  using P = Piece<S, kChained>;
  Words4 raw[P::kVectors];
  const S* source = row + first + P::column(0, lane);
  const bool aligned = aligned16(row + first);
  if (aligned && first + P::kColumns <= columns) {
#pragma unroll
    for (int k = 0; k < P::kVectors; ++k) raw[k] = load16(source + k * kWarp * kPerVector<S>);
  } else {
#pragma unroll
    for (int k = 0; k < P::kVectors; ++k) {
      const int offset = k * kWarp * kPerVector<S>;
      const int64_t left = columns - first - P::column(0, lane) - offset;
      raw[k] = aligned && left >= kPerVector<S> ? load16(source + offset)
                                                : load_elements(source + offset, left, 1);
    }
  }
#pragma unroll
  for (int k = 0; k < P::kVectors; ++k) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      if constexpr (!kChained) {
        held[k * 4 + w] = raw[k].word[w];
      } else {
        constexpr int kPerWord = Packed<S>::kPerWord;
        float values[kPerWord];
        Packed<S>::unpack(raw[k].word[w], values);
#pragma unroll
        for (int h = 0; h < kPerWord; ++h) {
          const int i = (k * 4 + w) * kPerWord + h;
          const int64_t column = first + P::column(i, lane);
          // padding stays -inf, whatever the cap
          held[i] = as_bits(column < columns ? chain(values[h], column) : -INFINITY);
        }
      }
    }
  }
}

LOGITLESS_DEVICE float warp_sum(float value) {
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) value += exchange(value, bits);
  return value;
}

// The largest number of the piece, -inf if there is none.
template <typename Held, int kWords>
LOGITLESS_DEVICE float warp_peak(const uint32_t (&held)[kWords]) {
  uint32_t peak[4] = {held[0], held[1], held[2], held[3]};
#pragma unroll
  for (int i = 4; i < kWords; ++i) peak[i % 4] = Packed<Held>::larger(peak[i % 4], held[i]);
  const uint32_t both = Packed<Held>::larger(
      Packed<Held>::larger(peak[0], peak[1]), Packed<Held>::larger(peak[2], peak[3])
  );
  float values[Packed<Held>::kPerWord];
  Packed<Held>::unpack(both, values);
  float m = -INFINITY;
#pragma unroll
  for (float value : values) m = larger(m, value);
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) m = larger(m, exchange(m, bits));
  return m;
}

template <typename Held, bool kExtras, int kWords>
LOGITLESS_DEVICE Record warp_moments(const uint32_t (&held)[kWords], float scale) {
  constexpr int kPerWord = Packed<Held>::kPerWord;
  const float m = warp_peak<Held>(held);
  // Without a finite logit everything is shifted by 0: -inf adds nothing and a NaN shows in s0.
  const float base = m == -INFINITY ? 0.0f : m;
  // Four sums each: additions do not wait for each other, and errors stay those of 32 terms.
  float s0[4] = {}, s1[4] = {}, s2[4] = {}, q0[4] = {}, q1[4] = {};
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    float y[kPerWord];
    Packed<Held>::unpack(held[w], y);
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
  Record record = {m, total(s0), total(s1), 0, 0, 0, NAN, -1};
  if constexpr (kExtras) {
    record.s2 = total(s2);
    record.q0 = total(q0);
    record.q1 = total(q1);
  }
  return record;
}

// The first column of the piece whose y is m, the same in all lanes.
template <typename P, int kWords>
LOGITLESS_DEVICE int warp_find(const uint32_t (&held)[kWords], float m, int lane) {
  constexpr int kPerWord = Packed<typename P::Held>::kPerWord;
  int column = P::kColumns;
#pragma unroll
  for (int w = kWords - 1; w >= 0; --w) {
    float y[kPerWord];
    Packed<typename P::Held>::unpack(held[w], y);
#pragma unroll
    for (int h = kPerWord - 1; h >= 0; --h) {
      if (y[h] == m) column = P::column(w * kPerWord + h, lane);
    }
  }
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) {
    const int other = exchange(column, bits);
    column = other < column ? other : column;
  }
  return column;
}

template <typename S, bool kChained, bool kExtras>
LOGITLESS_KERNEL(kPieceThreads) pieces_kernel(const PiecesArgs args) {
  using P = Piece<S, kChained>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const uint64_t index = block_index() * kPieceWarps + threadIdx.x / kWarp;
  const uint64_t pieces = args.pieces;
  if (index >= args.rows.n * pieces) return;
  const int64_t row = index / pieces;
  if (!args.rows.active(row)) return;
  const int64_t first = index % pieces * P::kColumns;
  const S* source = static_cast<const S*>(args.logits.data) + row_offset(args.logits, row);
  const ChainMath chain(args.rows.chain);

  uint32_t held[P::kWords];
  load_piece<S, kChained>(source, first, args.columns, lane, chain, held);
  const int64_t target = args.rows.targets[row] - args.start;
  const bool has_target = target >= first && target < first + P::kColumns && target < args.columns;
  float y_target = has_target ? value_of(source[target]) : NAN;
  const float scale = static_cast<float>(args.rows.scale_of(row) * 1.4426950408889634);

  Record record = warp_moments<typename P::Held, kExtras>(held, scale);
  if constexpr (kExtras) record.argmax = warp_find<P>(held, record.m, lane);
  if (lane != 0) return;
  if (kChained && has_target) y_target = chain(y_target, target);
  record.target = y_target;
  args.records[index] = record;
}

}  // namespace logitless::cuda
