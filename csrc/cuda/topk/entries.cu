// Drivers of what is done with kept entries.
#include "entries.cuh"

namespace logitless::cuda {

void topk_finalize(const Rows& rows, const RowState* state, const TopK& topk, Stream stream) {
  const DeviceGuard guard(stream.device);
  const EntriesArgs args = {rows, state, topk};
  launch("topk_finalize", finalize_topk_kernel, rows.n, kTopKThreads, stream, args);
}

void topk_measure(
    const Rows& rows,
    const RowState* state,
    const TopK& topk,
    const Economy& economy,
    const Dropped& dropped,
    Stream stream
) {
  const DeviceGuard guard(stream.device);
  const MeasureArgs args = {{rows, state, topk}, economy, dropped};
  const int64_t blocks = (rows.n + kMeasureThreads - 1) / kMeasureThreads;
  launch("topk_measure", measure_topk_kernel, blocks, kMeasureThreads, stream, args);
}

void sparse_gradient(
    const Rows& rows,
    const RowState* state,
    const TopK& topk,
    const int64_t* index,
    const Upstream& g_logp,
    const Upstream& g_entropy,
    const Upstream& g_lse,
    const SparseRows& out,
    Stream stream
) {
  const DeviceGuard guard(stream.device);
  const SparseGradientArgs args = {{rows, state, topk}, index, g_logp, g_entropy, g_lse, out};
  const int64_t blocks = (out.n + kTopKWarps - 1) / kTopKWarps;
  launch("sparse_gradient", sparse_gradient_kernel, blocks, kTopKThreads, stream, args);
}

}  // namespace logitless::cuda
