// d(logits) of a part of a student's row a block, written where they were read or elsewhere.
#pragma once

#include "mix.cuh"

namespace logitless::cuda {

constexpr int kGradientThreads = 128;
constexpr int kGradientColumns = kGradientThreads * kQuad * kQuads;

struct PairGradientArgs {
  PairRows rows;
  PairTile tile;
  TensorView gradient;
  int64_t columns;
  int64_t blocks;  // of a row
  const PairTerms* terms;
};

LOGITLESS_DEVICE bool quads_aligned(const TensorView& tile, int64_t row, int64_t column) {
  bool aligned = false;
  by_storage(tile.dtype, [&](auto tag) {
    aligned = quad_aligned(column_at<typename decltype(tag)::type>(tile, row, column));
  });
  return aligned;
}

// Whole blocks that are aligned in all three go by quads; in others neighbouring threads have
// neighbouring columns.
LOGITLESS_DEVICE Columns
gradient_columns(const PairGradientArgs& args, int64_t row, int64_t first, int thread) {
  const int64_t rest = args.columns - first;
  const int left = static_cast<int>(rest < kGradientColumns ? rest : kGradientColumns);
  const bool wide = left == kGradientColumns && quads_aligned(args.tile.student, row, first) &&
                    quads_aligned(args.tile.teacher, row, first) &&
                    quads_aligned(args.gradient, row, first);
  const int own = wide ? thread * kQuad : thread;
  return {first + own, left - own, kGradientThreads * kQuad, wide ? 1 : kGradientThreads};
}

template <Divergence kKind, Steps kSteps>
LOGITLESS_KERNEL(kGradientThreads, 4)
pair_gradient_kernel(const PairGradientArgs args) {
  constexpr bool kTransformed = transforms(kSteps);
  LOGITLESS_SHARED_ARRAY(float, noise, noise_room(kSteps, kGradientColumns));
  const uint64_t number = block_index(), blocks = args.blocks;
  // the last row of the grid's second dimension may have blocks to spare
  if (number >= args.rows.student.n * blocks) return;
  const auto row = static_cast<int64_t>(number / blocks);
  const auto first = static_cast<int64_t>(number % blocks) * kGradientColumns;
  const Columns at = gradient_columns(args, row, first, static_cast<int>(threadIdx.x));
  const PairTerms terms = args.terms[row];
  Quads y = {};
  if (terms.active != 0.0f) {
    Raw raw, other;
    Quads z;
    float size = 0.0f;
    if constexpr (adds_noise(kSteps)) {
      size = noise_size(args.rows, row);
      if (size != 0.0f) {
        const NoiseKey key = args.rows.noise.key(row);
        const int64_t token = args.rows.noise.start + args.tile.start + first;
        const int64_t rest = args.columns - first;
        const int columns = static_cast<int>(rest < kGradientColumns ? rest : kGradientColumns);
        const auto thread = static_cast<int>(threadIdx.x);
        make_noise(key, size, token, columns, thread, kGradientThreads, noise, 0);
        sync_block();
      }
    }
    load_quads(args.tile.student, row, at, raw);
    load_quads(args.tile.teacher, row, at, other);
    unpack_quads(args.tile.student.dtype, raw, y);
    unpack_quads(args.tile.teacher.dtype, other, z);
    const TransformMath own(args.rows.student.transform), others(args.rows.teacher.transform);
#pragma unroll
    for (int k = 0; k < kQuads; ++k) {
      if constexpr (kTransformed) {
        const int64_t column = at.first + k * at.step;
        own.add_bias(y[k], column, at.left_of(k), at.stride);
        others.apply(z[k], column, at.left_of(k), at.stride);
      }
    }
    if constexpr (adds_noise(kSteps)) {
      if (size != 0.0f) add_noise(noise, static_cast<int>(at.first - first), at, z);
    }
#pragma unroll
    for (int k = 0; k < kQuads; ++k) {
#pragma unroll
      for (int i = 0; i < kQuad; ++i) {
        float slope = 1.0f;
        const float value = kTransformed ? own.differentiate(y[k][i], slope) : y[k][i];
        const float x = (value - terms.m) * terms.scale;
        y[k][i] = pair_slope<kKind>(terms, x, (z[k][i] - terms.teacher_m) * terms.teacher_scale);
        if constexpr (kTransformed) y[k][i] *= slope;
      }
    }
  }
  store_quads(args.gradient, row, at, y);
}

}  // namespace logitless::cuda
