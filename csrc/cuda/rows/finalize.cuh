// From a row's state to its outputs: a thread a row.
#pragma once

#include <cuda/runtime/device.cuh>
#include <cuda/runtime/launch.cuh>

#include "kernels.h"

namespace logitless::cuda {

constexpr int kFinalizeThreads = 128;

struct Write {
  bool bad;

  LOGITLESS_HD void operator()(const TensorView& out, int64_t row, double value) const {
    if (out.data != nullptr)
      static_cast<float*>(out.data)[row] = bad ? NAN : static_cast<float>(value);
  }
};

LOGITLESS_KERNEL(kFinalizeThreads, 8) finalize_kernel(const FinalizeArgs args) {
  const int64_t row = block_index() * kFinalizeThreads + threadIdx.x;
  if (row >= args.rows.n) return;
  TokenValues values{};
  TokenExtras extras{};
  RowError error = RowError::none;
  int64_t argmax = -1;
  if (args.rows.active(row)) {
    const RowState state = args.state[row];
    error = row_error(state.moments, args.rows.targets[row], args.vocab);
    // a row over a set has seen no logit of a target outside of it
    if (error == RowError::none && state.target != state.target) error = RowError::target;
    values = token_values(state.moments, state.target, args.rows.scale_of(row));
    if (error == RowError::none && overflows<float>(values.lse)) error = RowError::overflow;
    if (error == RowError::none) {
      extras = token_extras(state.moments, values);
      argmax = static_cast<int64_t>(state.argmax);
    } else {
      const int64_t name = args.row_ids != nullptr ? args.row_ids[row] : row;
      atomic_lower(args.error, name * 8 + static_cast<int64_t>(error));
    }
  }
  write_row(args.out, row, values, extras, Write{error != RowError::none});
  if (args.out.argmax != nullptr) args.out.argmax[row] = argmax;
}

}  // namespace logitless::cuda
