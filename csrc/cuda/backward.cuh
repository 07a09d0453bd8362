// d(logits) of a part of a row a block, written where they were read or elsewhere.
#pragma once

#include <cuda/device.cuh>
#include <cuda/launch.cuh>

#include "chain.cuh"
#include "kernels.h"

namespace logitless::cuda {

constexpr int kBackwardThreads = 128;
// Vectors of 16 bytes a thread holds: 16 KiB a block, so that few blocks share the coefficients'
// logarithm.
constexpr int kBackwardVectors = 8;

template <typename S>
constexpr int kBlockColumns = kBackwardThreads * kBackwardVectors * kPerVector<S>;

// d(raw) = e^x (constant + linear t) [1 - (y/c)^2], with t = x log2(e); `own` comes on top at the
// target.
struct Coefficients {
  float m, scale, constant, linear, own;
};

LOGITLESS_DEVICE Coefficients coefficients(const RowGradient& g, const Rows& rows, int64_t row) {
  const double scale = rows.scale_of(row);
  const double factor = rows.chain.softcap != 0 ? scale * rows.chain.pre : scale;
  return {
      static_cast<float>(g.m),
      static_cast<float>(scale * 1.4426950408889634),
      static_cast<float>(g.inv_s0 * factor * (g.a - g.b * g.log_s0)),
      static_cast<float>(g.inv_s0 * factor * g.b * 0.6931471805599453),
      static_cast<float>(g.g_logp * factor)
  };
}

// The part of a row that a thread works on. Whole aligned blocks go by vectors of 16 bytes, others
// by elements that are neighbours between neighbouring threads.
template <typename S>
struct Part {
  bool wide;
  int64_t left;  // columns from the block's first on

  LOGITLESS_DEVICE int column(int i, int thread) const {
    if (!wide) return i * kBackwardThreads + thread;
    return (i / kPerVector<S> * kBackwardThreads + thread) * kPerVector<S> + i % kPerVector<S>;
  }
  LOGITLESS_DEVICE int owner(int64_t column) const {
    return static_cast<int>((wide ? column / kPerVector<S> : column) % kBackwardThreads);
  }
  LOGITLESS_DEVICE Words4 load(const S* block, int k, int thread) const {
    const S* source = block + column(k * kPerVector<S>, thread);
    if (wide) return load16(source);
    return load_elements(source, left - column(k * kPerVector<S>, thread), kBackwardThreads);
  }
  LOGITLESS_DEVICE void store(S* block, int k, int thread, const Words4& v) const {
    constexpr int kPerWord = Packed<S>::kPerWord;
    if (wide) {
      store16(block + column(k * kPerVector<S>, thread), v);
      return;
    }
#pragma unroll
    for (int i = 0; i < kPerVector<S>; ++i) {
      const int c = column(k * kPerVector<S> + i, thread);
      if (c < left) block[c] = Packed<S>::element(v.word[i / kPerWord], i % kPerWord);
    }
  }
};

template <typename S, bool kChained>
LOGITLESS_KERNEL(kBackwardThreads) backward_kernel(const BackwardArgs args) {
  constexpr int kPerWord = Packed<S>::kPerWord;
  LOGITLESS_SHARED(Coefficients, shared);
  const int thread = static_cast<int>(threadIdx.x);
  const uint64_t index = block_index();
  const uint64_t blocks = args.blocks;
  // the last row of the grid's second dimension may have blocks to spare
  if (index >= args.rows.n * blocks) return;
  const int64_t row = index / blocks;
  const int64_t first = index % blocks * kBlockColumns<S>;
  const S* source = static_cast<const S*>(args.logits.data) + row_offset(args.logits, row) + first;
  S* out = static_cast<S*>(args.gradient.data) + row_offset(args.gradient, row) + first;
  const int64_t left = args.columns - first;
  const Part<S> part = {left >= kBlockColumns<S> && aligned16(source) && aligned16(out), left};

  const double g_logp = args.g_logp.at(row);
  const double g_entropy = args.g_entropy.at(row);
  const double g_lse = args.g_lse.at(row);
  if (!args.rows.active(row) || (g_logp == 0 && g_entropy == 0 && g_lse == 0)) {
#pragma unroll
    for (int k = 0; k < kBackwardVectors; ++k) part.store(out, k, thread, Words4{});
    return;
  }

  Words4 raw[kBackwardVectors];
#pragma unroll
  for (int k = 0; k < kBackwardVectors; ++k) raw[k] = part.load(source, k, thread);
  // Whoever writes the target's column also keeps its logit, which may lie where it writes.
  const int64_t target = args.rows.targets[row] - args.start - first;
  const bool owns =
      target >= 0 && target < left && target < kBlockColumns<S> && part.owner(target) == thread;
  const float at_target = owns ? value_of(source[target]) : 0.0f;
  if (thread == 0) {
    shared = coefficients(
        row_gradient(args.state[row].moments, g_logp, g_entropy, g_lse), args.rows, row
    );
  }
  sync_block();
  const Coefficients c = shared;
  const ChainMath chain(args.rows.chain);
  const auto gradient = [&](float value, int64_t column, float own) {
    // the bias ends where the columns do
    const float y = kChained && column < args.columns ? chain(value, column) : value;
    const float t = larger_or_nan((y - c.m) * c.scale, -150.0f);
    const float d = exp2_fast(t) * (c.constant + c.linear * t) + own;
    return kChained ? d * chain.derivative(y) : d;
  };
#pragma unroll
  for (int k = 0; k < kBackwardVectors; ++k) {
    Words4 result;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      float values[kPerWord];
      Packed<S>::unpack(raw[k].word[w], values);
#pragma unroll
      for (int h = 0; h < kPerWord; ++h) {
        const int column = part.column((k * 4 + w) * kPerWord + h, thread);
        values[h] = gradient(values[h], first + column, 0.0f);
      }
      result.word[w] = Packed<S>::pack(values);
    }
    part.store(out, k, thread, result);
  }
  if (owns) {
    float values[kPerWord] = {gradient(at_target, first + target, c.own)};
    out[target] = Packed<S>::element(Packed<S>::pack(values), 0);
  }
}

}  // namespace logitless::cuda
