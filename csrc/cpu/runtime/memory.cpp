#include "memory.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <mutex>
#include <new>
#include <vector>

namespace logitless::cpu {
namespace {

// Of a huge page on x86-64, and on 64-bit Arm with pages of 4 KiB.
constexpr int64_t kPage = int64_t{2} << 20;

struct Spares {
  std::mutex mutex;
  std::vector<Block> blocks;  // oldest first
};

// Never destroyed: tensors may give their memory back while the process ends.
Spares& spares() {
  static Spares& instance = *new Spares;
  return instance;
}

// A fork may come while another thread holds the lock, and in the child nobody would release it.
const int fork_handler = pthread_atfork(
    [] { spares().mutex.lock(); }, [] { spares().mutex.unlock(); }, [] { spares().mutex.unlock(); }
);

void unmap(const Block& block) { munmap(block.data, static_cast<size_t>(block.bytes)); }

// Starts at a huge page, or the first and the last 2 MiB could not be one.
Block map(int64_t bytes) {
  const size_t size = static_cast<size_t>(bytes + kPage);
  void* start = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) throw std::bad_alloc();
  char* first = static_cast<char*>(start);
  const int64_t skipped = (kPage - reinterpret_cast<intptr_t>(first) % kPage) % kPage;
  if (skipped > 0) munmap(first, static_cast<size_t>(skipped));
  char* data = first + skipped;
  munmap(data + bytes, static_cast<size_t>(kPage - skipped));
#ifdef MADV_HUGEPAGE
  madvise(data, static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
  return {data, bytes};
}

}  // namespace

Block take_memory(int64_t bytes) {
  const int64_t wanted = std::max((bytes + kPage - 1) / kPage, int64_t{1}) * kPage;
  {
    Spares& all = spares();
    const std::lock_guard<std::mutex> lock(all.mutex);
    auto best = all.blocks.end();
    for (auto it = all.blocks.begin(); it != all.blocks.end(); ++it) {
      const bool fits = it->bytes >= wanted && it->bytes <= 2 * wanted;
      if (fits && (best == all.blocks.end() || it->bytes < best->bytes)) best = it;
    }
    if (best != all.blocks.end()) {
      const Block block = *best;
      all.blocks.erase(best);
      return block;
    }
  }
  return map(wanted);
}

void give_memory(Block block) noexcept {
#ifdef MADV_FREE
  madvise(block.data, static_cast<size_t>(block.bytes), MADV_FREE);
#endif
  Spares& all = spares();
  const std::lock_guard<std::mutex> lock(all.mutex);
  try {
    all.blocks.push_back(block);
  } catch (const std::bad_alloc&) {
    unmap(block);
    return;
  }
  if (all.blocks.size() > static_cast<size_t>(kSpares)) {
    unmap(all.blocks.front());
    all.blocks.erase(all.blocks.begin());
  }
}

int64_t spare_bytes() {
  Spares& all = spares();
  const std::lock_guard<std::mutex> lock(all.mutex);
  int64_t bytes = 0;
  for (const Block& block : all.blocks) bytes += block.bytes;
  return bytes;
}

int64_t release_memory() {
  Spares& all = spares();
  const std::lock_guard<std::mutex> lock(all.mutex);
  int64_t bytes = 0;
  for (const Block& block : all.blocks) {
    bytes += block.bytes;
    unmap(block);
  }
  all.blocks.clear();
  return bytes;
}

}  // namespace logitless::cpu
