#include "storage.cuh"

LOGITLESS_STORAGE(bf16)
