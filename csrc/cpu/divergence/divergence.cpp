// Drivers of the kernels of two softmaxes: which thread does which block, in which order blocks are
// combined, what is an error.
#include "divergence.h"

#include <vector>

#include "../rows/errors.h"
#include "../rows/tiles.h"
#include "../runtime/parallel.h"

namespace logitless::cpu {
namespace {

void check_tile(const PairRows& rows, const PairTile& tile) {
  cpu::check_tile(rows.student, tile.student, "logits", tile.start);
  cpu::check_tile(rows.teacher, tile.teacher, "teacher_logits", tile.start);
  check_same_columns(tile);
  check(
      (tile.student.dtype == Dtype::f64) == (tile.teacher.dtype == Dtype::f64),
      "teacher_logits must be float64 where logits are, and not otherwise: got ",
      dtype_name(tile.student.dtype),
      " and ",
      dtype_name(tile.teacher.dtype)
  );
}

int64_t blocks_of(const PairTile& tile) { return (tile.columns() + kBlock - 1) / kBlock; }

PairBlock block_of(const PairRows& rows, const PairTile& tile, int64_t row, int64_t index) {
  const TileRow own = tile_row(rows.student, tile.student, row);
  const TileRow other = tile_row(rows.teacher, tile.teacher, row);
  const BlockNoise noise = block_noise(rows, row, tile.start + index * kBlock);
  return {own.dtype, other.dtype, own.block(index), other.block(index), noise};
}

// Calls make(row, index, block) for every block of the active rows, and take(row, block) in the
// order of a row's blocks, so that no number of threads changes a bit.
template <typename Block, typename Make, typename Take>
void fold_blocks(const Rows& rows, int64_t blocks, Make&& make, Take&& take) {
  if (rows.n >= 4 * rows.threads || blocks <= 1) {
    parallel_for(rows.n, rows.threads, [&](int64_t row) {
      if (!rows.active(row)) return;
      for (int64_t index = 0; index < blocks; ++index) {
        Block block;
        make(row, index, &block);
        take(row, block);
      }
    });
    return;
  }
  std::vector<Block> all(rows.n * blocks);
  parallel_for(rows.n * blocks, rows.threads, [&](int64_t task) {
    if (rows.active(task / blocks)) make(task / blocks, task % blocks, &all[task]);
  });
  for (int64_t task = 0; task < rows.n * blocks; ++task) {
    if (rows.active(task / blocks)) take(task / blocks, all[task]);
  }
}

void check_side(const PairSide& side, const Rows& rows, int64_t name, bool teacher) {
  check_row(side_error(side), name, 0, 1, rows.transform.bias != nullptr, teacher);
}

}  // namespace

void pair_forward(const PairRows& rows, const PairTile& tile, bool first, PairState* state) {
  check_tile(rows, tile);
  const PairKernels& kernels = pair_kernels();
  for (int64_t row = 0; first && row < rows.student.n; ++row) state[row] = PairState{};
  fold_blocks<PairState>(
      rows.student,
      blocks_of(tile),
      [&](int64_t row, int64_t index, PairState* block) {
        kernels.moments(block_of(rows, tile, row, index), block);
      },
      [&](int64_t row, const PairState& block) {
        state[row] =
            merged(state[row], block, rows.student.scale_of(row), rows.teacher.scale_of(row));
      }
  );
}

void pair_merge(const PairRows& rows, const PairState* parts, int64_t count, PairState* state) {
  const int64_t n = rows.student.n;
  for (int64_t row = 0; row < n; ++row) {
    PairState all{};
    for (int64_t part = 0; part < count; ++part) {
      const PairState& one = parts[part * n + row];
      all = merged(all, one, rows.student.scale_of(row), rows.teacher.scale_of(row));
    }
    state[row] = all;
  }
}

void pair_mix(
    const PairRows& rows,
    const PairTile& tile,
    bool first,
    const PairState* state,
    double beta,
    MixSums* sums
) {
  check_tile(rows, tile);
  const PairKernels& kernels = pair_kernels();
  for (int64_t row = 0; first && row < rows.student.n; ++row) sums[row] = MixSums{};
  fold_blocks<MixSums>(
      rows.student,
      blocks_of(tile),
      [&](int64_t row, int64_t index, MixSums* block) {
        kernels.mix(block_of(rows, tile, row, index), pair_normals(state[row]), beta, block);
      },
      [&](int64_t row, const MixSums& block) {
        sums[row].student += block.student;
        sums[row].teacher += block.teacher;
      }
  );
}

void pair_finalize(
    const PairRows& rows, const PairState* state, const int64_t* row_ids, const PairOutputs& out
) {
  for_rows(rows.student, [&](int64_t row) {
    PairValues v{};
    if (rows.student.active(row)) {
      const int64_t name = row_ids != nullptr ? row_ids[row] : row;
      check_side(state[row].student, rows.student, name, false);
      check_side(state[row].teacher, rows.teacher, name, true);
      v = pair_values(state[row]);
    }
    write(out.entropy, row, v.entropy);
    write(out.teacher_entropy, row, v.teacher_entropy);
    write(out.reverse_kl, row, v.reverse_kl);
    write(out.forward_kl, row, v.forward_kl);
  });
}

void pair_gradient(
    const PairRows& rows,
    const PairTile& tile,
    const PairState* state,
    const MixSums* sums,
    Divergence kind,
    double beta,
    const double* g_divergence,
    const double* g_entropy,
    const TensorView& gradient
) {
  check_tile(rows, tile);
  cpu::check_tile(rows.student, gradient, "gradient", tile.start);
  check_gradient(tile.student, gradient);
  const PairKernels& kernels = pair_kernels();
  const int64_t blocks = blocks_of(tile);
  parallel_for(rows.student.n * blocks, rows.student.threads, [&](int64_t task) {
    const int64_t row = task / blocks;
    const PairBlock block = block_of(rows, tile, row, task % blocks);
    const BlockInput& own = block.student;
    char* out = static_cast<char*>(gradient.data) +
                (row_offset(gradient, row) + own.first) * dtype_bytes(gradient.dtype);
    const double gd = g_divergence != nullptr ? g_divergence[row] : 0;
    const double ge = g_entropy != nullptr ? g_entropy[row] : 0;
    if (!rows.student.active(row) || (gd == 0 && ge == 0)) {
      __builtin_memset(out, 0, own.n * dtype_bytes(gradient.dtype));
      return;
    }
    const MixSums of_row = sums != nullptr ? sums[row] : MixSums{};
    const PairGradient g =
        logitless::pair_gradient(pair_values(state[row]), of_row, kind, beta, gd, ge);
    kernels.gradient(block, pair_normals(state[row]), g, kind, beta, out);
  });
}

}  // namespace logitless::cpu
