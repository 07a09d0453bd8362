#include "../runtime/isa.h"
#include "rows.h"

namespace logitless::cpu {

namespace scalar {
extern const RowKernels row_kernels;
}
#if LOGITLESS_X86
namespace avx2 {
extern const RowKernels row_kernels;
}
namespace avx512 {
extern const RowKernels row_kernels;
}
namespace avx512_bf16 {
extern const RowKernels row_kernels;
}
#endif

const RowKernels& row_kernels() {
  static const RowKernels* const tables[kIsas] = {
      &scalar::row_kernels,
#if LOGITLESS_X86
      &avx2::row_kernels,
      &avx512::row_kernels,
      &avx512_bf16::row_kernels
#endif
  };
  return of_isa(tables);
}

}  // namespace logitless::cpu
