#define LOGITLESS_ISA avx2  // with FMA
#define LOGITLESS_VECTOR_BYTES 32
#include "divergence.inl"
