// exp and expm1 of doubles by additions and multiplications alone: the same bits on every machine
// that fuses none of them.
#pragma once

#include <cmath>
#include <cstring>

#include "config.h"

namespace logitless {

// Where 2^k below is a normal number.
constexpr double kExpLimit = 700;

// exp(x) = (1 + f + low + curve) * power, where f + low = x - k log(2) and power = 2^k.
struct ExpParts {
  double f, low, curve, power;
};

// |x| < kExpLimit. Static: every instruction set has its own.
LOGITLESS_HD static inline ExpParts exp_parts(double x) {
  // 1.5 * 2^52 rounds what it is added to; with the exponent's bias on top, the sum's low bits are
  // the biased exponent of 2^k.
  constexpr double round = 0x1.8p52 + 1023;
  // log(2) in two parts, the first with 17 zero bits so that k times it is exact
  constexpr double ln2_high = 0x1.62e42fefa0000p-1;
  constexpr double ln2_low = 0x1.cf79abc9e3b3ap-40;
  const double shifted = x * 1.4426950408889634074 + round;
  const double k = shifted - round;
  const double high = x - k * ln2_high;
  const double f = high - k * ln2_low;
  const double low = high - f - k * ln2_low;
  // Taylor's series of (e^f - 1 - f) / f^2: |f| < 0.35, so the next term is below 1e-17. By
  // pairs, then pairs of pairs: one after the other, 24 dependent operations took twice the time.
  const double f2 = f * f;
  const double f4 = f2 * f2;
  const double q0 = (0.5 + f * (1.0 / 6)) + f2 * (1.0 / 24 + f * (1.0 / 120));
  const double q4 = (1.0 / 720 + f * (1.0 / 5040)) + f2 * (1.0 / 40320 + f * (1.0 / 362880));
  const double q8 =
      (1.0 / 3628800 + f * (1.0 / 39916800)) + f2 * (1.0 / 479001600 + f * (1.0 / 6227020800));
  const double q = q0 + f4 * (q4 + f4 * q8);
  uint64_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits <<= 52;
  double power;
  std::memcpy(&power, &bits, sizeof power);
  return {f, low, f2 * q, power};
}

// exp(x) to 1 ulp, |x| < kExpLimit.
LOGITLESS_HD static inline double exp_inside(double x) {
  const ExpParts e = exp_parts(x);
  return (e.curve + e.f + 1) * e.power;
}

// Beyond the limit the library's, which rounds to 0 and infinity.
LOGITLESS_HD static inline double exp_of(double x) {
  return std::fabs(x) < kExpLimit ? exp_inside(x) : std::exp(x);
}

// exp(x) - 1 to 1.1 ulp, near 0 as well.
LOGITLESS_HD static inline double expm1_of(double x) {
  if (!(std::fabs(x) < kExpLimit)) return std::expm1(x);
  const ExpParts e = exp_parts(x);
  // power - 1 + power * f and what that sum rounds off: the first is 0 or the larger
  const double whole = e.power - 1;
  const double part = e.power * e.f;
  const double sum = whole + part;
  const double lost = part - (sum - whole);
  return sum + (e.power * (e.curve + (e.low + e.low * e.f)) + lost);
}

}  // namespace logitless
