// Tiles of 16-bit numbers turned over for the product that wants them so.
#pragma once

#include "../../core/tensor_view.h"

namespace logitless::cpu {

// Whether products of bfloat16 are made of AMX tiles here, which oneDNN feeds at half the speed
// from a transposed left operand: 331 ms against 157 for 1024 x 151936 x 1024 on two cores, of
// which transpose() takes 34. With AVX-512 alone both take the same, and without it a product of
// plain operands can fall into a loop of scalars.
bool prefer_transposed_gemm();

// out [width, n] = tile [n, width] transposed; both contiguous, of 16-bit elements.
void transpose(const TensorView& tile, const TensorView& out, int threads);

}  // namespace logitless::cpu
