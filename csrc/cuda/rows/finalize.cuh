// From a row's state to its outputs: a thread a row.
#pragma once

#include <cuda/runtime/device.cuh>
#include <cuda/runtime/launch.cuh>

#include "kernels.h"

namespace logitless::cuda {

constexpr int kFinalizeThreads = 128;

LOGITLESS_DEVICE void write(const TensorView& out, int64_t row, double value) {
  if (out.data != nullptr) static_cast<float*>(out.data)[row] = static_cast<float>(value);
}

LOGITLESS_KERNEL(kFinalizeThreads, 8) finalize_kernel(const FinalizeArgs args) {
  const int64_t row = block_index() * kFinalizeThreads + threadIdx.x;
  if (row >= args.rows.n) return;
  TokenValues values{0, 0, 0};
  TokenExtras extras{0, 0, 0};
  int64_t argmax = -1;
  if (args.rows.active(row)) {
    const RowState state = args.state[row];
    RowError error = row_error(state.moments, args.rows.targets[row], args.vocab);
    values = token_values(state.moments, state.target, args.rows.scale_of(row));
    if (error == RowError::none && overflows<float>(values.lse)) error = RowError::overflow;
    if (error == RowError::none) {
      extras = token_extras(state.moments, values);
      argmax = static_cast<int64_t>(state.argmax);
    } else {
      values = {NAN, NAN, NAN};
      extras = {NAN, NAN, NAN};
      const int64_t name = args.row_ids != nullptr ? args.row_ids[row] : row;
      atomic_lower(args.error, name * 8 + static_cast<int64_t>(error));
    }
  }
  write(args.out.logp, row, values.logp);
  write(args.out.entropy, row, values.entropy);
  write(args.out.lse, row, values.lse);
  write(args.out.varentropy, row, extras.varentropy);
  write(args.out.sum_p2, row, extras.sum_p2);
  write(args.out.entropy_change, row, extras.entropy_change);
  if (args.out.argmax != nullptr) args.out.argmax[row] = argmax;
}

}  // namespace logitless::cuda
