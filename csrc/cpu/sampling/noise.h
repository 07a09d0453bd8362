// The random numbers of sampling: pure functions of (seed, step, row id, what they are for).
#pragma once

#include "../../core/philox.h"
#include "sample.h"

namespace logitless::cpu {

// Blocks of the vocabulary have numbers below; the draw from a truncated distribution has this one.
constexpr int64_t kTruncatedDraw = (int64_t{1} << 20) - 1;
static_assert(kMostSampled == kTruncatedDraw * kBlock);

// (0, 1), never an end: 53 bits and a half.
inline double uniform(uint32_t high, uint32_t low) {
  const uint64_t bits = (uint64_t{high} << 21) ^ (low >> 11);
  return (static_cast<double>(bits) + 0.5) * 0x1p-53;
}

// The top bit keeps these counters apart from those of random token selection under the same seed.
inline PhiloxWords block_noise(const SampleKey& key, int64_t row, int64_t block) {
  const uint64_t place = uint64_t{1} << 63 | key.step << 20 | static_cast<uint64_t>(block);
  return philox_words(key.seed, static_cast<uint64_t>(key.row_ids[row]), place);
}

}  // namespace logitless::cpu
