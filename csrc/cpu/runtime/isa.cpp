#include "isa.h"

#include <cstdlib>
#include <string>

#include "../../core/check.h"

namespace logitless::cpu {
namespace {

constexpr const char* kNames[] = {"scalar", "avx2", "avx512", "avx512_bf16"};

bool runs(Isa isa) {
  if (isa == Isa::scalar) return true;
#if LOGITLESS_X86
  __builtin_cpu_init();
  static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  static const bool has_avx512 =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (isa == Isa::avx2) return has_avx2;
  if (isa == Isa::avx512) return has_avx512;
  return has_avx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

const char* supported_isas() {
  static const std::string names = [] {
    std::string joined;
    for (int i = kIsas - 1; i >= 0; --i) {
      if (runs(static_cast<Isa>(i))) joined += (joined.empty() ? "" : ",") + std::string(kNames[i]);
    }
    return joined;
  }();
  return names.c_str();
}

Isa chosen_isa() {
  const char* wanted = std::getenv("LOGITLESS_ISA");
  const bool automatic = wanted == nullptr || *wanted == '\0';
  for (int i = kIsas - 1; i >= 0; --i) {
    const bool named = automatic || std::string(wanted) == kNames[i];
    if (named && runs(static_cast<Isa>(i))) return static_cast<Isa>(i);
  }
  check(
      false, "LOGITLESS_ISA must be one of ", supported_isas(), " on this CPU, got '", wanted, "'"
  );
  return Isa::scalar;
}

}  // namespace logitless::cpu
