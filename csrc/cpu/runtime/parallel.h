// One parallel loop for every CPU kernel.
#pragma once

#include "../../core/config.h"

namespace logitless::cpu {

constexpr int kMostThreads = 4096;

// Threads used when the caller names none: LOGITLESS_NUM_THREADS, else `otherwise`, else (0) the
// CPUs this process may run on.
int default_threads(int otherwise = 0);

// The most threads that worked on one loop since this was last asked; 0 without a loop.
int widest_team();

// Runs body(context, task) for task in [0, tasks) on up to `threads` threads.
// Threads take tasks as they become free, so a body may not depend on which runs it. What a body
// throws first is thrown here, once all threads have stopped; other tasks may then be left undone.
void run_parallel(int64_t tasks, int threads, void (*body)(void*, int64_t), void* context);

template <typename Fn>
void parallel_for(int64_t tasks, int threads, Fn&& fn) {
  run_parallel(
      tasks, threads, [](void* context, int64_t task) { (*static_cast<Fn*>(context))(task); }, &fn
  );
}

}  // namespace logitless::cpu
