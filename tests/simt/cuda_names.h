// The words of CUDA that kernels use, spoken by the SIMT machine.
#pragma once

#include <cmath>
#include <cstring>

#include "simt.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

#define threadIdx (::simt::self->index)
#define blockIdx (::simt::self->block)
#define blockDim (::simt::block_size())
#define gridDim (::simt::grid_size())

namespace simt {

template <typename T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8, "a lane hands over at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T shuffle(uint32_t mask, T value, int source, Where where) {
  const uint64_t bits = meet({Op::shuffle, mask, where, to_bits(value), source});
  T result;
  std::memcpy(&result, &bits, sizeof(T));
  return result;
}

inline uint32_t vote(uint32_t mask, bool yes, Where where) {
  return static_cast<uint32_t>(meet({Op::vote, mask, where, yes, 0}));
}

}  // namespace simt

inline void __syncthreads(simt::Where where = simt::Where::here()) {
  simt::meet({simt::Op::barrier, 0, where, 0, 0});
}

inline void __syncwarp(uint32_t mask = 0xffffffffu, simt::Where where = simt::Where::here()) {
  simt::meet({simt::Op::sync_warp, mask, where, 0, 0});
}

// Segments narrower than the warp are not needed: the width is always the warp's.
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, simt::Where where = simt::Where::here()) {
  return simt::shuffle(mask, value, simt::self->lane() ^ bits, where);
}

template <typename T>
T __shfl_sync(uint32_t mask, T value, int lane, simt::Where where = simt::Where::here()) {
  return simt::shuffle(mask, value, lane % simt::kWarp, where);
}

// A lane beyond the warp gives back one's own value, as on the device.
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, int by, simt::Where where = simt::Where::here()) {
  const int lane = simt::self->lane() + by;
  return simt::shuffle(mask, value, lane < simt::kWarp ? lane : simt::self->lane(), where);
}

template <typename T>
T __shfl_up_sync(uint32_t mask, T value, int by, simt::Where where = simt::Where::here()) {
  const int lane = simt::self->lane() - by;
  return simt::shuffle(mask, value, lane >= 0 ? lane : simt::self->lane(), where);
}

inline uint32_t __ballot_sync(uint32_t mask, bool yes, simt::Where where = simt::Where::here()) {
  return simt::vote(mask, yes, where);
}

inline bool __any_sync(uint32_t mask, bool yes, simt::Where where = simt::Where::here()) {
  return simt::vote(mask, yes, where) != 0;
}

inline bool __all_sync(uint32_t mask, bool yes, simt::Where where = simt::Where::here()) {
  return simt::vote(mask, !yes, where) == 0;
}

template <typename T>
T atomicMin(T* address, T value) {
  simt::yield();
  const T old = *address;
  if (value < old) *address = value;
  return old;
}

template <typename T>
T atomicAdd(T* address, T value) {
  simt::yield();
  const T old = *address;
  *address = old + value;
  return old;
}

template <typename T>
T atomicCAS(T* address, T expected, T value) {
  simt::yield();
  const T old = *address;
  if (old == expected) *address = value;
  return old;
}
