// The instruction set that the kernels run on: the best this CPU has, or the one LOGITLESS_ISA
// names.
#pragma once

namespace logitless::cpu {

// In ascending order: the index of an instruction set in a table of kernels.
enum class Isa { scalar, avx2, avx512, avx512_bf16 };

// An error where LOGITLESS_ISA names one that cannot run here.
Isa chosen_isa();
const char* isa_name(Isa isa);
// Names of the instruction sets this build holds and this CPU runs, best first, comma separated.
const char* supported_isas();

#if LOGITLESS_X86
constexpr int kIsas = 4;
#else
constexpr int kIsas = 1;
#endif

template <typename Kernels>
const Kernels& of_isa(const Kernels* const (&tables)[kIsas]) {
  return *tables[static_cast<int>(chosen_isa())];
}

}  // namespace logitless::cpu
