// d(logits) of a part of a row a block, written where they were read or elsewhere.
#pragma once

#include <cuda/runtime/device.cuh>
#include <cuda/runtime/launch.cuh>

#include "kernels.h"
#include "transform.cuh"

namespace logitless::cuda {

constexpr int kBackwardThreads = 128;
// Vectors of 16 bytes a thread holds: 16 KiB a block, so that few blocks share the coefficients'
// logarithm.
constexpr int kBackwardVectors = 8;

template <typename S>
constexpr int kBlockColumns = kBackwardThreads * kBackwardVectors * kPerVector<S>;

// d(raw) = e^x (constant + linear t) dy/du, with t = x log2(e); `own` comes on top at the target.
struct Coefficients {
  float m, scale, constant, linear, own;
};

LOGITLESS_DEVICE Coefficients coefficients(const RowGradient& g, const Rows& rows, int64_t row) {
  const double scale = rows.scale_of(row);
  const double factor = rows.transform.softcap != 0 ? scale * rows.transform.pre_scale : scale;
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
  int left;  // columns from the thread's first on

  // Vector k starts k steps after the thread's first column; its columns are `stride` apart.
  static constexpr int kStep = kBackwardThreads * kPerVector<S>;
  LOGITLESS_DEVICE int stride() const { return wide ? 1 : kBackwardThreads; }
  LOGITLESS_DEVICE int owner(int column) const {
    return (wide ? column / kPerVector<S> : column) % kBackwardThreads;
  }
  LOGITLESS_DEVICE void load(const S* mine, Words4 (&v)[kBackwardVectors]) const {
    if (wide) {
#pragma unroll
      for (int k = 0; k < kBackwardVectors; ++k) v[k] = load16(mine + k * kStep);
      return;
    }
#pragma unroll
    for (int k = 0; k < kBackwardVectors; ++k) {
      v[k] = load_elements(mine + k * kStep, left - k * kStep, kBackwardThreads);
    }
  }
  LOGITLESS_DEVICE void store(S* mine, int k, const Words4& v) const {
    constexpr int kPerWord = Packed<S>::kPerWord;
    if (wide) {
      store16(mine + k * kStep, v);
      return;
    }
#pragma unroll
    for (int i = 0; i < kPerVector<S>; ++i) {
      const int c = k * kStep + i * kBackwardThreads;
      if (c < left) mine[c] = Packed<S>::element(v.word[i / kPerWord], i % kPerWord);
    }
  }
};

template <typename S, bool kTransformed>
LOGITLESS_KERNEL(kBackwardThreads, (kTransformed ? 5 : 6)) backward_kernel(const BackwardArgs args) {
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
  const int64_t rest = args.columns - first;
  const int left = static_cast<int>(rest < kBlockColumns<S> ? rest : kBlockColumns<S>);
  const bool wide = left == kBlockColumns<S> && aligned16(source) && aligned16(out);
  const int mine = wide ? thread * kPerVector<S> : thread;
  const Part<S> part = {wide, left - mine};

  const double g_logp = args.g_logp.at(row);
  const double g_entropy = args.g_entropy.at(row);
  const double g_lse = args.g_lse.at(row);
  if (!args.rows.active(row) || (g_logp == 0 && g_entropy == 0 && g_lse == 0)) {
#pragma unroll
    for (int k = 0; k < kBackwardVectors; ++k) part.store(out + mine, k, Words4{});
    return;
  }

  // Elements are waited for a vector at a time, so they are asked for in advance.
  static_assert(sizeof(S) * kBlockColumns<S> == kBackwardThreads * kLineBytes, "a line a thread");
  constexpr int kPerLine = kLineBytes / static_cast<int>(sizeof(S));
  if (!wide && thread * kPerLine < left) prefetch(source + thread * kPerLine);
  Words4 raw[kBackwardVectors];
  part.load(source + mine, raw);
  // Whoever writes the target's column also keeps its logit, which may lie where it writes.
  const int64_t target = column_from(args.rows.targets[row], args.start + first);
  const bool owns = target >= 0 && target < left && part.owner(static_cast<int>(target)) == thread;
  float own[1] = {owns ? value_of(source[target]) : 0.0f};
  if (thread == 0) {
    shared = coefficients(
        row_gradient(args.state[row].moments, g_logp, g_entropy, g_lse), args.rows, row
    );
  }
  sync_block();
  const Coefficients c = shared;
  const TransformMath transform(args.rows.transform);
  // d(raw) of columns in place of their logits.
  const auto differentiate = [&](auto& values, int column, float extra) {
    if (kTransformed) transform.add_bias(values, first + column, left - column, part.stride());
#pragma unroll
    for (float& value : values) {
      float slope = 1.0f;
      const float y = kTransformed ? transform.differentiate(value, slope) : value;
      const float t = larger_or_nan((y - c.m) * c.scale, -150.0f);
      value = exp2_fast(t) * (c.constant + c.linear * t) + extra;
      if (kTransformed) value *= slope;
    }
  };
#pragma unroll
  for (int k = 0; k < kBackwardVectors; ++k) {
    float values[kPerVector<S>];
    unpack<S>(raw[k], values);
    differentiate(values, mine + k * Part<S>::kStep, 0.0f);
    part.store(out + mine, k, pack<S>(values));
  }
  if (owns) {
    differentiate(own, static_cast<int>(target), c.own);
    const float pair[Packed<S>::kPerWord] = {own[0]};
    out[target] = Packed<S>::element(Packed<S>::pack(pair), 0);
  }
}

}  // namespace logitless::cuda
