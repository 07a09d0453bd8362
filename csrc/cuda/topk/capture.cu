// Driver of the capture of the largest logits.
#include "capture.cuh"

namespace logitless::cuda {
namespace {

template <typename S>
void capture(CaptureArgs args, Stream stream) {
  const bool transformed = args.rows.transform.changes_logits();
  const auto kernel = transformed ? capture_kernel<S, true> : capture_kernel<S, false>;
  args.split_columns = split_columns<S>(transformed);
  args.splits = (args.columns + args.split_columns - 1) / args.split_columns;
  launch("topk_capture", kernel, args.rows.n, kTopKThreads, stream, args);
}

}  // namespace

void topk_capture(
    const Rows& rows,
    const TensorView& logits,
    int64_t start,
    bool first,
    const RowState* state,
    const void* workspace,
    const TopK& topk,
    Stream stream
) {
  const DeviceGuard guard(stream.device);
  CaptureArgs args = {};
  args.rows = rows;
  args.logits = logits;
  args.start = start;
  args.columns = logits.shape[logits.ndim - 1];
  args.partials = static_cast<const Partial*>(workspace);
  args.state = state;
  args.topk = topk;
  args.first = first;
  visit_storage(logits.dtype, "logits", [&](auto tag) {
    capture<typename decltype(tag)::type>(args, stream);
  });
}

}  // namespace logitless::cuda
