#define LOGITLESS_ISA scalar
#define LOGITLESS_ISA_NAME "scalar"
#include "token_steps.inl"
