// Picks the row kernels once: the best instruction set this CPU runs, or the one LOGITLESS_ISA
// names.
#include <cstdlib>
#include <string>

#include "../core/check.h"
#include "rows.h"
#include "token_steps.h"

namespace logitless::cpu {

namespace scalar {
extern const RowKernels kernels;
extern const TokenKernels token_kernels;
}  // namespace scalar
#if LOGITLESS_X86
namespace avx2 {
extern const RowKernels kernels;
extern const TokenKernels token_kernels;
}  // namespace avx2
namespace avx512 {
extern const RowKernels kernels;
extern const TokenKernels token_kernels;
}  // namespace avx512
namespace avx512_bf16 {
extern const RowKernels kernels;
}
#endif

namespace {

struct Candidate {
  const RowKernels* kernels;
  const TokenKernels* tokens;
  bool runs;
};

// Best first.
const Candidate* candidates(int* count) {
#if LOGITLESS_X86
  __builtin_cpu_init();
  static const bool has_avx512 =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  static const Candidate list[] = {
      {&avx512_bf16::kernels,
       &avx512::token_kernels,
       has_avx512 && __builtin_cpu_supports("avx512bf16")},
      {&avx512::kernels, &avx512::token_kernels, has_avx512},
      {&avx2::kernels,
       &avx2::token_kernels,
       __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
      {&scalar::kernels, &scalar::token_kernels, true}
  };
#else
  static const Candidate list[] = {{&scalar::kernels, &scalar::token_kernels, true}};
#endif
  *count = sizeof(list) / sizeof(list[0]);
  return list;
}

}  // namespace

const char* supported_isas() {
  static const std::string names = [] {
    int count;
    const Candidate* list = candidates(&count);
    std::string joined;
    for (int i = 0; i < count; ++i) {
      if (list[i].runs) joined += (joined.empty() ? "" : ",") + std::string(list[i].kernels->isa);
    }
    return joined;
  }();
  return names.c_str();
}

namespace {

const Candidate& candidate() {
  int count;
  const Candidate* list = candidates(&count);
  const char* wanted = std::getenv("LOGITLESS_ISA");
  const bool automatic = wanted == nullptr || *wanted == '\0';
  for (int i = 0; i < count; ++i) {
    if (list[i].runs && (automatic || std::string(wanted) == list[i].kernels->isa)) return list[i];
  }
  check(
      false, "LOGITLESS_ISA must be one of ", supported_isas(), " on this CPU, got '", wanted, "'"
  );
  return list[count - 1];
}

}  // namespace

const RowKernels& row_kernels() { return *candidate().kernels; }
const TokenKernels& token_kernels() { return *candidate().tokens; }

}  // namespace logitless::cpu
