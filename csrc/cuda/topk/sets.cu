// Drivers of the kernels of rows over sets.
#include "set_rows.cuh"
#include "set_tiles.cuh"
#include "sets.h"

namespace logitless::cuda {
namespace {

int64_t blocks_of(int64_t n) { return ceil_div(n, kSetWarps); }

template <bool kRead>
void over_tile(const SparseRows& sets, const TensorView& tile, int64_t start, Stream stream) {
  const DeviceGuard guard(stream.device);
  const SetTileArgs args = {sets, tile, start};
  visit_storage(tile.dtype, "tile", [&](auto tag) {
    using S = typename decltype(tag)::type;
    launch("set_tile", set_tile_kernel<S, kRead>, blocks_of(sets.n), kSetThreads, stream, args);
  });
}

}  // namespace

void set_logits(
    const SparseRows& sets, const TensorView& hidden, const TensorView& weight, Stream stream
) {
  const DeviceGuard guard(stream.device);
  const SetLogitsArgs args = {sets, hidden, weight};
  const int64_t blocks = sets.n == 0 ? 0 : ceil_div(sets.entries, kSetWarps * kSetEntries);
  visit_storage(weight.dtype, "weight", [&](auto tag) {
    using S = typename decltype(tag)::type;
    launch("set_logits", set_logits_kernel<S>, blocks, kSetThreads, stream, args);
  });
}

void read_set_tile(const SparseRows& sets, const TensorView& tile, int64_t start, Stream stream) {
  over_tile<true>(sets, tile, start, stream);
}

void write_set_tile(const SparseRows& sets, const TensorView& tile, int64_t start, Stream stream) {
  over_tile<false>(sets, tile, start, stream);
}

void set_forward(
    const Rows& rows, const SparseRows& sets, bool extras, RowState* state, Stream stream
) {
  const DeviceGuard guard(stream.device);
  const SetForwardArgs args = {rows, sets, state, extras};
  launch("set_forward", set_forward_kernel, blocks_of(rows.n), kSetThreads, stream, args);
}

void set_gradient(
    const Rows& rows,
    const SparseRows& sets,
    const RowState* state,
    const Upstream& g_logp,
    const Upstream& g_entropy,
    const Upstream& g_lse,
    float* out,
    Stream stream
) {
  const DeviceGuard guard(stream.device);
  const SetGradientArgs args = {rows, sets, state, g_logp, g_entropy, g_lse, out};
  launch("set_gradient", set_gradient_kernel, blocks_of(rows.n), kSetThreads, stream, args);
}

}  // namespace logitless::cuda
