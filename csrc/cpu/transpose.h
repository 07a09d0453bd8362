// Tiles of 16-bit numbers turned over for the product that wants them so.
#pragma once

#include "../core/tensor_view.h"

namespace logitless::cpu {

// out [width, n] = tile [n, width] transposed; both contiguous, of 16-bit elements.
//
// oneDNN multiplies a transposed left operand of 16 bits at half the speed of a plain one (1024 x
// 151936 x 1024 bfloat16 on two cores with AMX: 331 and 157 ms), and this takes a tenth of that.
void transpose(const TensorView& tile, const TensorView& out, int threads);

}  // namespace logitless::cpu
