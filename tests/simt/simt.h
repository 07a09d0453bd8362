// A SIMT machine for tests: runs the blocks of a kernel one after another on the CPU, each device
// thread a fiber, and turns what a GPU would forgive or hang on into an error.
//
// LOGITLESS_SIMT_SEED (an integer, default 0) picks the order: of blocks, and of the threads of a
// block, which may change at every barrier, shuffle, atomic and access of shared memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace simt {

constexpr int kWarp = 32;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The place in the kernel's source that called; as a default argument it is the caller's.
struct Where {
  const char* file;
  int line;
  static constexpr Where here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

enum class Op : uint8_t { barrier, sync_warp, shuffle, vote };

// What a thread brings to a meeting with other threads, and waits with.
struct Arrival {
  Op op;
  uint32_t mask;  // lanes of the warp; unused at a barrier
  Where where;
  uint64_t bits;  // the value offered to other lanes; a vote: 0 or 1
  int source;     // a shuffle: the lane to read
};

enum class State : uint8_t { ready, waiting, exited };

struct Thread {
  dim3 index, block;
  int id = 0;  // in its block, x fastest
  State state = State::ready;
  Arrival arrival{};
  uint64_t result = 0;
  int warp() const { return id / kWarp; }
  int lane() const { return id % kWarp; }
};

// The device thread that runs now.
inline thread_local Thread* self = nullptr;
dim3 grid_size();
dim3 block_size();

// Runs body once per device thread. Errors of any thread come out of here as simt::Error.
void run(const char* kernel, dim3 grid, dim3 block, const std::function<void()>& body);

// Another thread may go first.
void yield();
// Waits until every thread that the arrival names has come; the value read, or the ballot.
uint64_t meet(const Arrival& arrival);
// Throws with the kernel, block and thread in front.
[[noreturn]] void fail(const std::string& what);
// A 16-byte access must be aligned; `what` names it.
void check_aligned(const void* address, size_t bytes, const char* what, Where where);

// Who touched an element, and what was synchronised by then.
struct Touch {
  int thread;
  int64_t block_syncs, warp_syncs;
  Where where;
  bool atomic = false;
};

// One __shared__ array of a block, with what happened to each element since the last barrier.
struct SharedStorage {
  struct Shadow {
    bool written = false;
    std::vector<Touch> writes, reads;
  };
  std::string name;
  std::vector<std::byte> bytes;
  std::vector<Shadow> shadow;
};

// The block's array declared at that place, the same for all its threads.
SharedStorage& shared_storage(const char* name, size_t n, size_t element_bytes, Where where);
// What a thread does to an element. Atomic changes of one element never race with each other.
enum class Access : uint8_t { read, write, change };
// Lets others go first, then checks bounds, races and reads before the first write.
void touch_shared(SharedStorage& storage, int64_t i, Access access, Where where);

// array[i]: reads where it turns into a T, writes where it is assigned to.
template <typename T>
class SharedElement {
 public:
  SharedElement(SharedStorage& storage, int64_t i, Where where)
      : storage_(storage), i_(i), where_(where) {}
  operator T() const {
    touch_shared(storage_, i_, Access::read, where_);
    return *data();
  }
  SharedElement& operator=(const T& value) {
    touch_shared(storage_, i_, Access::write, where_);
    *data() = value;
    return *this;
  }
  SharedElement& operator=(const SharedElement& other) { return *this = static_cast<T>(other); }
  SharedElement(const SharedElement&) = default;
  SharedElement& operator+=(const T& value) { return *this = static_cast<T>(*this) + value; }
  // What was there before.
  T add_atomically(const T& value) const {
    touch_shared(storage_, i_, Access::change, where_);
    const T before = *data();
    *data() = before + value;
    return before;
  }

 private:
  T* data() const { return reinterpret_cast<T*>(storage_.bytes.data()) + i_; }
  SharedStorage& storage_;
  int64_t i_;
  Where where_;
};

template <typename T>
class SharedArray {
 public:
  // An index that remembers where it was written down.
  struct Index {
    int64_t i;
    Where where;
    template <typename I>
    Index(I i_, Where where_ = Where::here()) : i(i_), where(where_) {}
  };
  SharedArray(const char* name, size_t n, Where where = Where::here())
      : storage_(shared_storage(name, n, sizeof(T), where)) {}
  SharedElement<T> operator[](Index index) const { return {storage_, index.i, index.where}; }

 private:
  SharedStorage& storage_;
};

// One __shared__ value: an array of one, whose accesses are reported at its declaration.
template <typename T>
class SharedValue {
 public:
  explicit SharedValue(const char* name, Where where = Where::here())
      : element_(shared_storage(name, 1, sizeof(T), where), 0, where) {}
  operator T() const { return element_; }
  void operator=(const T& value) { element_ = value; }

 private:
  SharedElement<T> element_;
};

}  // namespace simt
