// Two softmaxes over sets: a row a warp. Sums go to double, since a set may be the whole
// vocabulary.
#pragma once

#include <cuda/runtime/device.cuh>
#include <cuda/runtime/launch.cuh>
#include <cuda/runtime/warp.cuh>

#include "../rows/transform.cuh"
#include "columns.cuh"
#include "entries.h"
#include "noise.cuh"
#include "row_terms.cuh"

namespace logitless::cuda {

constexpr int kEntriesThreads = 128, kEntriesWarps = kEntriesThreads / kWarp;

// The row of a warp, and what of its entries a lane has.
struct EntriesRow {
  int64_t row, first, stop;
  TransformMath own, other;
  NoiseKey key;
  float size;  // of noise; 0: none
  int64_t start;

  LOGITLESS_DEVICE EntriesRow(const PairRows& rows, const PairEntries& entries)
      : row(block_index() * kEntriesWarps + threadIdx.x / kWarp),
        first(0),
        stop(0),
        own(rows.student.transform),
        other(rows.teacher.transform),
        key{},
        size(0),
        start(rows.noise.start) {
    if (row >= rows.student.n) return;
    size = noise_size(rows, row);
    if (size != 0.0f) key = rows.noise.key(row);
    const Range range = range_of(entries.offsets, entries.count, row);
    first = range.start + threadIdx.x % kWarp;
    stop = range.stop;
  }
  LOGITLESS_DEVICE bool leads() const { return threadIdx.x % kWarp == 0; }
  LOGITLESS_DEVICE float y(const PairEntries& entries, int64_t i, float& slope) const {
    return own.differentiate(entries.student[i], slope);
  }
  LOGITLESS_DEVICE float y(const PairEntries& entries, int64_t i) const {
    float slope;
    return y(entries, i, slope);
  }
  LOGITLESS_DEVICE float z(const PairEntries& entries, int64_t i) const {
    float slope;
    const float value = other.differentiate(entries.teacher[i], slope);
    if (size == 0.0f) return value;
    return value + product(size, normal_of(key, start + entries.tokens[i]));
  }
};

struct EntriesForwardArgs {
  PairRows rows;
  PairEntries entries;
  PairState* state;
};

// Sums in base 2 of the lanes as a side of the row's state.
LOGITLESS_DEVICE PairSide side_over_warp(const PairSide& of_lane, float m) {
  return {
      m,
      warp_sum(of_lane.s0),
      warp_sum(of_lane.s1) * kNatsPerBit,
      warp_sum(of_lane.gap) * kNatsPerBit
  };
}

LOGITLESS_KERNEL(kEntriesThreads, 6) entries_forward_kernel(const EntriesForwardArgs args) {
  const EntriesRow at(args.rows, args.entries);
  if (at.row >= args.rows.student.n) return;
  const int64_t stop = args.rows.student.active(at.row) ? at.stop : at.first;
  float m = -INFINITY, m_other = -INFINITY;
  for (int64_t i = at.first; i < stop; i += kWarp) {
    m = larger(m, at.y(args.entries, i));
    m_other = larger(m_other, at.z(args.entries, i));
  }
  m = warp_max(m);
  m_other = warp_max(m_other);
  const float from = reference_of(m), from_other = reference_of(m_other);
  const float scale = scale_in_bits(args.rows.student, at.row);
  const float scale_other = scale_in_bits(args.rows.teacher, at.row);
  PairSide own, other;
  for (int64_t i = at.first; i < stop; i += kWarp) {
    const float x = (at.y(args.entries, i) - from) * scale;
    const float u = (at.z(args.entries, i) - from_other) * scale_other;
    add_column(own.s0, own.s1, own.gap, x, x - u);
    add_column(other.s0, other.s1, other.gap, u, u - x);
  }
  const PairState state = {side_over_warp(own, m), side_over_warp(other, m_other)};
  if (at.leads()) args.state[at.row] = state;
}

struct EntriesMixArgs {
  PairTermsArgs of;
  PairEntries entries;
  float own, others;  // mix_offset and teacher_mix_offset
  MixSums* sums;
};

LOGITLESS_KERNEL(kEntriesThreads, 6) entries_mix_kernel(const EntriesMixArgs args) {
  const PairRows& rows = args.of.rows;
  const EntriesRow at(rows, args.entries);
  if (at.row >= rows.student.n) return;
  const PairTerms row = terms_of(args.of, at.row);
  MixSums sum;
  for (int64_t i = at.first; row.active != 0.0f && i < at.stop; i += kWarp) {
    const float x = (at.y(args.entries, i) - row.m) * row.scale;
    const float u = (at.z(args.entries, i) - row.teacher_m) * row.teacher_scale;
    add_to_mix(sum.student, sum.teacher, x, u, row.odds, args.own, args.others);
  }
  sum = {warp_sum(sum.student) * kNatsPerBit, warp_sum(sum.teacher) * kNatsPerBit};
  if (!at.leads()) return;
  if (row.active != 0.0f) {
    const PairState& state = args.of.state[at.row];
    sum = {sum.student / state.student.s0, sum.teacher / state.teacher.s0};
  }
  args.sums[at.row] = sum;
}

struct EntriesGradientArgs {
  PairTermsArgs of;
  PairEntries entries;
  float* out;
};

template <Divergence kKind>
LOGITLESS_KERNEL(kEntriesThreads, 6)
entries_gradient_kernel(const EntriesGradientArgs args) {
  const PairRows& rows = args.of.rows;
  const EntriesRow at(rows, args.entries);
  if (at.row >= rows.student.n) return;
  const PairTerms row = terms_of(args.of, at.row);
  for (int64_t i = at.first; i < at.stop; i += kWarp) {
    float slope = 1.0f, d = 0.0f;
    if (row.active != 0.0f) {
      const float x = (at.y(args.entries, i, slope) - row.m) * row.scale;
      d = pair_slope<kKind>(row, x, (at.z(args.entries, i) - row.teacher_m) * row.teacher_scale);
    }
    args.out[i] = d * slope;
  }
}

}  // namespace logitless::cuda
