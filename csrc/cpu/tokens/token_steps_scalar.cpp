#define LOGITLESS_ISA scalar
#include "token_steps.inl"
