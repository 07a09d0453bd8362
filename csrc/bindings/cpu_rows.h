// Rows on the CPU: what bound_rows.h needs of the device.
#pragma once

#include "../cpu/topk/topk.h"
#include "bound_rows.h"

namespace logitless::bindings {

class CpuDevice {
 public:
  using TopKOf = CpuTopK;
  static constexpr const char* kWhere = "threads";
  static constexpr bool kWideOutputs = true;

  explicit CpuDevice(int threads) : threads_(threads_of(threads)) {}
  Place place() const { return {}; }
  int threads() const { return threads_; }
  Dtype compute(Dtype tile) const { return tile == Dtype::f64 ? Dtype::f64 : Dtype::f32; }

  void forward(
      const logitless::Rows& rows,
      const Array& tile,
      int64_t start,
      bool extras,
      bool first,
      RowState* state,
      const CpuTopK* topk,
      const std::optional<Array>& workspace,
      int64_t stream
  ) const {
    refuse(!workspace, stream, "workspace");
    if (topk == nullptr) {
      return cpu::rows_forward(rows, tile.view(), start, extras, first, state);
    }
    check_ids(tile, start, INT32_MAX, "topk");
    const cpu::TopKObserver observer(
        first ? topk->of_rows(rows.n) : topk->filled(rows.n, topk->capacity())
    );
    cpu::rows_forward(rows, tile.view(), start, extras, first, state, &observer);
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
    refuse(!error, stream, "error");
    cpu::rows_finalize(rows, state, vocab, row_ids, out);
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
    refuse(true, stream, "");
    const auto of = [&](const std::optional<Array>& array) {
      return data_of<const double>(array, Dtype::f64, rows.n);
    };
    cpu::rows_gradient(rows, tile, start, state, of(g.logp), of(g.entropy), of(g.lse), out);
  }

 private:
  static void refuse(bool absent, int64_t stream, const char* name) {
    check(absent, name, " must be None on the CPU");
    check(stream == 0, "stream must be 0 on the CPU, got ", stream);
  }

  int threads_;
};

using CpuRows = BoundRows<CpuDevice>;

}  // namespace logitless::bindings
