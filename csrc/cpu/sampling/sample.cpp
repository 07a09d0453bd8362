#include "sample.h"

#include "../rows/tiles.h"
#include "../runtime/parallel.h"

namespace logitless::cpu {
namespace {

// First column whose cumulated weight passes u * total; a column of weight 0 never does.
int64_t inverse_cdf(const double* weights, int64_t n, double u) {
  double total = 0;
  for (int64_t i = 0; i < n; ++i) total += weights[i];
  const double threshold = u * total;
  double sum = 0;
  int64_t last = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (weights[i] == 0) continue;
    sum += weights[i];
    last = i;
    if (sum > threshold) break;
  }
  return last;
}

}  // namespace

void rows_sample(
    const Rows& rows,
    const TensorView& logits,
    int64_t start,
    bool first,
    const SampleKey& key,
    RowState* state,
    SampleState* best
) {
  check_tile(rows, logits, "logits", start);
  const RowKernels& kernels = row_kernels();
  parallel_for(rows.n, rows.threads, [&](int64_t row) {
    if (first) {
      state[row] = RowState{};
      best[row] = SampleState{};
    }
    const TileRow tile = tile_row(rows, logits, row);
    const double scale = rows.scale_of(row);
    int64_t winner = -1;
    double winner_max = 0;
    for (int64_t block = 0; block < tile.blocks(); ++block) {
      BlockMoments found;
      kernels.moments(tile.dtype, tile.block(block), -1, false, &found);
      combine(state[row], found, scale);
      if (!(found.moments.s0 > 0)) continue;
      const PhiloxWords noise = block_noise(key, row, start / kBlock + block);
      const double score = block_score(found.moments.m, found.moments.s0, scale, noise);
      if (score > best[row].score) {
        best[row].score = score;
        winner = block;
        winner_max = found.moments.m;
      }
    }
    if (winner < 0) return;
    double weights[kBlock];
    double y[kBlock];
    const BlockInput input = tile.block(winner);
    kernels.weights(tile.dtype, input, winner_max, weights, y);
    const PhiloxWords noise = block_noise(key, row, start / kBlock + winner);
    const int64_t column = inverse_cdf(weights, input.n, number_in_block(noise));
    best[row].token = static_cast<double>(start + winner * kBlock + column);
    state[row].target = y[column];
  });
}

}  // namespace logitless::cpu
