#define LOGITLESS_ISA avx2
#include "token_steps.inl"
