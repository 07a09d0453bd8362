// A tile of 16-bit logits that came out of its product the other way round.
#pragma once

#include "../core/tensor_view.h"

namespace logitless::cpu {

// out[row, column] = tile[column, row]; both 16-bit, tile contiguous, out with contiguous rows.
void transpose_tile(const TensorView& tile, const TensorView& out, int threads);

}  // namespace logitless::cpu
