// Rows on a CUDA device: what bound_rows.h needs of the device.
#pragma once

#include "../../cuda/topk/topk.h"
#include "../arrays/cuda_place.h"
#include "../bound_rows.h"

namespace logitless::bindings {

// cuda::workspace_bytes, of any sizes.
int64_t cuda_workspace_bytes(int64_t n, int64_t columns);

// A gradient of an output, float32 or float64, of n rows.
inline cuda::Upstream upstream_of(const std::optional<Array>& array, int64_t n) {
  if (!array) return {};
  return visit_real(*array, [&](auto, Dtype dtype) -> cuda::Upstream {
    return {data_of<const void>(*array, dtype, n), dtype};
  });
}

class CudaDevice {
 public:
  using TopKOf = CudaTopK;
  static constexpr const char* kWhere = "device";
  static constexpr bool kWideOutputs = false;

  explicit CudaDevice(int device) : device_(device), place_(cuda_place(device)) {}
  Place place() const { return place_; }
  int number() const { return device_; }
  int threads() const { return 1; }
  Dtype compute(Dtype) const { return Dtype::f32; }
  cuda::Stream queue(int64_t stream) const { return cuda_queue(device_, stream); }

  // Of a TopK that a call takes beside rows of this device.
  const TopK& kept(const CudaTopK& topk, int64_t n) const {
    check(topk.device() == device_, "topk must be on device ", device_, ", got ", topk.device());
    return topk.of_rows(n);
  }

  void forward(
      const logitless::Rows& rows,
      const Array& tile,
      int64_t start,
      bool extras,
      bool first,
      RowState* state,
      const CudaTopK* topk,
      const std::optional<Array>& workspace,
      int64_t stream
  ) const {
    check(workspace.has_value(), "workspace must be given on CUDA");
    const Array& memory = *workspace;
    check(memory->contiguous(), "workspace must be contiguous");
    if (tile->ndim > 0) cuda_workspace_bytes(rows.n, tile->shape[tile->ndim - 1]);
    const int64_t bytes = memory->size() * dtype_bytes(memory->dtype);
    const TopK* kept_here = topk == nullptr ? nullptr : &kept(*topk, rows.n);
    if (kept_here != nullptr) check_ids(tile, start, INT32_MAX, "topk");
    cuda::rows_forward(
        rows, tile.view(), start, extras, first, state, memory->data, bytes, queue(stream)
    );
    if (kept_here == nullptr) return;
    cuda::topk_capture(
        rows, tile.view(), start, first, state, memory->data, *kept_here, queue(stream)
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
    const auto of = [&](const auto& array) { return upstream_of(array, rows.n); };
    cuda::rows_gradient(
        rows, tile, start, state, of(g.logp), of(g.entropy), of(g.lse), out, queue(stream)
    );
  }

 private:
  int device_;
  Place place_;
};

using CudaRows = BoundRows<CudaDevice>;

}  // namespace logitless::bindings
