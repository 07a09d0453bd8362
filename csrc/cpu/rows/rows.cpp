// Drivers of the row kernels: which thread does which block, in which order blocks are combined,
// what is an error.
#include "rows.h"

#include <vector>

#include "../runtime/parallel.h"
#include "errors.h"
#include "tiles.h"

namespace logitless::cpu {
namespace {

// -1: the state was made without extras.
int64_t argmax_of(const RowState& state, int64_t vocab) {
  const bool known = state.argmax >= -1 && state.argmax < static_cast<double>(vocab);
  check(known, "state must hold an argmax below ", vocab, ", got ", state.argmax);
  return static_cast<int64_t>(state.argmax);
}

// Of a row without any other error.
void check_lse(const TensorView& out, double lse, int64_t name, double m, double scale) {
  const bool wide = out.dtype == Dtype::f64;
  check(
      !(wide ? overflows<double>(lse) : overflows<float>(lse)),
      "row ",
      name,
      ": its logits times logit_scale / temperature overflow ",
      dtype_name(wide ? Dtype::f64 : Dtype::f32),
      ": the largest is ",
      m,
      ", the factor ",
      scale
  );
}

}  // namespace

void rows_forward(
    const Rows& rows,
    const TensorView& logits,
    int64_t start,
    bool extras,
    bool first,
    RowState* state,
    const BlockObserver* observer
) {
  check_tile(rows, logits, "logits", start);
  const RowKernels& kernels = row_kernels();
  for (int64_t row = 0; first && row < rows.n; ++row) {
    state[row] = RowState{};
    if (observer != nullptr) observer->clear(row);
  }
  const auto moments_of = [&](int64_t row, int64_t index, BlockMoments* block) {
    const TileRow tile = tile_row(rows, logits, row);
    const int64_t target = column_from(rows.targets[row], start + index * kBlock);
    kernels.moments(tile.dtype, tile.block(index), target, extras, block);
  };
  // Combines a row's blocks in order; the block of a new maximum is searched for its column once.
  const int64_t blocks = (logits.shape[logits.ndim - 1] + kBlock - 1) / kBlock;
  const auto combine_row = [&](int64_t row, auto&& next_block) {
    int64_t peak = -1;
    for (int64_t index = 0; index < blocks; ++index) {
      const BlockMoments& block = next_block(index);
      // A tie keeps the earlier column, as torch.argmax does on a CPU.
      if (block.moments.m > state[row].moments.m) peak = index;
      combine(state[row], block, rows.scale_of(row));
      if (observer == nullptr) continue;
      const TileRow tile = tile_row(rows, logits, row);
      const double row_max = state[row].moments.m;
      observer->push(
          row, tile.dtype, tile.block(index), start + index * kBlock, block.moments.m, row_max
      );
    }
    if (!extras || peak < 0) return;
    const TileRow tile = tile_row(rows, logits, row);
    const int64_t column =
        kernels.find(tile.dtype, tile.block(peak), state[row].moments.m) + peak * kBlock;
    state[row].argmax = static_cast<double>(start + column);
  };
  if (rows.n >= 4 * rows.threads || blocks <= 1) {
    parallel_for(rows.n, rows.threads, [&](int64_t row) {
      if (!rows.active(row)) return;
      BlockMoments block;
      combine_row(row, [&](int64_t index) -> const BlockMoments& {
        moments_of(row, index, &block);
        return block;
      });
    });
    return;
  }
  // Few long rows: blocks in parallel, then combined in the same order as above, so the bits agree.
  std::vector<BlockMoments> all(rows.n * blocks);
  parallel_for(rows.n * blocks, rows.threads, [&](int64_t task) {
    if (rows.active(task / blocks)) moments_of(task / blocks, task % blocks, &all[task]);
  });
  for (int64_t row = 0; row < rows.n; ++row) {
    if (!rows.active(row)) continue;
    combine_row(row, [&](int64_t index) -> const BlockMoments& {
      return all[row * blocks + index];
    });
  }
}

void rows_merge(const Rows& rows, const RowState* parts, int64_t count, RowState* state) {
  for_rows(rows, [&](int64_t row) {
    RowState all{};
    for (int64_t part = 0; part < count; ++part) {
      all = merged(all, parts[part * rows.n + row], rows.scale_of(row));
    }
    state[row] = all;
  });
}

void rows_finalize(
    const Rows& rows,
    const RowState* state,
    int64_t vocab,
    const int64_t* row_ids,
    const RowOutputs& out
) {
  for_rows(rows, [&](int64_t row) {
    TokenValues values{0, 0, 0};
    TokenExtras extras{};
    int64_t argmax = -1;
    if (rows.active(row)) {
      const RowState& s = state[row];
      const int64_t target = rows.targets[row];
      const int64_t name = row_ids != nullptr ? row_ids[row] : row;
      const double scale = rows.scale_of(row);
      const bool biased = rows.transform.bias != nullptr;
      check_row(row_error(s.moments, target, vocab), name, target, vocab, biased);
      values = token_values(s.moments, s.target, scale);
      check_lse(out.lse, values.lse, name, s.moments.m, scale);
      extras = token_extras(s.moments, values);
      if (out.argmax != nullptr) argmax = argmax_of(s, vocab);
    }
    write_row(out, row, values, extras, write);
    if (out.argmax != nullptr) out.argmax[row] = argmax;
  });
}

void rows_gradient(
    const Rows& rows,
    const TensorView& logits,
    int64_t start,
    const RowState* state,
    const double* g_logp,
    const double* g_entropy,
    const double* g_lse,
    const TensorView& gradient
) {
  check_tile(rows, logits, "logits", start);
  check_tile(rows, gradient, "gradient", start);
  check_gradient(logits, gradient);
  const RowKernels& kernels = row_kernels();
  const int64_t blocks = (logits.shape[logits.ndim - 1] + kBlock - 1) / kBlock;
  parallel_for(rows.n * blocks, rows.threads, [&](int64_t task) {
    const int64_t row = task / blocks;
    const TileRow tile = tile_row(rows, logits, row);
    const BlockInput input = tile.block(task % blocks);
    char* out = static_cast<char*>(gradient.data) +
                (row_offset(gradient, row) + input.first) * dtype_bytes(gradient.dtype);
    const double gl = g_logp != nullptr ? g_logp[row] : 0;
    const double ge = g_entropy != nullptr ? g_entropy[row] : 0;
    const double gz = g_lse != nullptr ? g_lse[row] : 0;
    if (!rows.active(row) || (gl == 0 && ge == 0 && gz == 0)) {
      __builtin_memset(out, 0, input.n * dtype_bytes(gradient.dtype));
      return;
    }
    const RowGradient g = row_gradient(state[row].moments, gl, ge, gz);
    const int64_t target = column_from(rows.targets[row], start + input.first);
    kernels.gradient(tile.dtype, input, g, target, out);
  });
}

}  // namespace logitless::cpu
