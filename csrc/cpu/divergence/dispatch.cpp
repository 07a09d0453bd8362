#include "../runtime/isa.h"
#include "divergence.h"

namespace logitless::cpu {

namespace scalar {
extern const PairKernels pair_kernels;
}
#if LOGITLESS_X86
namespace avx2 {
extern const PairKernels pair_kernels;
}
namespace avx512 {
extern const PairKernels pair_kernels;
}
namespace avx512_bf16 {
extern const PairKernels pair_kernels;
}
#endif

const PairKernels& pair_kernels() {
  static const PairKernels* const tables[kIsas] = {
      &scalar::pair_kernels,
#if LOGITLESS_X86
      &avx2::pair_kernels,
      &avx512::pair_kernels,
      &avx512_bf16::pair_kernels
#endif
  };
  return of_isa(tables);
}

}  // namespace logitless::cpu
