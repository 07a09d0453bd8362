// Logits from memory to registers, and through bias and softcap.
#pragma once

#include <cuda/device.cuh>

#include "rows.h"

namespace logitless::cuda {

// Columns of type S in 16 bytes, which is how a thread reads them.
template <typename S>
constexpr int kPerVector = 16 / static_cast<int>(sizeof(S));

LOGITLESS_DEVICE bool aligned16(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

// A vector of columns `stride` apart, element by element; those from `left` on read as -inf.
template <typename S>
LOGITLESS_DEVICE Words4 load_elements(const S* source, int64_t left, int64_t stride) {
  constexpr int kPerWord = Packed<S>::kPerWord;
  Words4 v;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    v.word[w] = 0;
#pragma unroll
    for (int h = 0; h < kPerWord; ++h) {
      const int64_t c = (w * kPerWord + h) * stride;
      const uint32_t bits = c < left ? Packed<S>::bits(source[c]) : Packed<S>::kLowest;
      v.word[w] |= bits << (16 * h);
    }
  }
  return v;
}

// y = softcap(pre * (raw + bias)) in float.
struct ChainMath {
  const float* bias;
  float cap, slope, inv_cap;

  LOGITLESS_DEVICE explicit ChainMath(const Chain& chain)
      : bias(static_cast<const float*>(chain.bias)),
        cap(static_cast<float>(chain.softcap)),
        slope(chain.softcap == 0 ? 0.0f : static_cast<float>(chain.pre / chain.softcap)),
        inv_cap(chain.softcap == 0 ? 0.0f : static_cast<float>(1 / chain.softcap)) {}

  LOGITLESS_DEVICE float operator()(float raw, int64_t column) const {
    const float shifted = bias == nullptr ? raw : raw + bias[column];
    // rounded before the maximum is subtracted, so that the same column is the same y everywhere
    return cap == 0 ? shifted : product(cap, tanhf(shifted * slope));
  }
  // dy / d(raw + bias), without `pre`.
  LOGITLESS_DEVICE float derivative(float y) const {
    const float t = y * inv_cap;
    return cap == 0 ? 1.0f : 1.0f - t * t;
  }
};

// The value of one column.
template <typename S>
LOGITLESS_DEVICE float value_of(S raw) {
  float out[Packed<S>::kPerWord];
  Packed<S>::unpack(Packed<S>::bits(raw), out);
  return out[0];
}

}  // namespace logitless::cuda
