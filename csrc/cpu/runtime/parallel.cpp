#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif

#include "../../core/check.h"
#include "gomp.h"

namespace logitless::cpu {
namespace {

// Neighbours that a thread takes in one go, since they share cache lines of what they write; no
// more than lie in a few lines, for masked rows cost nothing and may lie together.
constexpr int64_t kTogether = 16;

struct Loop {
  std::atomic<int64_t> next{0};
  int64_t tasks;
  int threads;
  void (*body)(void*, int64_t);
  void* context;
  std::atomic<int> team{0};
  // What a body threw first. No exception may leave a thread of a team, so the caller gets it once
  // all have stopped.
  std::atomic<bool> failed{false};
  std::exception_ptr error;
};

void take_tasks(Loop& loop) {
  for (;;) {
    // at the end one by one, to even out what took longer
    int64_t task = loop.next.load(std::memory_order_relaxed), stop;
    do {
      if (task >= loop.tasks) return;
      stop = task + std::clamp<int64_t>((loop.tasks - task) / (4 * loop.threads), 1, kTogether);
    } while (!loop.next.compare_exchange_weak(task, stop, std::memory_order_relaxed));
    for (; task < stop; ++task) loop.body(loop.context, task);
  }
}

void work(void* data) {
  auto& loop = *static_cast<Loop*>(data);
  loop.team.fetch_add(1, std::memory_order_relaxed);
  try {
    take_tasks(loop);
  } catch (...) {
    if (!loop.failed.exchange(true)) loop.error = std::current_exception();
    // nobody takes another task
    loop.next.store(loop.tasks, std::memory_order_relaxed);
  }
}

// As many threads as the system grants: those there are take the tasks of those that it refuses.
void run_team(Loop& loop) {
  std::vector<std::thread> team;
  try {
    team.reserve(static_cast<size_t>(loop.threads - 1));
    for (int i = 1; i < loop.threads; ++i) team.emplace_back(work, &loop);
  } catch (const std::system_error&) {
  } catch (const std::bad_alloc&) {
  }
  work(&loop);
  for (auto& thread : team) thread.join();
}

std::atomic<int> widest{0};

void remember(int team) {
  int before = widest.load(std::memory_order_relaxed);
  while (before < team && !widest.compare_exchange_weak(before, team, std::memory_order_relaxed)) {
  }
}

int visible_cpus() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  const int n = static_cast<int>(std::thread::hardware_concurrency());
  return n > 0 ? n : 1;
}

}  // namespace

int default_threads(int otherwise) {
  const char* text = std::getenv("LOGITLESS_NUM_THREADS");
  if (text == nullptr || *text == '\0') return otherwise > 0 ? otherwise : visible_cpus();
  char* end = nullptr;
  const long n = std::strtol(text, &end, 10);
  check(
      *end == '\0' && n >= 1 && n <= kMostThreads,
      "LOGITLESS_NUM_THREADS must be a whole number from 1 to ",
      kMostThreads,
      ", got '",
      text,
      "'"
  );
  return static_cast<int>(n);
}

int widest_team() { return widest.exchange(0, std::memory_order_relaxed); }

void run_parallel(int64_t tasks, int threads, void (*body)(void*, int64_t), void* context) {
  if (threads > tasks) threads = static_cast<int>(tasks);
  if (threads <= 1) {
    remember(1);
    for (int64_t task = 0; task < tasks; ++task) body(context, task);
    return;
  }
  Loop loop;
  loop.tasks = tasks;
  loop.threads = threads;
  loop.body = body;
  loop.context = context;
  // torch on Linux runs on GNU OpenMP, whose workers spin for milliseconds after each product. A
  // second pool would fight them for the same cores, so where that runtime is its team does our
  // loop.
  if (GompParallel gomp = find_gomp()) {
    gomp(work, &loop, static_cast<unsigned>(threads), 0);
  } else {
    run_team(loop);
  }
  remember(loop.team.load(std::memory_order_relaxed));
  if (loop.error) std::rethrow_exception(loop.error);
}

}  // namespace logitless::cpu
