// Logits from memory to registers, and through bias and softcap.
#pragma once

#include <cuda/runtime/device.cuh>

#include "rows.h"

namespace logitless::cuda {

// Columns of type S in 16 bytes, which is how a thread reads them.
template <typename S>
constexpr int kPerVector = 16 / static_cast<int>(sizeof(S));

LOGITLESS_DEVICE bool aligned16(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

constexpr int kLineBytes = 128;

// Words of columns `stride` apart, element by element; those from `left` on read as -inf.
template <typename S, int kWords = 4>
LOGITLESS_DEVICE Words4 load_elements(const S* source, int left, int stride) {
  constexpr int kPerWord = Packed<S>::kPerWord;
  Words4 v = {};
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
#pragma unroll
    for (int h = 0; h < kPerWord; ++h) {
      const int c = (w * kPerWord + h) * stride;
      const uint32_t bits = c < left ? Packed<S>::bits(source[c]) : Packed<S>::kLowest;
      v.word[w] |= bits << (16 * h);
    }
  }
  return v;
}

// The columns of a vector as floats.
template <typename S>
LOGITLESS_DEVICE void unpack(const Words4& v, float (&out)[kPerVector<S>]) {
  constexpr int kPerWord = Packed<S>::kPerWord;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    float values[kPerWord];
    Packed<S>::unpack(v.word[w], values);
#pragma unroll
    for (int h = 0; h < kPerWord; ++h) out[w * kPerWord + h] = values[h];
  }
}

template <typename S>
LOGITLESS_DEVICE Words4 pack(const float (&in)[kPerVector<S>]) {
  constexpr int kPerWord = Packed<S>::kPerWord;
  Words4 v;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    float values[kPerWord];
#pragma unroll
    for (int h = 0; h < kPerWord; ++h) values[h] = in[w * kPerWord + h];
    v.word[w] = Packed<S>::pack(values);
  }
  return v;
}

// y = softcap(pre_scale * (raw + bias)) in float.
struct TransformMath {
  const float* bias;
  float cap, inner;

  LOGITLESS_DEVICE explicit TransformMath(const LogitTransform& transform)
      : bias(static_cast<const float*>(transform.bias)),
        cap(static_cast<float>(transform.softcap)),
        inner(
            transform.softcap == 0 ? 0.0f
                                   : static_cast<float>(transform.pre_scale / transform.softcap)
        ) {}

  // The columns from `column` on, `stride` apart, as far as there are any (`left`).
  template <int kCount>
  LOGITLESS_DEVICE void apply(float (&y)[kCount], int64_t column, int left, int stride) const {
    add_bias(y, column, left, stride);
    if (cap == 0) return;
#pragma unroll
    for (float& value : y) value = softcapped(tanhf(value * inner));
  }
  template <int kCount>
  LOGITLESS_DEVICE void add_bias(float (&y)[kCount], int64_t column, int left, int stride) const {
    if (bias != nullptr) add(y, bias + column, left, stride);
  }
  // y of a column to which the bias is added, and dy / d(raw + bias) without `pre_scale`: tanh'(u)
  // is e^-2|u| (1 + tanh|u|)^2, where 1 - tanh(u)^2 would cancel.
  LOGITLESS_DEVICE float differentiate(float value, float& slope) const {
    slope = 1.0f;
    if (cap == 0) return value;
    const float u = value * inner, t = tanhf(u), once = 1.0f + fabsf(t);
    slope = exp2_fast(fabsf(u) * -2.88539008f) * once * once;
    return softcapped(t);
  }

 private:
  // rounded before the maximum is subtracted, so that the same column is the same y everywhere
  LOGITLESS_DEVICE float softcapped(float t) const { return product(cap, t); }

  template <int kCount>
  LOGITLESS_DEVICE static void add(float (&y)[kCount], const float* source, int left, int stride) {
    if (kCount % 4 == 0 && stride == 1 && left >= kCount && aligned16(source)) {
#pragma unroll
      for (int i = 0; i + 3 < kCount; i += 4) {
        const Words4 v = load16(source + i);
#pragma unroll
        for (int w = 0; w < 4; ++w) y[i + w] += as_float(v.word[w]);
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i * stride < left) y[i] += source[i * stride];
    }
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
