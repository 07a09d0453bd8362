// What csrc/cuda/runtime/device.cuh takes from CUDA, on the SIMT machine. Where the device promises
// less than C++ does, so does this file.
#pragma once

#include <core/dtype.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../../cuda_names.h"

namespace logitless::cuda {

#define LOGITLESS_DEVICE inline
#define LOGITLESS_KERNEL(threads, blocks) void
// One value of a block.
#define LOGITLESS_SHARED(type, name) ::simt::SharedValue<type> name(#name)
#define LOGITLESS_SHARED_ARRAY(type, name, n) ::simt::SharedArray<type> name(#name, n)

constexpr int kWarp = simt::kWarp;

LOGITLESS_DEVICE void sync_block(simt::Where where = simt::Where::here()) { __syncthreads(where); }
LOGITLESS_DEVICE void sync_warp(simt::Where where = simt::Where::here()) {
  __syncwarp(0xffffffffu, where);
}

template <typename T>
T exchange(T value, int bits, simt::Where where = simt::Where::here()) {
  return __shfl_xor_sync(0xffffffffu, value, bits, where);
}

LOGITLESS_DEVICE float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
LOGITLESS_DEVICE uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

struct alignas(16) Words4 {
  uint32_t word[4];
};
struct alignas(8) Words2 {
  uint32_t word[2];
};

LOGITLESS_DEVICE Words4 load16(const void* source, simt::Where where = simt::Where::here()) {
  simt::check_aligned(source, 16, "a load", where);
  return *static_cast<const Words4*>(source);
}
LOGITLESS_DEVICE void store16(
    void* target, const Words4& v, simt::Where where = simt::Where::here()
) {
  simt::check_aligned(target, 16, "a store", where);
  *static_cast<Words4*>(target) = v;
}

LOGITLESS_DEVICE Words2 load8(const void* source, simt::Where where = simt::Where::here()) {
  simt::check_aligned(source, 8, "a load", where);
  return *static_cast<const Words2*>(source);
}
LOGITLESS_DEVICE void store8(
    void* target, const Words2& v, simt::Where where = simt::Where::here()
) {
  simt::check_aligned(target, 8, "a store", where);
  *static_cast<Words2*>(target) = v;
}

// The device ignores an address that is nobody's; here it is an error.
LOGITLESS_DEVICE void prefetch(const void* address) {
  static_cast<void>(*static_cast<const volatile char*>(address));
}

LOGITLESS_DEVICE float larger(float a, float b) { return std::fmax(a, b); }
LOGITLESS_DEVICE float larger_or_nan(float a, float b) {
  return a != a || b != b ? as_float(0x7fffffffu) : std::fmax(a, b);
}
// The device is off by up to 2^-22 and has no subnormal numbers; so has this.
LOGITLESS_DEVICE float exp2_fast(float t) {
  const float r = as_float(as_bits(std::exp2(t)) & ~1u);
  return r < 0x1p-126f ? 0 : r;
}
LOGITLESS_DEVICE float product(float a, float b) { return a * b; }

LOGITLESS_DEVICE void atomic_lower(int64_t* address, int64_t value) { atomicMin(address, value); }
LOGITLESS_DEVICE void atomic_add(int64_t* address, int64_t value) { atomicAdd(address, value); }
template <typename T>
T atomic_add(const simt::SharedElement<T>& element, T value) {
  return element.add_atomically(value);
}
LOGITLESS_DEVICE int64_t atomic_take(int64_t* address, int64_t value) {
  return atomicAdd(address, value);
}
LOGITLESS_DEVICE int32_t atomic_claim(int32_t* address, int32_t value) {
  return atomicCAS(address, 0, value);
}
LOGITLESS_DEVICE int32_t atomic_lower(int32_t* address, int32_t value) {
  return atomicMin(address, value);
}

// float -> 16 bits with round to nearest even, for `digits` binary digits of which one is implied
// and a smallest normal number of 2^lowest.
LOGITLESS_DEVICE uint32_t narrowed(float value, int digits, int lowest) {
  const uint32_t sign = as_bits(value) >> 16 & 0x8000u;
  if (value != value) return 0x7fffu;
  const uint32_t infinity = 0x7fffu >> (digits - 1) << (digits - 1);
  if (std::isinf(value)) return sign | infinity;
  const double size = std::fabs(static_cast<double>(value));
  const int exponent = size == 0 ? lowest : std::max(std::ilogb(size), lowest);
  const auto units = static_cast<int64_t>(std::nearbyint(std::ldexp(size, digits - 1 - exponent)));
  // A mantissa that rounds up to the next power of two carries into the exponent by itself.
  const int64_t bits = units + (int64_t{exponent - lowest} << (digits - 1));
  return sign | (bits < infinity ? static_cast<uint32_t>(bits) : infinity);
}

LOGITLESS_DEVICE float widened_f16(uint32_t bits) {
  const float sign = bits & 0x8000u ? -1.0f : 1.0f;
  const auto exponent = static_cast<int>(bits >> 10 & 31u);
  const auto mantissa = static_cast<float>(bits & 1023u);
  if (exponent == 31) return mantissa != 0 ? as_float(0x7fffffffu) : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(mantissa + 1024, exponent - 25);
}

template <typename S>
struct Packed;

template <>
struct Packed<float> {
  static constexpr int kPerWord = 1;
  static constexpr uint32_t kLowest = 0xff800000u;  // -inf
  static uint32_t bits(float value) { return as_bits(value); }
  static void unpack(uint32_t word, float (&out)[1]) { out[0] = as_float(word); }
  static uint32_t pack(const float (&in)[1]) { return as_bits(in[0]); }
  static float element(uint32_t word, int) { return as_float(word); }
  static uint32_t larger(uint32_t a, uint32_t b) {
    return as_bits(std::fmax(as_float(a), as_float(b)));
  }
};

// Two 16-bit numbers a word, the first in the low half. `Half` says how one is read and written.
template <typename S, typename Half>
struct PackedPair {
  static constexpr int kPerWord = 2;
  static uint32_t bits(S value) { return value.bits; }
  static void unpack(uint32_t word, float (&out)[2]) {
    out[0] = Half::widened(word & 0xffffu);
    out[1] = Half::widened(word >> 16);
  }
  static uint32_t pack(const float (&in)[2]) {
    return Half::narrowed(in[0]) | Half::narrowed(in[1]) << 16;
  }
  static S element(uint32_t word, int half) { return {static_cast<uint16_t>(word >> (16 * half))}; }
  static uint32_t larger(uint32_t a, uint32_t b) {
    float x[2], y[2];
    unpack(a, x);
    unpack(b, y);
    const float r[2] = {std::fmax(x[0], y[0]), std::fmax(x[1], y[1])};
    return pack(r);
  }
};

struct HalfBf16 {
  static float widened(uint32_t bits) { return as_float(bits << 16); }
  static uint32_t narrowed(float value) { return cuda::narrowed(value, 8, -126); }
};
struct HalfF16 {
  static float widened(uint32_t bits) { return widened_f16(bits); }
  static uint32_t narrowed(float value) { return cuda::narrowed(value, 11, -14); }
};

template <>
struct Packed<bf16> : PackedPair<bf16, HalfBf16> {
  static constexpr uint32_t kLowest = 0xff80u;
};
template <>
struct Packed<f16> : PackedPair<f16, HalfF16> {
  static constexpr uint32_t kLowest = 0xfc00u;
};

}  // namespace logitless::cuda
