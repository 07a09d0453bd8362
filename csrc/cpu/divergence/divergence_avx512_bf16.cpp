#define LOGITLESS_ISA avx512_bf16  // AVX-512 and its bfloat16 stores
#define LOGITLESS_VECTOR_BYTES 64
#include "divergence.inl"
