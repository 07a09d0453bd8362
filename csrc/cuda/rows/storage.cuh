// The kernels that read logits, for one storage type: each rows_<type>.cu instantiates this.
#pragma once

#include "backward.cuh"
#include "partials.cuh"

namespace logitless::cuda {

template <typename S>
int64_t split_columns(bool transformed) {
  return transformed ? Split<S, true>::kColumns : Split<S, false>::kColumns;
}

template <typename S>
int64_t block_columns() {
  return kBlockColumns<S>;
}

template <typename S>
void launch_partials(const PartialsArgs& args, bool extras, Stream stream) {
  const bool transformed = args.rows.transform.changes_logits();
  const auto kernel =
      transformed ? extras ? partials_kernel<S, true, true> : partials_kernel<S, true, false>
      : extras    ? partials_kernel<S, false, true>
                  : partials_kernel<S, false, false>;
  const int64_t warps = args.rows.n * args.splits;
  const int64_t blocks = (warps + kPartialWarps - 1) / kPartialWarps;
  launch("partials", kernel, blocks, kPartialThreads, stream, args);
}

template <typename S>
void launch_backward(const BackwardArgs& args, Stream stream) {
  const auto kernel =
      args.rows.transform.changes_logits() ? backward_kernel<S, true> : backward_kernel<S, false>;
  launch("backward", kernel, args.rows.n * args.blocks, kBackwardThreads, stream, args);
}

}  // namespace logitless::cuda

#define LOGITLESS_STORAGE(S)                                           \
  namespace logitless::cuda {                                          \
  template int64_t split_columns<S>(bool);                             \
  template int64_t block_columns<S>();                                 \
  template void launch_partials<S>(const PartialsArgs&, bool, Stream); \
  template void launch_backward<S>(const BackwardArgs&, Stream);       \
  }
