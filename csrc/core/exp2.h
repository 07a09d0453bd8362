// 2^t of floats as the CPU's vectors compute it, for whoever has to find the same bits.
#pragma once

#include <cmath>
#include <cstring>

#include "config.h"

namespace logitless {

// 2^f = 1 + f Q(f) on |f| <= 1/2, Q interpolated at Chebyshev nodes in 40 digits: relative error
// 5e-9. What stands here is 2 Q.
#define LOGITLESS_EXP2_TERMS                                                              \
  2 * 0.69314718802622878106f, 2 * 0.24022650760568126945f, 2 * 0.055503571142190778186f, \
      2 * 0.0096180825572778514913f, 2 * 0.0013390863364671234381f, 2 * 0.00015453162945120690177f
// For sums of many terms: relative error 2e-7 of alternating sign, and one product less, which is
// 6% of the CPU's forward pass.
#define LOGITLESS_EXP2_SUM_TERMS                                                          \
  2 * 0.69314718055994530942f, 2 * 0.24022349038020361372f, 2 * 0.055503810137964574299f, \
      2 * 0.009666368515385448309f, 2 * 0.001338130253732079618f

// 1.5 * 2^23 rounds what it is added to; with the exponent's bias less 1 on top, the sum's low bits
// are the biased exponent of 2^(k-1).
constexpr float kExp2Round = 12582912.0f + 126.0f;
// Here the biased exponent is 0, so that 2^(k-1) comes out as exactly 0. Callers clamp to this.
constexpr float kExp2Lowest = -126.0f;

// With t = k + f the two factors are 2 * 2^f and 2^(k-1). NaN stays NaN.
template <int kTerms>
LOGITLESS_HD inline float exp2_of_terms(float t, const float (&terms)[kTerms]) {
  const float shifted = t + kExp2Round;
  const float f = t - (shifted - kExp2Round);
  float q = fmaf(f, terms[kTerms - 1], terms[kTerms - 2]);
// the host's half of a CUDA file warns of it
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int i = kTerms - 3; i >= 0; --i) q = fmaf(q, f, terms[i]);
  q = fmaf(q, f, 2.0f);
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits <<= 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return q * power;
}

// 2^t for t in [kExp2Lowest, 127], to an ulp, and one of the terms of long sums. The same bits as
// the vectors' where those fuse multiplications and additions.
LOGITLESS_HD inline float exp2_exact(float t) {
  const float terms[] = {LOGITLESS_EXP2_TERMS};
  return exp2_of_terms(t, terms);
}
LOGITLESS_HD inline float exp2_term(float t) {
  const float terms[] = {LOGITLESS_EXP2_SUM_TERMS};
  return exp2_of_terms(t, terms);
}

}  // namespace logitless
