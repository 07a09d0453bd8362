#define LOGITLESS_ISA avx2
#define LOGITLESS_ISA_NAME "avx2"
#include "token_steps.inl"
