#include "../../core/check.h"
#include "../../core/dtype.h"

namespace logitless {

[[noreturn]] void fail_dtype(const char* what, Dtype got) {
  check(false, what, " must be float32, bfloat16, float16 or float64, got ", dtype_name(got));
  throw std::logic_error("not reached");
}

}  // namespace logitless
