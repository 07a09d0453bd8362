// From the sums of a tile's blocks to the token of each row: a warp a row. The block with the
// largest score wins, against those of earlier tiles too, and the token is drawn inside it by
// inverse CDF.
#pragma once

#include "blocks.cuh"

namespace logitless::cuda {

struct DrawArgs {
  Rows rows;
  TensorView logits;
  int64_t start;
  int64_t columns;
  int64_t blocks;
  const BlockSum* sums;
  SampleKey key;
  bool first;
  RowState* state;
  SampleState* best;
};

constexpr int kDrawThreads = 128;

// The block of a row with the largest score, of equal ones the first; the same in all lanes.
struct BestBlock {
  double score = -INFINITY;
  int64_t block = INT64_MAX;
};

LOGITLESS_DEVICE BestBlock best_block(const DrawArgs& args, int64_t row, int lane, double scale) {
  BestBlock best;
  for (int64_t i = lane; i < args.blocks; i += kWarp) {
    const BlockSum sum = args.sums[row * args.blocks + i];
    if (!(sum.s0 > 0)) continue;
    const PhiloxWords noise = block_noise(args.key, row, args.start / kBlock + i);
    const double score = block_score(sum.m, sum.s0, scale, noise);
    if (score > best.score) best = {score, i};
  }
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) {
    const BestBlock other = {exchange(best.score, bits), exchange(best.block, bits)};
    const bool ties = other.score == best.score && other.block < best.block;
    if (other.score > best.score || ties) best = other;
  }
  return best;
}

LOGITLESS_DEVICE int least_of_warp(int value) {
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) {
    const int other = exchange(value, bits);
    value = other < value ? other : value;
  }
  return value;
}

// The first column of a block whose cumulated weight passes u times the whole: the weights of a
// lane's columns, which follow those of the lane before. A column of weight 0 never does.
LOGITLESS_DEVICE int inverse_cdf(const float (&weights)[kPerLane], int lane, double u) {
  double total = 0;
#pragma unroll
  for (float weight : weights) total += weight;
  double before = 0;
#pragma unroll
  for (int bits = 1; bits < kWarp; bits *= 2) {
    const double other = exchange(total, bits);
    before += (lane & bits) != 0 ? other : 0;
    total += other;
  }
  const double threshold = u * total;
  constexpr int kNone = static_cast<int>(kBlock);
  int found = kNone, last = -1;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    // without branches, so that the weights stay in registers
    const int column = lane * kPerLane + i;
    const bool possible = weights[i] != 0;
    before += weights[i];
    last = possible ? column : last;
    found = possible && found == kNone && before > threshold ? column : found;
  }
  found = least_of_warp(found);
  last = -least_of_warp(-last);
  return found < kNone ? found : last;
}

template <typename S, bool kTransformed>
LOGITLESS_KERNEL(kDrawThreads, 4)
draw_kernel(const DrawArgs args) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t row = block_index() * (kDrawThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= args.rows.n) return;
  const double scale = args.rows.scale_of(row);
  const SampleState before = args.first ? SampleState{} : args.best[row];
  const BestBlock best = best_block(args, row, lane, scale);
  if (!(best.score > before.score)) {
    if (args.first && lane == 0) args.best[row] = before;
    return;
  }
  const int64_t first = best.block * kBlock, rest = args.columns - first;
  const int left = static_cast<int>(rest < kBlock ? rest : kBlock) - lane * kPerLane;
  const TransformMath transform(args.rows.transform);
  const S* source = row_of<S>(args.logits, row);
  float weights[kPerLane];
  load_columns<S, kTransformed>(source, first + lane * kPerLane, left, 1, transform, weights);
  const auto m = static_cast<float>(args.sums[row * args.blocks + best.block].m);
  const auto bits = static_cast<float>(scale * kLog2E);
#pragma unroll
  for (float& value : weights) value = exp2_exact(exponent(value, m, bits));
  const PhiloxWords noise = block_noise(args.key, row, args.start / kBlock + best.block);
  const int64_t column = first + inverse_cdf(weights, lane, number_in_block(noise));
  if (lane != 0) return;
  args.best[row] = {best.score, static_cast<double>(args.start + column)};
  args.state[row].target = y_at<S, kTransformed>(source, column, transform);
}

}  // namespace logitless::cuda
