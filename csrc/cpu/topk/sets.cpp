#include "sets.h"

#include <algorithm>

#include "../rows/tiles.h"
#include "../runtime/parallel.h"
#include "kernels.h"

namespace logitless::cpu {
namespace {

// Entries of one task: sets differ in size by a factor of thousands.
constexpr int64_t kEntriesPerTask = 128;

int64_t value_bytes(const SparseRows& sets) { return sets.wide ? 8 : 4; }
Dtype value_dtype(const SparseRows& sets) { return sets.wide ? Dtype::f64 : Dtype::f32; }
char* value_at(const SparseRows& sets, int64_t entry) {
  return static_cast<char*>(sets.values) + entry * value_bytes(sets);
}
char* row_at(const TensorView& matrix, int64_t row) {
  return static_cast<char*>(matrix.data) + row * matrix.strides[0] * dtype_bytes(matrix.dtype);
}

// The entries of a row as blocks, like those of a row of a tile.
TileRow set_row(const Rows& rows, const SparseRows& sets, int64_t row) {
  const int64_t first = sets.offsets[row];
  return {
      value_at(sets, first),
      value_dtype(sets),
      sets.offsets[row + 1] - first,
      rows.transform,
      rows.scale_of(row)
  };
}

// Where the target is among the entries of its row, or -1.
int64_t place_of_target(const Rows& rows, const SparseRows& sets, int64_t row) {
  const int32_t* first = sets.columns + sets.offsets[row];
  const int32_t* last = sets.columns + sets.offsets[row + 1];
  const int32_t* found = std::lower_bound(first, last, rows.targets[row]);
  return found != last && *found == rows.targets[row] ? found - first : -1;
}

// Calls fn(entries, row of the tile) for the entries of every row within the tile's columns.
template <typename Fn>
void entries_within(
    const SparseRows& sets, const TensorView& tile, int64_t start, int threads, Fn&& fn
) {
  const int64_t stop = start + tile.shape[1];
  parallel_for(sets.n, threads, [&](int64_t row) {
    const int32_t* begin = sets.columns + sets.offsets[row];
    const int32_t* end = sets.columns + sets.offsets[row + 1];
    const int32_t* first = std::lower_bound(begin, end, start);
    const int32_t* last = first;
    // Not another search: columns that do not ascend, which only a wrong caller gives, would lead
    // out of the tile.
    while (last != end && start <= *last && *last < stop) ++last;
    RowEntries entries;
    entries.row = row_at(tile, row);
    entries.start = start;
    entries.columns = first;
    entries.values = value_at(sets, first - sets.columns);
    entries.count = last - first;
    fn(entries, row_at(tile, row));
  });
}

}  // namespace

void set_logits(
    const SparseRows& sets, const TensorView& hidden, const TensorView& weight, int threads
) {
  const TopKKernels& kernels = topk_kernels();
  const int64_t entries = sets.entries();
  const int64_t* offsets = sets.offsets;
  parallel_for((entries + kEntriesPerTask - 1) / kEntriesPerTask, threads, [&](int64_t task) {
    int64_t entry = task * kEntriesPerTask;
    const int64_t stop = std::min(entries, entry + kEntriesPerTask);
    int64_t row = std::upper_bound(offsets, offsets + sets.n + 1, entry) - offsets - 1;
    for (; entry < stop; ++row) {
      const int64_t last = std::min(stop, offsets[row + 1]);
      if (last == entry) continue;
      RowDots dots;
      dots.row = row_at(hidden, row);
      dots.dense = weight.data;
      dots.stride = weight.strides[0];
      dots.columns = sets.columns + entry;
      dots.count = last - entry;
      dots.n = weight.shape[1];
      kernels.dots(weight.dtype, dots, value_at(sets, entry));
      entry = last;
    }
  });
}

void read_set_tile(const SparseRows& sets, const TensorView& tile, int64_t start, int threads) {
  const TopKKernels& kernels = topk_kernels();
  entries_within(sets, tile, start, threads, [&](const RowEntries& entries, char*) {
    kernels.pick(tile.dtype, entries);
  });
}

void write_set_tile(const SparseRows& sets, const TensorView& tile, int64_t start, int threads) {
  const TopKKernels& kernels = topk_kernels();
  entries_within(sets, tile, start, threads, [&](const RowEntries& entries, char* row) {
    __builtin_memset(row, 0, tile.shape[1] * dtype_bytes(tile.dtype));
    kernels.put(tile.dtype, entries);
  });
}

void set_forward(const Rows& rows, const SparseRows& sets, bool extras, RowState* state) {
  const RowKernels& kernels = row_kernels();
  parallel_for(rows.n, rows.threads, [&](int64_t row) {
    state[row] = RowState{};
    const TileRow set = set_row(rows, sets, row);
    const int64_t target = place_of_target(rows, sets, row);
    int64_t peak = -1;
    for (int64_t index = 0; index < set.blocks(); ++index) {
      BlockMoments block;
      kernels.moments(set.dtype, set.block(index), target - index * kBlock, extras, &block);
      // A tie keeps the earlier column.
      if (block.moments.m > state[row].moments.m) peak = index;
      combine(state[row], block, set.scale);
    }
    if (!extras || peak < 0) return;
    const int64_t place =
        kernels.find(set.dtype, set.block(peak), state[row].moments.m) + peak * kBlock;
    state[row].argmax = sets.columns[sets.offsets[row] + place];
  });
}

void set_gradient(
    const Rows& rows,
    const SparseRows& sets,
    const RowState* state,
    const double* g_logp,
    const double* g_entropy,
    const double* g_lse,
    void* out
) {
  const RowKernels& kernels = row_kernels();
  const auto at = [](const double* g, int64_t row) { return g != nullptr ? g[row] : 0; };
  parallel_for(rows.n, rows.threads, [&](int64_t row) {
    const TileRow set = set_row(rows, sets, row);
    char* d_values = static_cast<char*>(out) + sets.offsets[row] * value_bytes(sets);
    const double gl = at(g_logp, row), ge = at(g_entropy, row), gz = at(g_lse, row);
    if (gl == 0 && ge == 0 && gz == 0) {
      __builtin_memset(d_values, 0, set.columns * value_bytes(sets));
      return;
    }
    const RowGradient g = row_gradient(state[row].moments, gl, ge, gz);
    const int64_t target = place_of_target(rows, sets, row);
    for (int64_t index = 0; index < set.blocks(); ++index) {
      char* block_out = d_values + index * kBlock * value_bytes(sets);
      kernels.gradient(set.dtype, set.block(index), g, target - index * kBlock, block_out);
    }
  });
}

}  // namespace logitless::cpu
