// A device thread's stack, and the switches to it and back.
//
// Under the sanitizer, which is told about each switch, swapcontext makes them. It calls the system
// twice a switch, to keep the signal mask. Without the sanitizer setcontext only starts a stack,
// jumps of the compiler make the switches, and a run that has ended leaves its stack to the next.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <cstddef>
#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {

// Frames grow several times over under a sanitizer.
constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kGuardBytes = 64 * 1024;

// A stack with its own thread of control; overflow runs into a page that cannot be touched.
class Fiber {
 public:
  Fiber() {
    void* memory = mmap(
        nullptr,
        kStackBytes + kGuardBytes,
        PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
        -1,
        0
    );
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<char*>(memory);
    mprotect(memory_, kGuardBytes, PROT_NONE);
  }
  ~Fiber() { munmap(memory_, kStackBytes + kGuardBytes); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The stack of an abandoned run may be reused: what it held needs no clean-up but the poison.
  void start(void (*entry)()) {
#ifdef __SANITIZE_ADDRESS__
    ASAN_UNPOISON_MEMORY_REGION(stack(), kStackBytes);
    fake_ = nullptr;
#else
    if (at_end_) return;
    fresh_ = true;
#endif
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack();
    context_.uc_stack.ss_size = kStackBytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
    // Else the sanitizer wipes its knowledge of this stack at every switch.
    context_.uc_stack.ss_size = 0;
  }
  // Scheduler: continue this fiber until it leaves.
  void enter() {
#ifdef __SANITIZE_ADDRESS__
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stack(), kStackBytes);
    swapcontext(&home_, &context_);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    at_end_ = false;
    if (__builtin_setjmp(home_) != 0) return;
    if (!fresh_) jump(here_);
    fresh_ = false;
    setcontext(&context_);
#endif
  }
  // Fiber: its first words.
  void arrived() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake_, &home_stack_, &home_bytes_);
#endif
  }
  // Fiber: back to the scheduler; `last`: at the end of the run, from where the next one goes on.
  void leave(bool last) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(last ? nullptr : &fake_, home_stack_, home_bytes_);
    swapcontext(&context_, &home_);
    arrived();
#else
    at_end_ = last;
    if (__builtin_setjmp(here_) == 0) jump(home_);
#endif
  }

 private:
  char* stack() const { return memory_ + kGuardBytes; }
  char* memory_;
  ucontext_t context_{};
#ifdef __SANITIZE_ADDRESS__
  ucontext_t home_{};
  void* fake_ = nullptr;
  const void* home_stack_ = nullptr;
  size_t home_bytes_ = 0;
#else
  // A function may not jump to where it is itself.
  [[noreturn, gnu::noinline]] static void jump(void** where) { __builtin_longjmp(where, 1); }

  void *home_[5]{}, *here_[5]{};
  bool fresh_ = false, at_end_ = false;
#endif
};

}  // namespace simt
