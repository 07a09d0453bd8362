#define LOGITLESS_ISA avx512
#include "token_steps.inl"
