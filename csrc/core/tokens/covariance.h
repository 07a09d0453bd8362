// Covariance of log-prob and advantage over tokens, and its order.
#pragma once

#include <cmath>
#include <cstring>

#include "../config.h"

namespace logitless {

struct TokenMeans {
  double advantage;
  double logp;
};

// One multiplication of two differences; never fused, so that the bits are the same everywhere.
LOGITLESS_HD inline double covariance(double advantage, double logp, const TokenMeans& means) {
  return (advantage - means.advantage) * (logp - means.logp);
}

// Unsigned bits in the order of the numbers; -0 and +0 are the same number and get the same bits.
LOGITLESS_HD inline uint64_t ordered_bits(double value) {
  value += 0.0;
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  constexpr uint64_t sign = uint64_t{1} << 63;
  return (bits & sign) != 0 ? ~bits : bits | sign;
}

// The number whose ordered_bits these are.
LOGITLESS_HD inline double from_ordered_bits(uint64_t bits) {
  constexpr uint64_t sign = uint64_t{1} << 63;
  bits = (bits & sign) != 0 ? bits ^ sign : ~bits;
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace logitless
