// The storage types that kernels of rows of logits are compiled for.
#pragma once

#include "../../core/check.h"
#include "../../core/dtype.h"

namespace logitless::cuda {

// Calls fn(type_tag<S>{}) for the storage types that the kernels know.
template <typename Fn>
void visit_storage(Dtype dtype, const char* name, Fn&& fn) {
  switch (dtype) {
    case Dtype::f32: return fn(type_tag<float>{});
    case Dtype::bf16: return fn(type_tag<bf16>{});
    case Dtype::f16: return fn(type_tag<f16>{});
    default: break;
  }
  check(false, name, " must be float32, bfloat16 or float16 on CUDA, got ", dtype_name(dtype));
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace logitless::cuda
