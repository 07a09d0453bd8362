#include "../runtime/isa.h"
#include "token_steps.h"

namespace logitless::cpu {

namespace scalar {
extern const TokenKernels token_kernels;
}
#if LOGITLESS_X86
namespace avx2 {
extern const TokenKernels token_kernels;
}
namespace avx512 {
extern const TokenKernels token_kernels;
}
#endif

const TokenKernels& token_kernels() {
  static const TokenKernels* const tables[kIsas] = {
      &scalar::token_kernels,
#if LOGITLESS_X86
      &avx2::token_kernels,
      &avx512::token_kernels,
      &avx512::token_kernels  // no token has 16 bits
#endif
  };
  return of_isa(tables);
}

}  // namespace logitless::cpu
