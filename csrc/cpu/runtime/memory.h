// Large buffers that one call lets go of and the next one wants again: logits and gradients.
#pragma once

#include <cstdint>

namespace logitless::cpu {

// Fresh pages cost more than what is done with them: of 311 MB of logits 110 to 420 ms in a virtual
// machine, where the product that fills them takes 150. So memory is handed from call to call: at
// most kSpares blocks wait, in huge pages where the system has them, and marked as its own to take
// back when it runs short, which costs 0.1 ms and, if it takes nothing, nothing later.
constexpr int kSpares = 4;

struct Block {
  void* data = nullptr;
  int64_t bytes = 0;
};

// At least `bytes` of whatever was there; throws std::bad_alloc. A spare block serves if it is not
// more than twice as large.
Block take_memory(int64_t bytes);
// Makes it a spare; the oldest of too many goes back to the system.
void give_memory(Block block) noexcept;

int64_t spare_bytes();
// Hands every spare back to the system; how many bytes that were.
int64_t release_memory();

}  // namespace logitless::cpu
