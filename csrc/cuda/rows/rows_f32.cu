#include "storage.cuh"

LOGITLESS_STORAGE(float)
