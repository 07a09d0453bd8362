// Small kernels that are right, and small kernels that are each wrong in one way, to show what the
// machine makes of them: `selftest NAME` prints what the kernel computed or what was found.
#include <cstdio>
#include <map>
#include <memory>
#include <vector>

#include "cuda_names.h"

namespace {

constexpr uint32_t kAll = 0xffffffffu;
constexpr int kThreads = 64;
using simt::SharedArray;

// Each thread's value, summed through shuffles, shared memory and a barrier.
void block_sum(std::vector<int>& out) {
  SharedArray<int> partial("partial", kThreads / 32);
  const int id = static_cast<int>(threadIdx.x);
  int value = id;
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kAll, value, step);
  if (id % 32 == 0) partial[id / 32] = value;
  __syncthreads();
  const int sum = partial[0] + partial[1];
  if (__all_sync(kAll, sum == 2016) && id == 0) out.push_back(sum);
}

// The order in which threads arrive: what the seed is for.
void arrivals(std::vector<int>& out) {
  static int count;
  atomicAdd(&count, 1);
  out.push_back(static_cast<int>(threadIdx.x));
}

// Neighbours within a warp exchange through shared memory.
void warp_exchange(std::vector<int>& out, bool synced) {
  SharedArray<int> box("box", kThreads);
  const int id = static_cast<int>(threadIdx.x);
  box[id] = -1;
  __syncthreads();
  box[id] = id;
  // A shuffle makes lanes meet, but promises nothing about memory.
  if (synced) {
    __syncwarp();
  } else {
    __shfl_down_sync(kAll, id, 1);
  }
  const int got = box[id ^ 1];
  if (id == 7) out.push_back(got);
}

void barrier_twice(std::vector<int>&) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

void lane_elsewhere(std::vector<int>&) {
  if (threadIdx.x == 5) {
    __syncthreads();
  } else {
    __syncwarp();
    __syncthreads();
  }
}

void lane_gone(std::vector<int>& out) {
  if (threadIdx.x == 31) return;
  const int got = __shfl_down_sync(kAll, 1, 1);
  if (threadIdx.x == 0) out.push_back(got);
}

void lane_not_named(std::vector<int>&) { __shfl_xor_sync(0xffffu, 1, 1); }

void race(std::vector<int>&) {
  SharedArray<float> box("box", 2);
  if (threadIdx.x == 0) box[1] = 1.0f;
  __syncthreads();
  if (threadIdx.x == 40) box[1] = 2.0f;
  if (threadIdx.x == 3) static_cast<void>(static_cast<float>(box[1]));
}

void unwritten(std::vector<int>&) {
  SharedArray<double> box("box", 4);
  if (threadIdx.x == 0) box[2] = 1.0;
  __syncthreads();
  if (threadIdx.x == 9) static_cast<void>(static_cast<double>(box[3]));
}

void beyond(std::vector<int>&) {
  SharedArray<int> box("box", kThreads - 1);
  box[threadIdx.x] = 1;
}

void misaligned(std::vector<int>&) {
  alignas(16) const char bytes[32] = {};
  simt::check_aligned(bytes + threadIdx.x, 16, "load", simt::Where::here());
}

void heap_overrun(std::vector<int>& out) {
  const std::unique_ptr<int[]> row(new int[10]());
  volatile size_t index = 10;
  if (threadIdx.x == 0) out.push_back(row[index]);
}

void frame_overrun(std::vector<int>& out) {
  int pieces[4] = {};
  volatile size_t index = 4;
  if (threadIdx.x == 0) out.push_back(pieces[index]);
}

const std::map<std::string, void (*)(std::vector<int>&)> kernels{
    {"block_sum", block_sum},
    {"arrivals", arrivals},
    {"warp_exchange", [](std::vector<int>& out) { warp_exchange(out, true); }},
    {"warp_race", [](std::vector<int>& out) { warp_exchange(out, false); }},
    {"barrier_twice", barrier_twice},
    {"lane_elsewhere", lane_elsewhere},
    {"lane_gone", lane_gone},
    {"lane_not_named", lane_not_named},
    {"race", race},
    {"unwritten", unwritten},
    {"beyond", beyond},
    {"misaligned", misaligned},
    {"heap_overrun", heap_overrun},
    {"frame_overrun", frame_overrun},
};

}  // namespace

int main(int, char** argv) {
  const std::string name = argv[1];
  const auto kernel = kernels.at(name);
  std::vector<int> out;
  try {
    simt::run(name.c_str(), 2, kThreads, [&] { kernel(out); });
  } catch (const simt::Error& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  for (const int value : out) std::printf("%d ", value);
  std::printf("\n");
  return 0;
}
