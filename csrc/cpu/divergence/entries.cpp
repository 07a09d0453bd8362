#include "entries.h"

#include "../rows/tiles.h"
#include "../runtime/parallel.h"

namespace logitless::cpu {
namespace {

// The entries of a row as blocks, like those of a row of a tile.
TileRow entries_of(const Rows& rows, const PairEntries& entries, const void* values, int64_t row) {
  const int64_t first = entries.offsets[row];
  return {
      static_cast<const char*>(values) + first * dtype_bytes(entries.dtype),
      entries.dtype,
      entries.offsets[row + 1] - first,
      rows.transform,
      rows.scale_of(row)
  };
}

// Calls fn(row, number of the block, block) for those of every row, in order.
template <typename Fn>
void for_blocks(const PairRows& rows, const PairEntries& entries, Fn&& fn) {
  parallel_for(rows.student.n, rows.student.threads, [&](int64_t row) {
    const TileRow own = entries_of(rows.student, entries, entries.student, row);
    const TileRow other = entries_of(rows.teacher, entries, entries.teacher, row);
    for (int64_t index = 0; index < own.blocks(); ++index) {
      BlockNoise noise = block_noise(rows, row, 0);
      double values[kBlock];
      if (noise.size != 0) {
        const int32_t* tokens = entries.tokens + entries.offsets[row] + index * kBlock;
        for (int64_t c = 0; c < own.block(index).n; ++c) {
          values[c] = logitless::noise_of(noise.key, noise.first + tokens[c]);
        }
        noise.values = values;
      }
      const PairBlock block{own.dtype, other.dtype, own.block(index), other.block(index), noise};
      fn(row, index, block);
    }
  });
}

}  // namespace

void entries_forward(const PairRows& rows, const PairEntries& entries, PairState* state) {
  const PairKernels& kernels = pair_kernels();
  for (int64_t row = 0; row < rows.student.n; ++row) state[row] = PairState{};
  for_blocks(rows, entries, [&](int64_t row, int64_t, const PairBlock& block) {
    PairState found;
    kernels.moments(block, &found);
    state[row] = merged(state[row], found, rows.student.scale_of(row), rows.teacher.scale_of(row));
  });
}

void entries_mix(
    const PairRows& rows,
    const PairEntries& entries,
    const PairState* state,
    double beta,
    MixSums* sums
) {
  const PairKernels& kernels = pair_kernels();
  for (int64_t row = 0; row < rows.student.n; ++row) sums[row] = MixSums{};
  for_blocks(rows, entries, [&](int64_t row, int64_t, const PairBlock& block) {
    MixSums found;
    kernels.mix(block, pair_normals(state[row]), beta, &found);
    sums[row].student += found.student;
    sums[row].teacher += found.teacher;
  });
}

void entries_gradient(
    const PairRows& rows,
    const PairEntries& entries,
    const PairState* state,
    const MixSums* sums,
    Divergence kind,
    double beta,
    const double* g_divergence,
    const double* g_entropy,
    void* out
) {
  const PairKernels& kernels = pair_kernels();
  const int64_t bytes = dtype_bytes(entries.dtype);
  for_blocks(rows, entries, [&](int64_t row, int64_t index, const PairBlock& block) {
    char* to = static_cast<char*>(out) + (entries.offsets[row] + index * kBlock) * bytes;
    const double gd = g_divergence != nullptr ? g_divergence[row] : 0;
    const double ge = g_entropy != nullptr ? g_entropy[row] : 0;
    if (gd == 0 && ge == 0) {
      __builtin_memset(to, 0, block.student.n * bytes);
      return;
    }
    const MixSums of_row = sums != nullptr ? sums[row] : MixSums{};
    const PairGradient g =
        logitless::pair_gradient(pair_values(state[row]), of_row, kind, beta, gd, ge);
    kernels.gradient(block, pair_normals(state[row]), g, kind, beta, to);
  });
}

}  // namespace logitless::cpu
