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

// Of a block whose columns have weight(column), the first whose cumulated weight passes u times the
// whole; a column of weight 0 never does. The lane in whose columns that is knows it, others get
// -1.
template <typename Weight>
LOGITLESS_DEVICE int inverse_cdf(const Weight& weight, int columns, int lane, double u) {
  const int first = lane * kPerLane;
  const int end = columns < first + kPerLane ? columns : first + kPerLane;
  double mine = 0;
#pragma unroll 8
  for (int c = first; c < end; ++c) mine += weight(c);
  double before = 0, total = mine;
#pragma unroll
  for (int bits = 1; bits < kWarp; bits *= 2) {
    const double other = exchange(total, bits);
    before += (lane & bits) != 0 ? other : 0;
    total += other;
  }
  const double threshold = u * total;
  const int passing = least_of_warp(mine > 0 && before + mine > threshold ? lane : kWarp);
  // roundings may leave none
  const int last = -least_of_warp(mine > 0 ? -lane : 0);
  if (lane != (passing < kWarp ? passing : last)) return -1;
  int found = first;
  for (int c = first; c < end; ++c) {
    const double one = weight(c);
    if (one == 0) continue;
    found = c;
    before += one;
    if (before > threshold) break;
  }
  return found;
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
  const TransformMath transform(args.rows.transform);
  const S* source = row_of<S>(args.logits, row);
  const auto m = static_cast<float>(args.sums[row * args.blocks + best.block].m);
  const auto bits = static_cast<float>(scale * kLog2E);
  const auto weight = [&](int column) {
    const float y = y_at<S, kTransformed>(source, first + column, transform);
    return static_cast<double>(exp2_exact(exponent(y, m, bits)));
  };
  const PhiloxWords noise = block_noise(args.key, row, args.start / kBlock + best.block);
  const int columns = static_cast<int>(rest < kBlock ? rest : kBlock);
  const int found = inverse_cdf(weight, columns, lane, number_in_block(noise));
  if (found < 0) return;
  const int64_t column = first + found;
  args.best[row] = {best.score, static_cast<double>(args.start + column)};
  args.state[row].target = y_at<S, kTransformed>(source, column, transform);
}

}  // namespace logitless::cuda
