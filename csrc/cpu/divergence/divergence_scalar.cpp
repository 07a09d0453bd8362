#define LOGITLESS_ISA scalar  // the compiler's baseline: SSE2 on x86-64, NEON on Arm
#define LOGITLESS_VECTOR_BYTES 16
#include "divergence.inl"
