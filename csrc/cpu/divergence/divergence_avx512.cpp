#define LOGITLESS_ISA avx512  // F, BW, DQ, VL
#define LOGITLESS_VECTOR_BYTES 64
#include "divergence.inl"
