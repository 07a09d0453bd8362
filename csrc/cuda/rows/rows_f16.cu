#include "storage.cuh"

LOGITLESS_STORAGE(f16)
