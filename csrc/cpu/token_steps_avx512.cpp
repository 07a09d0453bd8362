#define LOGITLESS_ISA avx512
#define LOGITLESS_ISA_NAME "avx512"
#include "token_steps.inl"
