// Covariance of log-prob and advantage over tokens, with the same bits whatever the order or split.
#pragma once

#include <cmath>
#include <cstring>

#include "config.h"

namespace logitless {

// A sum of numbers held as multiples of 2^-64 in 128 bits. Integer addition has no order, so any
// split over threads, micro-batches and ranks gives the same sum; the mean then rounds once.
// A float of at least 2^-40 is such a multiple exactly; |v| < 2^31 leaves room for 2^32 numbers.
struct FixedSum {
  __int128 value = 0;

  static constexpr double kLimit = 0x1p31;

  // high 2^-16 + low 2^-64
  LOGITLESS_HD void add(int64_t high, int64_t low) {
    value += static_cast<__int128>(high) * (int64_t{1} << 48) + low;
  }
  LOGITLESS_HD void add(const FixedSum& other) { value += other.value; }
  // The sum as limb[0] + limb[1] 2^32 + limb[2] 2^64 + limb[3] 2^96: limbs of many ranks add up in
  // int64 without overflow. Only the last one carries the sign.
  LOGITLESS_HD void limbs(int64_t out[4]) const {
    for (int i = 0; i < 3; ++i) out[i] = static_cast<uint32_t>(value >> (32 * i));
    out[3] = static_cast<int64_t>(value >> 96);
  }
};

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
