// Drivers of the kernels that draw: checks, then launches.
#include "../rows/visit.h"
#include "draw.cuh"
#include "sampling.h"
#include "truncated.cuh"

namespace logitless::cuda {
namespace {

// The sums of all blocks of a tile, in the workspace.
template <typename S>
const BlockSum* block_sums(
    const Rows& rows, const TensorView& logits, const SamplingWorkspace& workspace, Stream stream
) {
  const int64_t columns = logits.shape[logits.ndim - 1];
  auto* sums = static_cast<BlockSum*>(workspace.data);
  const int64_t blocks = ceil_div(columns, kBlock);
  const auto kernel =
      rows.transform.changes_logits() ? block_sums_kernel<S, true> : block_sums_kernel<S, false>;
  launch(
      "block_sums",
      kernel,
      ceil_div(rows.n * blocks, kBlocksThreads / kWarp),
      kBlocksThreads,
      stream,
      BlocksArgs{rows, logits, columns, blocks, sums}
  );
  return sums;
}

void check_call(
    const Rows& rows, const TensorView& logits, int64_t start, const SamplingWorkspace& workspace
) {
  check_tile(rows, logits, "logits");
  check(
      start % kBlock == 0, "vocabulary tiles must start at a multiple of ", kBlock, ", got ", start
  );
  const int64_t needed = sampling_workspace_bytes(rows.n, logits.shape[logits.ndim - 1]);
  const bool aligned = reinterpret_cast<uintptr_t>(workspace.data) % alignof(BlockSum) == 0;
  check(
      workspace.bytes >= needed && aligned,
      "workspace must be ",
      needed,
      " bytes aligned to ",
      alignof(BlockSum),
      ", got ",
      workspace.bytes
  );
}

}  // namespace

void rows_sample(
    const Rows& rows,
    const TensorView& logits,
    int64_t start,
    bool first,
    const SampleKey& key,
    RowState* state,
    SampleState* best,
    const SamplingWorkspace& workspace,
    Stream stream
) {
  check_call(rows, logits, start, workspace);
  const int64_t columns = logits.shape[logits.ndim - 1];
  visit_storage(logits.dtype, "logits", [&](auto tag) {
    const DeviceGuard guard(stream.device);
    using S = typename decltype(tag)::type;
    const BlockSum* sums = block_sums<S>(rows, logits, workspace, stream);
    const int64_t blocks = ceil_div(columns, kBlock);
    const DrawArgs args = {rows, logits, start, columns, blocks, sums, key, first, state, best};
    const auto kernel =
        rows.transform.changes_logits() ? draw_kernel<S, true> : draw_kernel<S, false>;
    launch("draw", kernel, ceil_div(rows.n, kDrawThreads / kWarp), kDrawThreads, stream, args);
  });
}

void draw_from_rows(
    const Rows& rows,
    const TensorView& logits,
    const Truncation& truncation,
    const SampleKey& key,
    RowState* state,
    const TruncatedDraw& out,
    const SamplingWorkspace& workspace,
    Stream stream
) {
  check_call(rows, logits, 0, workspace);
  const int64_t columns = logits.shape[logits.ndim - 1];
  check(columns <= INT32_MAX, "logits must have ids below 2^31, got ", columns, " columns");
  visit_storage(logits.dtype, "logits", [&](auto tag) {
    const DeviceGuard guard(stream.device);
    using S = typename decltype(tag)::type;
    const BlockSum* sums = block_sums<S>(rows, logits, workspace, stream);
    const int64_t blocks = ceil_div(columns, kBlock);
    const TruncatedArgs args = {rows, logits, blocks, sums, truncation, key, state, out};
    const auto kernel =
        rows.transform.changes_logits() ? truncated_kernel<S, true> : truncated_kernel<S, false>;
    launch("truncated", kernel, rows.n, kSlabThreads, stream, args);
  });
}

}  // namespace logitless::cuda
