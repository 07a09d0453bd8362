// From a row's state to entropies and both KL: a thread a row.
#pragma once

#include <cuda/runtime/device.cuh>
#include <cuda/runtime/launch.cuh>

#include "divergence.h"

namespace logitless::cuda {

constexpr int kPairFinalizeThreads = 128;

struct PairFinalizeArgs {
  PairRows rows;
  const PairState* state;
  const int64_t* row_ids;
  PairOutputs out;
  int64_t* error;
};

LOGITLESS_DEVICE RowError pair_error(const PairState& state) {
  const RowError own = side_error(state.student);
  if (own != RowError::none || side_error(state.teacher) == RowError::none) return own;
  return RowError::teacher;
}

LOGITLESS_KERNEL(kPairFinalizeThreads, 4) pair_finalize_kernel(const PairFinalizeArgs args) {
  const int64_t row = block_index() * kPairFinalizeThreads + threadIdx.x;
  if (row >= args.rows.student.n) return;
  PairValues v = {};
  if (args.rows.student.active(row)) {
    const PairState state = args.state[row];
    const RowError error = pair_error(state);
    v = pair_values(state);
    if (error != RowError::none) {
      v = {NAN, NAN, NAN, NAN};
      const int64_t name = args.row_ids != nullptr ? args.row_ids[row] : row;
      atomic_lower(args.error, name * 8 + static_cast<int64_t>(error));
    }
  }
  const auto write = [&](const TensorView& out, double value) {
    static_cast<float*>(out.data)[row] = static_cast<float>(value);
  };
  write(args.out.entropy, v.entropy);
  write(args.out.teacher_entropy, v.teacher_entropy);
  write(args.out.reverse_kl, v.reverse_kl);
  write(args.out.forward_kl, v.forward_kl);
}

}  // namespace logitless::cuda
