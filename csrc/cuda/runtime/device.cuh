// Everything the kernels take from CUDA that C++ has no word for. The emulator of the tests has a
// file of the same name that comes first on its include path, so kernels spell none of it.
#pragma once

#include <cuda_runtime_api.h>

#include "../../core/dtype.h"

namespace logitless::cuda {

#define LOGITLESS_DEVICE __device__ __forceinline__
// Threads of a block, and how many blocks a multiprocessor should hold at least.
#define LOGITLESS_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
// One value of a block, or an array of them.
#define LOGITLESS_SHARED(type, name) __shared__ type name
#define LOGITLESS_SHARED_ARRAY(type, name, n) __shared__ type name[n]

constexpr int kWarp = 32;

LOGITLESS_DEVICE void sync_block() { __syncthreads(); }
LOGITLESS_DEVICE void sync_warp() { __syncwarp(); }

// The value of the lane whose number differs in the bits of `bits`; all lanes of a warp call it.
template <typename T>
LOGITLESS_DEVICE T exchange(T value, int bits) {
  return __shfl_xor_sync(0xffffffffu, value, bits);
}

LOGITLESS_DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
LOGITLESS_DEVICE uint32_t as_bits(float value) { return __float_as_uint(value); }

// 16 and 8 bytes as one access.
struct alignas(16) Words4 {
  uint32_t word[4];
};
struct alignas(8) Words2 {
  uint32_t word[2];
};

// Read past L1: nobody reads them twice there. Not the read-only path, since a kernel may write
// over what it read.
LOGITLESS_DEVICE Words4 load16(const void* source) {
  Words4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "l"(source)
               : "memory");
  return v;
}
LOGITLESS_DEVICE void store16(void* target, const Words4& v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(target), "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3])
               : "memory");
}

// The same of 8 bytes.
LOGITLESS_DEVICE Words2 load8(const void* source) {
  Words2 v;
  asm volatile("ld.global.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
               : "=r"(v.word[0]), "=r"(v.word[1])
               : "l"(source)
               : "memory");
  return v;
}
LOGITLESS_DEVICE void store8(void* target, const Words2& v) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};"
               :
               : "l"(target), "r"(v.word[0]), "r"(v.word[1])
               : "memory");
}

// Brings the line of an address to L2.
LOGITLESS_DEVICE void prefetch(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" : : "l"(address));
}

// The larger number, and NaN only where both are.
LOGITLESS_DEVICE float larger(float a, float b) { return fmaxf(a, b); }
// NaN where either is.
LOGITLESS_DEVICE float larger_or_nan(float a, float b) {
  float r;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
// 2^t with a relative error of 2^-22; results below 2^-126 are 0.
LOGITLESS_DEVICE float exp2_fast(float t) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(t));
  return r;
}
// A product that is rounded before it goes into a sum.
LOGITLESS_DEVICE float product(float a, float b) { return __fmul_rn(a, b); }

// Lower *address to value, in whatever order threads come.
LOGITLESS_DEVICE void atomic_lower(int64_t* address, int64_t value) {
  atomicMin(reinterpret_cast<long long*>(address), static_cast<long long>(value));
}

// Add to what other threads add to as well; the second is of an element of shared memory, and gives
// back what was there before.
LOGITLESS_DEVICE void atomic_add(int64_t* address, int64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(address), static_cast<unsigned long long>(value));
}
LOGITLESS_DEVICE int32_t atomic_add(int32_t& element, int32_t value) {
  return atomicAdd(&element, value);
}
// The same of memory, with what was there before.
LOGITLESS_DEVICE int64_t atomic_take(int64_t* address, int64_t value) {
  return static_cast<int64_t>(atomicAdd(
      reinterpret_cast<unsigned long long*>(address), static_cast<unsigned long long>(value)
  ));
}

// Writes value where 0 is; gives back what was there before.
LOGITLESS_DEVICE int32_t atomic_claim(int32_t* address, int32_t value) {
  return atomicCAS(address, 0, value);
}
LOGITLESS_DEVICE int32_t atomic_lower(int32_t* address, int32_t value) {
  return atomicMin(address, value);
}

// Storage types by the 32-bit word: how many a word holds, and what is done with it. The larger of
// two words is that of each half, by number, where NaN counts only if both are.
template <typename S>
struct Packed;

template <>
struct Packed<float> {
  static constexpr int kPerWord = 1;
  static constexpr uint32_t kLowest = 0xff800000u;  // -inf
  LOGITLESS_DEVICE static uint32_t bits(float value) { return as_bits(value); }
  LOGITLESS_DEVICE static void unpack(uint32_t word, float (&out)[1]) { out[0] = as_float(word); }
  LOGITLESS_DEVICE static uint32_t pack(const float (&in)[1]) { return as_bits(in[0]); }
  LOGITLESS_DEVICE static float element(uint32_t word, int) { return as_float(word); }
  LOGITLESS_DEVICE static uint32_t larger(uint32_t a, uint32_t b) {
    return as_bits(fmaxf(as_float(a), as_float(b)));
  }
};

template <>
struct Packed<bf16> {
  static constexpr int kPerWord = 2;
  static constexpr uint32_t kLowest = 0xff80u;
  LOGITLESS_DEVICE static uint32_t bits(bf16 value) { return value.bits; }
  LOGITLESS_DEVICE static void unpack(uint32_t word, float (&out)[2]) {
    out[0] = as_float(word << 16);
    out[1] = as_float(word & 0xffff0000u);
  }
  LOGITLESS_DEVICE static uint32_t pack(const float (&in)[2]) {
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(in[1]), "f"(in[0]));
    return word;
  }
  LOGITLESS_DEVICE static bf16 element(uint32_t word, int half) {
    return {static_cast<uint16_t>(word >> (16 * half))};
  }
  LOGITLESS_DEVICE static uint32_t larger(uint32_t a, uint32_t b) {
    uint32_t word;
    asm("max.bf16x2 %0, %1, %2;" : "=r"(word) : "r"(a), "r"(b));
    return word;
  }
};

template <>
struct Packed<f16> {
  static constexpr int kPerWord = 2;
  static constexpr uint32_t kLowest = 0xfc00u;
  LOGITLESS_DEVICE static uint32_t bits(f16 value) { return value.bits; }
  LOGITLESS_DEVICE static void unpack(uint32_t word, float (&out)[2]) {
    asm("{\n"
        ".reg .b16 low, high;\n"
        "mov.b32 {low, high}, %2;\n"
        "cvt.f32.f16 %0, low;\n"
        "cvt.f32.f16 %1, high;\n"
        "}"
        : "=f"(out[0]), "=f"(out[1])
        : "r"(word));
  }
  LOGITLESS_DEVICE static uint32_t pack(const float (&in)[2]) {
    uint32_t word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(in[1]), "f"(in[0]));
    return word;
  }
  LOGITLESS_DEVICE static f16 element(uint32_t word, int half) {
    return {static_cast<uint16_t>(word >> (16 * half))};
  }
  LOGITLESS_DEVICE static uint32_t larger(uint32_t a, uint32_t b) {
    uint32_t word;
    asm("max.f16x2 %0, %1, %2;" : "=r"(word) : "r"(a), "r"(b));
    return word;
  }
};

}  // namespace logitless::cuda
