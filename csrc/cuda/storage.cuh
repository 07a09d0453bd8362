// The kernels that read logits, for one storage type: each rows_<type>.cu instantiates this.
#pragma once

#include "backward.cuh"
#include "pieces.cuh"

namespace logitless::cuda {

template <typename S>
int64_t piece_columns(bool chained) {
  return chained ? Piece<S, true>::kColumns : Piece<S, false>::kColumns;
}

template <typename S>
int64_t block_columns() {
  return kBlockColumns<S>;
}

template <typename S>
void launch_pieces(const PiecesArgs& args, bool extras, Stream stream) {
  const bool chained = args.rows.chain.changes_logits();
  const auto kernel = chained
                          ? extras ? pieces_kernel<S, true, true> : pieces_kernel<S, true, false>
                      : extras ? pieces_kernel<S, false, true>
                               : pieces_kernel<S, false, false>;
  const int64_t warps = args.rows.n * args.pieces;
  const int64_t blocks = (warps + kPieceWarps - 1) / kPieceWarps;
  launch("pieces", kernel, blocks, kPieceThreads, stream, args);
}

template <typename S>
void launch_backward(const BackwardArgs& args, Stream stream) {
  const auto kernel =
      args.rows.chain.changes_logits() ? backward_kernel<S, true> : backward_kernel<S, false>;
  launch("backward", kernel, args.rows.n * args.blocks, kBackwardThreads, stream, args);
}

}  // namespace logitless::cuda

#define LOGITLESS_STORAGE(S)                                       \
  namespace logitless::cuda {                                      \
  template int64_t piece_columns<S>(bool);                         \
  template int64_t block_columns<S>();                             \
  template void launch_pieces<S>(const PiecesArgs&, bool, Stream); \
  template void launch_backward<S>(const BackwardArgs&, Stream);   \
  }
