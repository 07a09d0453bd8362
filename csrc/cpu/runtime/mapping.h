// What the system lets be done with memory.
#pragma once

#include <cstdint>

namespace logitless::cpu {

// Whether a write to the bytes from `begin` up to `end` would end the process: those of a file that
// is mapped for reading, say. The pages of the two ends are asked about, 0.4 microseconds each; a
// page that is not there yet is made, as the write would. False where the system cannot tell.
bool refuses_writes(uintptr_t begin, uintptr_t end);

}  // namespace logitless::cpu
