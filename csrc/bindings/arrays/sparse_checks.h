// What is checked of products with sparse rows, wherever the arrays are.
#pragma once

#include "../../core/topk.h"
#include "dlpack.h"

namespace logitless::bindings {

inline void check_rows_of_matrix(const Array& array) {
  const TensorView& view = array.view();
  check(view.ndim == 2, array.name(), " must be [n, H], got ", view.ndim, " dimensions");
  check(
      view.size() == 0 || view.shape[1] == 1 || view.strides[1] == 1,
      array.name(),
      " must have contiguous rows (last stride 1)"
  );
}

// Of two matrices, [n, H] each.
inline void check_same_width(const Array& dense, const Array& out) {
  check(
      dense->shape[1] == out->shape[1],
      out.name(),
      " must have as many columns as ",
      dense.name(),
      ", ",
      dense->shape[1],
      ", got ",
      out->shape[1]
  );
}

inline Economy economy_of(int64_t step, int64_t most, double enough, double slack) {
  check(step > 0, "step must be positive, got ", step);
  check(most > 0, "most must be positive, got ", most);
  check(enough >= 0, "enough must not be negative, got ", enough);
  check(slack >= 0, "slack must not be negative, got ", slack);
  return {step, most, enough, slack};
}

}  // namespace logitless::bindings
