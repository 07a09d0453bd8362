// Which k of many tokens have the largest keys, by histograms of one digit after the other. The
// histograms of several ranks add up, so all ranks find the same k-th key without moving a token.
#pragma once

#include "../config.h"

namespace logitless {

// Tokens are ordered by score, and where scores are equal the smaller id comes first: ~id makes
// that one 128-bit number, larger first. Ids are unique, so no two keys are equal.
struct SelectionKey {
  uint64_t score;
  uint64_t inverted_id;
};

LOGITLESS_HD inline SelectionKey selection_key(uint64_t score, int64_t token_id) {
  return {score, ~static_cast<uint64_t>(token_id)};
}

constexpr int kRadixBits = 8;
constexpr int kRadixBins = 1 << kRadixBits;
constexpr int kRadixLevels = 128 / kRadixBits;

// Digit `level` of the key, the most significant first.
LOGITLESS_HD inline int radix_digit(const SelectionKey& key, int level) {
  const int half = kRadixLevels / 2;
  const uint64_t word = level < half ? key.score : key.inverted_id;
  return static_cast<int>(word >> (64 - kRadixBits * (level % half + 1))) & (kRadixBins - 1);
}

// Whether the digits above `level` are those of `prefix`.
LOGITLESS_HD inline bool radix_matches(
    const SelectionKey& key, const SelectionKey& prefix, int level
) {
  const int half = kRadixLevels / 2;
  if (level < half) {
    // a shift by 64 is undefined, and at level 0 every key matches
    return level == 0 || (key.score ^ prefix.score) >> (64 - kRadixBits * level) == 0;
  }
  if (key.score != prefix.score) return false;
  const int digits = level - half;
  return digits == 0 || (key.inverted_id ^ prefix.inverted_id) >> (64 - kRadixBits * digits) == 0;
}

}  // namespace logitless
