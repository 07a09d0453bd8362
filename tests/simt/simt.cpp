#include "simt.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <tuple>

#include "fiber.h"
#include "words.h"

namespace simt {
namespace {

// What a kernel may declare without asking for more, on every device.
constexpr size_t kSharedBytes = 48 * 1024;

// SplitMix64: small, and any seed will do.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  size_t below(size_t n) {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return static_cast<size_t>((z ^ (z >> 31)) % n);
  }

 private:
  uint64_t state_;
};

uint64_t seed_of_launch() {
  static std::atomic<uint64_t> launches{0};
  const char* seed = std::getenv("LOGITLESS_SIMT_SEED");
  return (seed ? std::strtoull(seed, nullptr, 10) : 0) * 0x2545F4914F6CDD1Du + launches++;
}

// A line a launch, into the file that the environment names: for tests that count them.
void log_launch(const char* kernel) {
  const char* file = std::getenv("LOGITLESS_SIMT_LOG");
  if (file == nullptr) return;
  std::ofstream(file, std::ios::app) << kernel << '\n';
}

// One launch: the block that runs now and everything about it.
class Launch {
 public:
  Launch(const char* kernel, dim3 grid, dim3 block, const std::function<void()>& body);
  void run();
  void yield() { leave(false); }
  uint64_t meet(const Arrival& arrival);
  SharedStorage& shared(const char* name, size_t n, size_t element_bytes, Where where);
  void touch(SharedStorage& storage, int64_t i, Access access, Where where);
  std::string place(const Thread& thread) const;

  const std::string kernel;
  const dim3 grid, block;

 private:
  static void entry();
  void leave(bool last) { fibers()[static_cast<size_t>(self->id)]->leave(last); }
  void run_block(dim3 index);
  void settle_block();
  void settle_warp(int warp, const Arrival& arrival);
  void settle(const Thread& thread);
  int width_of(int warp) const {
    return std::min(kWarp, static_cast<int>(threads_.size()) - warp * kWarp);
  }
  void release(Thread& thread, uint64_t result);
  uint64_t value_for(const Thread& thread, const Thread* warp, uint32_t comes) const;
  std::string deadlock() const;
  bool ordered(const Touch& before) const;
  static std::vector<std::unique_ptr<Fiber>>& fibers();

  const std::function<void()>& body_;
  Random random_;
  std::vector<Thread> threads_;
  std::vector<Thread*> ready_;
  int alive_ = 0;
  int64_t block_syncs_ = 0;
  std::vector<int64_t> warp_syncs_;
  std::map<std::tuple<std::string, int, std::string>, SharedStorage> shared_;
  size_t shared_bytes_ = 0;
  std::exception_ptr error_;
};

thread_local Launch* launch = nullptr;

Launch::Launch(const char* name, dim3 grid_, dim3 block_, const std::function<void()>& body)
    : kernel(name), grid(grid_), block(block_), body_(body), random_(seed_of_launch()) {
  const auto refuse = [&](const char* why) {
    throw Error(
        "kernel " + kernel + ": " + why + ", got grid " + text(grid) + " and block " + text(block)
    );
  };
  const uint64_t size = uint64_t{block.x} * block.y * block.z;
  if (size < 1 || size > 1024 || block.z > 64) refuse("a block has 1 to 1024 threads");
  if (grid.x < 1 || grid.x > 2147483647u) refuse("a grid is 1 to 2^31 - 1 blocks wide");
  if (grid.y < 1 || grid.y > 65535 || grid.z < 1 || grid.z > 65535) {
    refuse("a grid is 1 to 65535 blocks high and deep");
  }
  threads_.resize(size);
  while (fibers().size() < size) fibers().push_back(std::make_unique<Fiber>());
}

// Stacks outlive the launch: mapping them anew would cost more than most kernels.
std::vector<std::unique_ptr<Fiber>>& Launch::fibers() {
  static thread_local std::vector<std::unique_ptr<Fiber>> all;
  return all;
}

void Launch::run() {
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  std::vector<uint64_t> order(blocks);
  for (uint64_t i = 0; i < blocks; ++i) order[i] = i;
  for (uint64_t i = blocks; i > 1; --i) std::swap(order[i - 1], order[random_.below(i)]);
  for (const uint64_t i : order) {
    const uint64_t rest = i / grid.x;
    run_block(dim3(
        static_cast<unsigned>(i % grid.x),
        static_cast<unsigned>(rest % grid.y),
        static_cast<unsigned>(rest / grid.y)
    ));
  }
}

void Launch::run_block(dim3 index) {
  shared_.clear();
  shared_bytes_ = 0;
  block_syncs_ = 0;
  warp_syncs_.assign((threads_.size() + kWarp - 1) / kWarp, 0);
  ready_.clear();
  alive_ = static_cast<int>(threads_.size());
  for (size_t i = 0; i < threads_.size(); ++i) {
    Thread& t = threads_[i];
    t = Thread{};
    t.id = static_cast<int>(i);
    t.block = index;
    const auto id = static_cast<unsigned>(i);
    t.index = dim3(id % block.x, id / block.x % block.y, id / block.x / block.y);
    fibers()[i]->start(&Launch::entry);
    ready_.push_back(&t);
  }
  while (!ready_.empty()) {
    std::swap(ready_[random_.below(ready_.size())], ready_.back());
    Thread& t = *ready_.back();
    ready_.pop_back();
    self = &t;
    fibers()[static_cast<size_t>(t.id)]->enter();
    // What the others hold on their stacks is plain data: they are left where they stand.
    if (error_) std::rethrow_exception(error_);
    if (t.state == State::ready) {
      ready_.push_back(&t);
      continue;
    }
    if (t.state == State::exited) --alive_;
    settle(t);
  }
  if (alive_ > 0) throw Error(deadlock());
}

void Launch::entry() {
  fibers()[static_cast<size_t>(self->id)]->arrived();
  // a run, and those of later launches
  for (;;) {
    // The catch ends before the fiber leaves: exceptions in flight belong to the OS thread.
    std::exception_ptr error;
    try {
      launch->body_();
    } catch (...) {
      error = std::current_exception();
    }
    launch->error_ = std::move(error);
    self->state = State::exited;
    launch->leave(true);
  }
}

uint64_t Launch::meet(const Arrival& arrival) {
  Thread& me = *self;
  if (arrival.op != Op::barrier && (arrival.mask >> me.lane() & 1) == 0) {
    fail("is not among the lanes it names at " + text(arrival));
  }
  me.arrival = arrival;
  me.state = State::waiting;
  leave(false);
  return me.result;
}

void Launch::release(Thread& thread, uint64_t result) {
  thread.result = result;
  thread.state = State::ready;
  ready_.push_back(&thread);
}

// A barrier opens when every thread that has not exited stands at it, at the same line.
void Launch::settle_block() {
  if (!ready_.empty()) return;
  const Thread* first = nullptr;
  for (const Thread& t : threads_) {
    if (t.state == State::exited) continue;
    if (t.state != State::waiting || t.arrival.op != Op::barrier) return;
    if (first == nullptr) first = &t;
    if (!same(t.arrival, first->arrival)) throw Error(deadlock());
  }
  if (first == nullptr) return;
  ++block_syncs_;
  for (Thread& t : threads_) {
    if (t.state == State::waiting) release(t, 0);
  }
}

// Lanes meet when every lane named that has not exited waits there with the same mask.
void Launch::settle_warp(int warp, const Arrival& arrival) {
  Thread* const lanes = threads_.data() + warp * kWarp;
  const int width = width_of(warp);
  uint32_t comes = 0;
  bool whole_warp = true;
  for (int k = 0; k < width; ++k) {
    if (lanes[k].state == State::exited) continue;
    if ((arrival.mask >> k & 1) == 0) {
      whole_warp = false;
      continue;
    }
    if (lanes[k].state != State::waiting || !same(lanes[k].arrival, arrival)) return;
    comes |= uint32_t{1} << k;
  }
  uint64_t results[kWarp] = {};
  for (int k = 0; k < width; ++k) {
    if (comes >> k & 1) results[k] = value_for(lanes[k], lanes, comes);
  }
  // Only a meeting of the whole warp orders its accesses here: kernels need no finer one.
  if (arrival.op == Op::sync_warp && whole_warp) ++warp_syncs_[static_cast<size_t>(warp)];
  for (int k = 0; k < width; ++k) {
    if (comes >> k & 1) release(lanes[k], results[k]);
  }
}

// After a thread came to wait or left for good: whoever waited for that goes on.
void Launch::settle(const Thread& thread) {
  settle_block();
  if (thread.state == State::waiting) {
    if (thread.arrival.op != Op::barrier) settle_warp(thread.warp(), thread.arrival);
    return;
  }
  Thread* const lanes = threads_.data() + thread.warp() * kWarp;
  for (int k = 0; k < width_of(thread.warp()); ++k) {
    const bool meets = lanes[k].state == State::waiting && lanes[k].arrival.op != Op::barrier;
    if (meets) settle_warp(thread.warp(), Arrival(lanes[k].arrival));
  }
}

uint64_t Launch::value_for(const Thread& thread, const Thread* warp, uint32_t comes) const {
  const Arrival& a = thread.arrival;
  if (a.op == Op::vote) {
    uint64_t ballot = 0;
    for (int k = 0; k < kWarp; ++k) {
      if ((comes >> k & 1) != 0 && warp[k].arrival.bits != 0) ballot |= uint64_t{1} << k;
    }
    return ballot;
  }
  if (a.op != Op::shuffle) return 0;
  if (a.source < 0 || a.source >= kWarp || (comes >> a.source & 1) == 0) {
    throw Error(
        place(thread) + "reads lane " + std::to_string(a.source) +
        ", which does not take part, at " + text(a)
    );
  }
  return warp[a.source].arrival.bits;
}

std::string Launch::place(const Thread& thread) const {
  return "kernel " + kernel + ", block " + text(thread.block) + ", thread " +
         std::to_string(thread.id) + ": ";
}

// Who waits where, threads that wait alike together.
std::string Launch::deadlock() const {
  std::ostringstream out;
  out << "kernel " << kernel << ", block " << text(threads_[0].block)
      << ": divergent threads wait for ever:";
  for (size_t i = 0; i < threads_.size();) {
    const auto alike = [&](const Thread& t) {
      return t.state == threads_[i].state &&
             (t.state == State::exited || same(t.arrival, threads_[i].arrival));
    };
    size_t end = i + 1;
    while (end < threads_.size() && alike(threads_[end])) ++end;
    out << " threads " << i << "-" << end - 1 << " ";
    if (threads_[i].state == State::exited) {
      out << "exited;";
    } else {
      out << "at " << text(threads_[i].arrival) << ";";
    }
    i = end;
  }
  return out.str();
}

SharedStorage& Launch::shared(const char* name, size_t n, size_t element_bytes, Where where) {
  const auto [at, fresh] = shared_.try_emplace({where.file, where.line, name});
  SharedStorage& storage = at->second;
  if (fresh) {
    storage.name = name;
    storage.bytes.resize(n * element_bytes);
    storage.shadow.resize(n);
    shared_bytes_ += n * element_bytes;
    if (shared_bytes_ > kSharedBytes) {
      fail("more than 48 KiB of shared memory with array " + storage.name);
    }
  }
  return storage;
}

// By a barrier of the block, or for threads of one warp by a sync of the warp.
bool Launch::ordered(const Touch& before) const {
  if (before.thread == self->id || before.block_syncs < block_syncs_) return true;
  const int warp = before.thread / kWarp;
  return warp == self->warp() && before.warp_syncs < warp_syncs_[static_cast<size_t>(warp)];
}

void Launch::touch(SharedStorage& storage, int64_t i, Access access, Where where) {
  const auto n = static_cast<int64_t>(storage.shadow.size());
  const auto element = [&] { return storage.name + "[" + std::to_string(i) + "]"; };
  if (i < 0 || i >= n) {
    fail(
        "shared " + element() + " is out of bounds at " + text(where) + ": " + std::to_string(n) +
        " elements"
    );
  }
  SharedStorage::Shadow& shadow = storage.shadow[static_cast<size_t>(i)];
  const bool write = access != Access::read, atomic = access == Access::change;
  const auto race = [&](const std::vector<Touch>& others, const char* what) {
    for (const Touch& other : others) {
      if (ordered(other) || (atomic && other.atomic)) continue;
      fail(
          std::string("race on shared ") + element() + ": " + (write ? "written" : "read") +
          " at " + text(where) + ", " + what + " by thread " + std::to_string(other.thread) +
          " at " + text(other.where) + " with no barrier in between"
      );
    }
  };
  race(shadow.writes, "written");
  if (write) race(shadow.reads, "read");
  if (access != Access::write && !shadow.written) {
    fail("shared " + element() + " is read at " + text(where) + " before anyone wrote it");
  }
  const Touch touch{
      self->id, block_syncs_, warp_syncs_[static_cast<size_t>(self->warp())], where, atomic
  };
  // Accesses before the last barrier cannot conflict any more.
  std::vector<Touch>& list = write ? shadow.writes : shadow.reads;
  if (!list.empty() && list.front().block_syncs < block_syncs_) list.clear();
  const auto mine = std::find_if(list.begin(), list.end(), [&](const Touch& t) {
    return t.thread == touch.thread;
  });
  if (mine != list.end()) {
    const bool plain = !mine->atomic && mine->block_syncs == block_syncs_;
    *mine = touch;
    mine->atomic &= !plain;
  } else {
    list.push_back(touch);
  }
  shadow.written |= write;
}

Launch& running() {
  if (launch == nullptr) throw Error("device code was called outside of a kernel");
  return *launch;
}

}  // namespace

void run(const char* kernel, dim3 grid, dim3 block, const std::function<void()>& body) {
  log_launch(kernel);
  Launch current(kernel, grid, block, body);
  struct Reset {
    ~Reset() { launch = nullptr; }
  } reset;
  launch = &current;
  current.run();
}

dim3 grid_size() { return running().grid; }
dim3 block_size() { return running().block; }
void yield() { running().yield(); }
uint64_t meet(const Arrival& arrival) { return running().meet(arrival); }
void fail(const std::string& what) { throw Error(running().place(*self) + what); }

void check_aligned(const void* address, size_t bytes, const char* what, Where where) {
  if (reinterpret_cast<uintptr_t>(address) % bytes == 0) return;
  std::ostringstream out;
  out << what << " of " << bytes << " bytes at a misaligned address (" << text(where) << ")";
  fail(out.str());
}

SharedStorage& shared_storage(const char* name, size_t n, size_t element_bytes, Where where) {
  return running().shared(name, n, element_bytes, where);
}

void touch_shared(SharedStorage& storage, int64_t i, Access access, Where where) {
  yield();
  running().touch(storage, i, access, where);
}

}  // namespace simt
