// Drivers of the row kernels: checks, then launches.
#include "combine.cuh"
#include "finalize.cuh"
#include "rows.h"
#include "visit.h"

namespace logitless::cuda {

void rows_forward(
    const Rows& rows,
    const TensorView& logits,
    int64_t start,
    bool extras,
    bool first,
    RowState* state,
    void* workspace,
    int64_t workspace_size,
    Stream stream
) {
  check_tile(rows, logits, "logits");
  const int64_t columns = logits.shape[logits.ndim - 1];
  const int64_t needed = workspace_bytes(rows.n, columns);
  check(
      workspace_size >= needed && reinterpret_cast<uintptr_t>(workspace) % alignof(Partial) == 0,
      "workspace must be ",
      needed,
      " bytes aligned to ",
      alignof(Partial),
      ", got ",
      workspace_size
  );
  auto* partials = static_cast<Partial*>(workspace);
  visit_storage(logits.dtype, "logits", [&](auto tag) {
    const DeviceGuard guard(stream.device);
    using S = typename decltype(tag)::type;
    const int64_t width = split_columns<S>(rows.transform.changes_logits());
    const int64_t splits = ceil_div(columns, width);
    launch_partials<S>(
        PartialsArgs{rows, logits, start, columns, splits, partials}, extras, stream
    );
    const CombineArgs combine = {
        rows, start, columns, splits, width, partials, state, extras, first
    };
    launch(
        "combine",
        combine_kernel,
        ceil_div(rows.n, kCombineThreads / kWarp),
        kCombineThreads,
        stream,
        combine
    );
  });
}

void rows_finalize(
    const Rows& rows,
    const RowState* state,
    int64_t vocab,
    const int64_t* row_ids,
    const RowOutputs& out,
    int64_t* error,
    Stream stream
) {
  const DeviceGuard guard(stream.device);
  const FinalizeArgs args = {rows, state, vocab, row_ids, out, error};
  launch(
      "finalize",
      finalize_kernel,
      ceil_div(rows.n, kFinalizeThreads),
      kFinalizeThreads,
      stream,
      args
  );
}

void rows_gradient(
    const Rows& rows,
    const TensorView& logits,
    int64_t start,
    const RowState* state,
    const Upstream& g_logp,
    const Upstream& g_entropy,
    const Upstream& g_lse,
    const TensorView& gradient,
    Stream stream
) {
  check_tile(rows, logits, "logits");
  check_tile(rows, gradient, "gradient");
  const int64_t columns = logits.shape[logits.ndim - 1];
  check_gradient(logits, gradient);
  visit_storage(logits.dtype, "logits", [&](auto tag) {
    const DeviceGuard guard(stream.device);
    using S = typename decltype(tag)::type;
    const int64_t blocks = ceil_div(columns, block_columns<S>());
    launch_backward<S>(
        {rows, logits, gradient, start, columns, blocks, state, g_logp, g_entropy, g_lse}, stream
    );
  });
}

}  // namespace logitless::cuda
