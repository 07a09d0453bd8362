#include "mapping.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#endif

namespace logitless::cpu {

#if defined(__linux__)
namespace {

// Of Linux 5.14; older headers lack the names.
constexpr int kPopulateRead = 22, kPopulateWrite = 23;

bool page_refuses_writes(uintptr_t page, uintptr_t size) {
  void* start = reinterpret_cast<void*>(page);
  if (madvise(start, size, kPopulateWrite) == 0) return false;
  // beyond the end of its file
  if (errno == EFAULT) return true;
  // Not allowed, or an advice that this system does not know: the other one would fail alike.
  return errno == EINVAL && madvise(start, size, kPopulateRead) == 0;
}

}  // namespace

bool refuses_writes(uintptr_t begin, uintptr_t end) {
  if (begin == end) return false;
  static const auto size = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = begin / size * size, last = (end - 1) / size * size;
  const int error = errno;
  const bool refused =
      page_refuses_writes(first, size) || (last != first && page_refuses_writes(last, size));
  errno = error;
  return refused;
}
#else
bool refuses_writes(uintptr_t, uintptr_t) { return false; }
#endif

}  // namespace logitless::cpu
