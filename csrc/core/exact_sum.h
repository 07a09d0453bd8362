// A sum of finite doubles without rounding: no order and no split of them can change a bit.
#pragma once

#include <cstring>

#include "config.h"

namespace logitless {

// The sum as digit[0] + digit[1] 2^32 + digit[2] 2^64 + ... in units of 2^-1088. Each digit has
// room for 2^31 numbers, and after carry() for as many sums: those of ranks add up digit by digit.
struct ExactSum {
  // from below 2^-1074, the least double, to above 2^31 numbers of 2^1024
  static constexpr int kDigits = 67;
  static constexpr int kLowest = -1088;

  int64_t digit[kDigits] = {};

  LOGITLESS_HD void add(double value) {
    uint64_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const int exponent = static_cast<int>(bits >> 52) & 0x7FF;
    // a subnormal number has no leading 1, and the unit of the least normal ones
    const uint64_t leading = exponent != 0 ? uint64_t{1} << 52 : 0;
    const uint64_t mantissa = (bits & ((uint64_t{1} << 52) - 1)) | leading;
    const int place = (exponent != 0 ? exponent : 1) - 1075 - kLowest;
    const auto wide = static_cast<unsigned __int128>(mantissa) << (place % 32);
    const int64_t sign = (bits >> 63) != 0 ? -1 : 1;
    int64_t* at = digit + place / 32;
    at[0] += sign * static_cast<int64_t>(static_cast<uint32_t>(wide));
    at[1] += sign * static_cast<int64_t>(static_cast<uint32_t>(wide >> 32));
    at[2] += sign * static_cast<int64_t>(wide >> 64);
  }
  // A multiple of 2^(32 place + kLowest).
  LOGITLESS_HD void add_at(int place, int64_t value) {
    digit[place] += static_cast<uint32_t>(value);
    digit[place + 1] += value >> 32;
  }
  // A multiple of 2^-64.
  LOGITLESS_HD void add_fixed(__int128 value) {
    constexpr int unit = (-64 - kLowest) / 32;
    for (int i = 0; i < 3; ++i) digit[unit + i] += static_cast<uint32_t>(value >> (32 * i));
    digit[unit + 3] += static_cast<int64_t>(value >> 96);
  }
  LOGITLESS_HD void add(const ExactSum& other) {
    for (int i = 0; i < kDigits; ++i) digit[i] += other.digit[i];
  }
  // Leaves digits of 32 bits with a sign, so that those above a small sum are 0.
  LOGITLESS_HD void carry() {
    for (int i = 0; i + 1 < kDigits; ++i) {
      const int64_t over = (digit[i] + (int64_t{1} << 31)) >> 32;
      digit[i] -= over * (int64_t{1} << 32);
      digit[i + 1] += over;
    }
  }
};

// The digit that the leading bit of a magnitude falls into, given its bits; -1: it is 0.
LOGITLESS_HD inline int exact_sum_level(int64_t magnitude) {
  if (magnitude == 0) return -1;
  const int exponent = static_cast<int>(magnitude >> 52);
  return (exponent - 1023 - ExactSum::kLowest) / 32;
}

}  // namespace logitless
