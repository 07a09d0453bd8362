#include "gomp.h"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <cstdio>
#include <cstring>

namespace logitless::cpu {
namespace {

GompParallel symbol() {
  return reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
}

// Whether this process came from a fork and never called exec: the kernel's PF_FORKNOEXEC, in the
// ninth field of /proc/self/stat.
bool born_by_fork() {
  char text[512] = {};
  std::FILE* file = std::fopen("/proc/self/stat", "re");
  if (file == nullptr) return false;
  const size_t size = std::fread(text, 1, sizeof(text) - 1, file);
  std::fclose(file);
  text[size] = '\0';
  // the second field is a name in brackets, which may hold anything
  const char* name_end = std::strrchr(text, ')');
  unsigned flags = 0;
  return name_end != nullptr &&
         std::sscanf(name_end + 1, " %*c %*d %*d %*d %*d %*d %u", &flags) == 1 &&
         (flags & 0x40) != 0;
}

// In a forked child the pool's threads are gone, and the runtime waits for them for ever. Whether
// they had been started nobody tells, so a child never asks it. A later fork is told by a handler;
// an earlier one, of a process that had the runtime, has to be found out.
std::atomic<bool> forked{symbol() != nullptr && born_by_fork()};

// Of the thread that forks the child has a copy, and of that one only.
thread_local bool used = false;
bool lost = false;

const int fork_handler = pthread_atfork(nullptr, nullptr, [] {
  forked.store(true, std::memory_order_relaxed);
  lost |= used;
});

}  // namespace

GompParallel find_gomp() {
  static std::atomic<GompParallel> found{nullptr};
  if (forked.load(std::memory_order_relaxed)) return nullptr;
  GompParallel gomp = found.load(std::memory_order_relaxed);
  if (gomp == nullptr) {
    gomp = symbol();
    found.store(gomp, std::memory_order_relaxed);
  }
  used |= gomp != nullptr;
  return gomp;
}

bool gomp_may_be_lost() { return forked.load(std::memory_order_relaxed); }

bool gomp_is_lost() { return lost; }

}  // namespace logitless::cpu
