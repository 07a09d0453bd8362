// exp of many doubles: plain loops that the compiler vectorises, the same bits on every machine.
#pragma once

#include <cmath>
#include <cstring>

#include "../core/config.h"

namespace logitless::cpu {

// Where 2^k below is a normal number.
constexpr double kExpLimit = 700;

// out[i] = exp(x[i]), to 1 ulp. Beyond +-kExpLimit the library's, which rounds to 0 and infinity.
inline void exp_all(const double* x, double* out, int n) {
  // 1.5 * 2^52 rounds what it is added to; with the exponent's bias on top, the sum's low bits are
  // the biased exponent of 2^k.
  constexpr double round = 0x1.8p52 + 1023;
  // log(2) in two parts, the first with 21 zero bits so that k times it is exact
  constexpr double ln2_high = 0x1.62e42fefa0000p-1;
  constexpr double ln2_low = 0x1.cf79abc9e3b3ap-40;
  bool far = false;
  for (int i = 0; i < n; ++i) {
    const double shifted = x[i] * 1.4426950408889634074 + round;
    const double k = shifted - round;
    const double f = x[i] - k * ln2_high - k * ln2_low;
    // Taylor's series of (e^f - 1 - f) / f^2: |f| < 0.35, so the next term is below 1e-17
    double q = 1.0 / 6227020800;
    q = q * f + 1.0 / 479001600;
    q = q * f + 1.0 / 39916800;
    q = q * f + 1.0 / 3628800;
    q = q * f + 1.0 / 362880;
    q = q * f + 1.0 / 40320;
    q = q * f + 1.0 / 5040;
    q = q * f + 1.0 / 720;
    q = q * f + 1.0 / 120;
    q = q * f + 1.0 / 24;
    q = q * f + 1.0 / 6;
    q = q * f + 0.5;
    uint64_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits <<= 52;
    double scale;
    std::memcpy(&scale, &bits, sizeof scale);
    out[i] = (f * f * q + f + 1) * scale;
    far |= !(std::fabs(x[i]) < kExpLimit);
  }
  if (!far) return;
  for (int i = 0; i < n; ++i) {
    if (!(std::fabs(x[i]) < kExpLimit)) out[i] = std::exp(x[i]);
  }
}

}  // namespace logitless::cpu
