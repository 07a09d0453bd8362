// A sum of finite doubles without rounding: no order and no split of them can change a bit.
#pragma once

#include <cmath>
#include <cstring>

#include "../config.h"

namespace logitless {

// sign * mantissa * 2^exponent, of a finite number.
struct DoubleBits {
  int64_t sign;
  uint64_t mantissa;
  int exponent;
};

LOGITLESS_HD inline DoubleBits bits_of(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const int exponent = static_cast<int>(bits >> 52) & 0x7FF;
  // a subnormal number has no leading 1, and the unit of the least normal ones
  const uint64_t leading = exponent != 0 ? uint64_t{1} << 52 : 0;
  return {
      (bits >> 63) != 0 ? -1 : 1,
      (bits & ((uint64_t{1} << 52) - 1)) | leading,
      (exponent != 0 ? exponent : 1) - 1075
  };
}

// A sum of up to 2^15 numbers below 2^16 that are multiples of 2^kUnit, which nearly all are.
struct FixedSum {
  static constexpr int kUnit = -96;
  static constexpr int kNumbers = 1 << 15;

  __int128 value = 0;

  // False: the number is another one, and the sum is what it was.
  LOGITLESS_HD bool add(double number) {
    const DoubleBits x = bits_of(number);
    const int shift = x.exponent - kUnit;
    // 2^-37 is the unit of numbers in [2^15, 2^16)
    if (x.mantissa == 0) return true;
    if (shift > -37 - kUnit || shift <= -53) return false;
    if (shift >= 0) {
      value += x.sign * (static_cast<__int128>(x.mantissa) << shift);
      return true;
    }
    if (x.mantissa << (64 + shift) != 0) return false;
    value += x.sign * static_cast<int64_t>(x.mantissa >> -shift);
    return true;
  }
};

// The sum as digit[0] + digit[1] 2^32 + digit[2] 2^64 + ... in units of 2^-1088. Each digit has
// room for 2^31 numbers, and after carry() for as many sums: those of ranks add up digit by digit.
struct ExactSum {
  // from below 2^-1074, the least double, to above 2^31 numbers of 2^1024
  static constexpr int kDigits = 67;
  static constexpr int kLowest = -1088;

  int64_t digit[kDigits] = {};

  // What a number adds to the digits from `place` on.
  struct Parts {
    int place;
    int64_t part[4];
  };
  LOGITLESS_HD static Parts parts_of(double value) {
    const DoubleBits x = bits_of(value);
    const int place = x.exponent - kLowest;
    const auto wide = static_cast<unsigned __int128>(x.mantissa) << (place % 32);
    return {
        place / 32,
        {x.sign * static_cast<int64_t>(static_cast<uint32_t>(wide)),
         x.sign * static_cast<int64_t>(static_cast<uint32_t>(wide >> 32)),
         x.sign * static_cast<int64_t>(wide >> 64),
         0}
    };
  }
  // Of a multiple of 2^kUnit.
  LOGITLESS_HD static Parts parts_of(__int128 value) {
    return {
        (FixedSum::kUnit - kLowest) / 32,
        {static_cast<uint32_t>(value),
         static_cast<uint32_t>(value >> 32),
         static_cast<uint32_t>(value >> 64),
         static_cast<int64_t>(value >> 96)}
    };
  }

  LOGITLESS_HD void add(double value) {
    const Parts parts = parts_of(value);
    for (int i = 0; i < 3; ++i) digit[parts.place + i] += parts.part[i];
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

// digit / count, rounded once; `digit` (an array of kDigits, or what is used like one) is written
// over. The sum of more than 2^1024 is infinite.
template <typename Digits>
LOGITLESS_HD double exact_mean(Digits& digit, int64_t count) {
  constexpr int n = ExactSum::kDigits;
  // to digits of 32 bits with a sign: the topmost that is not 0 has that of the sum
  int64_t over = 0, top = 0;
  for (int i = 0; i < n; ++i) {
    const int64_t sum = static_cast<int64_t>(digit[i]) + over;
    over = i + 1 < n ? (sum + (int64_t{1} << 31)) >> 32 : 0;
    const int64_t rest = sum - over * (int64_t{1} << 32);
    digit[i] = rest;
    top = rest != 0 ? rest : top;
  }
  if (top == 0 || count <= 0) return 0;
  const int sign = top < 0 ? -1 : 1;
  over = 0;
  for (int i = 0; i < n; ++i) {
    const int64_t sum = sign * static_cast<int64_t>(digit[i]) + over;
    const int64_t rest = sum & 0xFFFFFFFF;
    over = i + 1 < n ? sum >> 32 : 0;
    digit[i] = i + 1 < n ? rest : sum;
  }
  // by long division, to three digits of the quotient from its topmost on; what is left over only
  // counts as more than nothing
  unsigned __int128 quotient = 0, left = 0;
  int found = 0, place = n;
  while (found < 3) {
    --place;
    left =
        left << 32 | (place >= 0 ? static_cast<uint64_t>(static_cast<int64_t>(digit[place])) : 0);
    const auto part = left / static_cast<uint64_t>(count);
    left -= part * static_cast<uint64_t>(count);
    quotient = quotient << 32 | part;
    found += found > 0 || part != 0;
  }
  bool more = left != 0;
  for (int i = 0; i < place; ++i) more |= static_cast<int64_t>(digit[i]) != 0;
  int bits = 64;
  while (bits < 128 && quotient >> bits != 0) ++bits;
  const int exponent = 32 * place + ExactSum::kLowest;
  const int lowest = exponent + bits - 53 > -1074 ? exponent + bits - 53 : -1074;
  const int shift = lowest - exponent;
  // less than half of the least number
  if (shift > 100) return sign * 0.0;
  auto kept = static_cast<uint64_t>(quotient >> shift);
  const unsigned __int128 cut = quotient - (static_cast<unsigned __int128>(kept) << shift);
  const unsigned __int128 half = static_cast<unsigned __int128>(1) << (shift - 1);
  kept += cut > half || (cut == half && (more || (kept & 1) != 0));
  return sign * std::ldexp(static_cast<double>(kept), lowest);
}

// The digit that the leading bit of a magnitude falls into, given its bits; -1: it is 0.
LOGITLESS_HD inline int exact_sum_level(int64_t magnitude) {
  if (magnitude == 0) return -1;
  const int exponent = static_cast<int>(magnitude >> 52);
  return (exponent - 1023 - ExactSum::kLowest) / 32;
}

}  // namespace logitless
