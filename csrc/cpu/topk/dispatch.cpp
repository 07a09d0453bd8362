#include "../runtime/isa.h"
#include "kernels.h"

namespace logitless::cpu {

namespace scalar {
extern const TopKKernels topk_kernels;
}
#if LOGITLESS_X86
namespace avx2 {
extern const TopKKernels topk_kernels;
}
namespace avx512 {
extern const TopKKernels topk_kernels;
}
namespace avx512_bf16 {
extern const TopKKernels topk_kernels;
}
#endif

const TopKKernels& topk_kernels() {
  static const TopKKernels* const tables[kIsas] = {
      &scalar::topk_kernels,
#if LOGITLESS_X86
      &avx2::topk_kernels,
      &avx512::topk_kernels,
      &avx512_bf16::topk_kernels
#endif
  };
  return of_isa(tables);
}

}  // namespace logitless::cpu
