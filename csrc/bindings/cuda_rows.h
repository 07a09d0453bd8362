// Rows on a CUDA device: what bound_rows.h needs of it.
#pragma once

#include "../cuda/rows/rows.h"
#include "bound_rows.h"

namespace logitless::bindings {

// cuda::workspace_bytes, of any sizes.
inline int64_t workspace_of(int64_t n, int64_t columns) {
  int64_t bytes = 0;
  const int64_t splits = columns / cuda::kSmallestSplit + 1;
  const bool wraps = __builtin_mul_overflow(n, splits, &bytes) ||
                     __builtin_mul_overflow(bytes, int64_t{sizeof(cuda::Partial)}, &bytes);
  check(!wraps, "a tile of ", n, " rows and ", columns, " columns is larger than any memory");
  return cuda::workspace_bytes(n, columns);
}

// A gradient of rows, of float32 or float64.
inline cuda::Upstream upstream_of(const std::optional<Array>& array, int64_t n) {
  if (!array) return {};
  return visit_real(*array, [&](auto, Dtype dtype) -> cuda::Upstream {
    return {data_of<const void>(*array, dtype, n), dtype};
  });
}

class CudaDevice {
 public:
  static constexpr const char* kWhere = "device";
  static constexpr bool kWideOutputs = false;

  explicit CudaDevice(int device) : device_(device) {
    if (!cuda::build_info().compiled) throw std::runtime_error(cuda::device_reason(device));
  }
  int device() const { return device_; }
  cuda::Stream queue(int64_t stream) const { return {device_, reinterpret_cast<void*>(stream)}; }
  // The caller works on the stream that a call names, so no array waits for another stream. The
  // emulator's device arrays are those of the CPU.
  Place place() const { return cuda::build_info().emulated ? Place{} : Place{device_, -1}; }
  int threads() const { return 1; }
  Dtype compute(Dtype) const { return Dtype::f32; }

  void forward(
      const logitless::Rows& rows,
      const Array& tile,
      int64_t start,
      bool extras,
      bool first,
      RowState* state,
      const TopKArrays* topk,
      const std::optional<Array>& workspace,
      int64_t stream
  ) const {
    check(topk == nullptr, "topk must be None on CUDA, where no kernel keeps the largest logits");
    check(workspace.has_value(), "workspace must be given on CUDA");
    const Array& memory = *workspace;
    check(memory->contiguous(), "workspace must be contiguous");
    if (tile->ndim > 0) workspace_of(rows.n, tile->shape[tile->ndim - 1]);
    const int64_t bytes = memory->size() * dtype_bytes(memory->dtype);
    cuda::rows_forward(
        rows, tile.view(), start, extras, first, state, memory->data, bytes, queue(stream)
    );
  }

  void finalize(
      const logitless::Rows& rows,
      const RowState* state,
      int64_t vocab,
      const int64_t* row_ids,
      const RowOutputs& out,
      const std::optional<Array>& error,
      int64_t stream
  ) const {
    check(error.has_value(), "error must be given on CUDA");
    auto* lowest = data_of<int64_t>(error, Dtype::i64, 1);
    cuda::rows_finalize(rows, state, vocab, row_ids, out, lowest, queue(stream));
  }

  void gradient(
      const logitless::Rows& rows,
      const TensorView& tile,
      int64_t start,
      const RowState* state,
      const UpstreamArrays& g,
      const TensorView& out,
      int64_t stream
  ) const {
    const auto of = [&](const std::optional<Array>& array) { return upstream_of(array, rows.n); };
    cuda::rows_gradient(
        rows, tile, start, state, of(g.logp), of(g.entropy), of(g.lse), out, queue(stream)
    );
  }

 private:
  int device_;
};

using CudaRows = BoundRows<CudaDevice>;

}  // namespace logitless::bindings
