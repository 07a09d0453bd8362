// Normal noise on the logits of a teacher: a pure function of (seed, step, row id, token), so that
// every tiling, thread, rank and device adds the same.
#pragma once

#include <cmath>

#include "philox.h"

namespace logitless {

struct NoiseKey {
  uint64_t seed;
  uint64_t step;  // below 2^34
  uint64_t row;   // its id
};

// Tokens go by 64 to 16 counters, so that neighbours are made side by side: the four words of
// counter j make tokens j, j + 16, j + 32 and j + 48 of the group. Below 2^29 for tokens below
// 2^31.
constexpr int64_t kNoiseGroup = 64;
LOGITLESS_HD inline uint64_t noise_counter(int64_t token) {
  return static_cast<uint64_t>(token / kNoiseGroup * 16 + token % 16);
}

// Keeps these words apart from those of sampling and selection under the same seed: "teacher" in
// ASCII.
constexpr uint64_t kNoiseSeed = 0x7465616368657200;
// A step's counters are below this power of two.
constexpr int kNoiseStepShift = 29;
LOGITLESS_HD inline PhiloxWords noise_words(const NoiseKey& key, uint64_t counter) {
  return philox_words(key.seed ^ kNoiseSeed, key.row, key.step << kNoiseStepShift | counter);
}

// Box and Muller: of two words the tokens get radius * cos(angle) and radius * sin(angle). 23 bits
// of each, which float holds exactly: at most 5.8 standard deviations.
LOGITLESS_HD inline double noise_radius(uint32_t word) {
  return sqrt(-2 * log(((word >> 9) + 0.5) * 0x1p-23));
}
LOGITLESS_HD inline double noise_angle(uint32_t word) {
  constexpr double kQuarter = 1.57079632679489661923;
  return kQuarter * ((word >> 30) + ((word >> 7 & 0x7fffff) + 0.5) * 0x1p-23 - 0.5);
}

LOGITLESS_HD inline double noise_of(const NoiseKey& key, int64_t token) {
  const PhiloxWords words = noise_words(key, noise_counter(token));
  const int64_t quarter = token / 16 % 4;
  const uint32_t* pair = words.word + quarter / 2 * 2;
  const double angle = noise_angle(pair[1]);
  return noise_radius(pair[0]) * (quarter % 2 == 0 ? cos(angle) : sin(angle));
}

// Noise on the teacher's z of every row, of standard deviations `sizes` [n]; null: none.
struct PairNoise {
  uint64_t seed = 0, step = 0;
  const int64_t* row_ids = nullptr;  // [n]
  const double* sizes = nullptr;
  int64_t start = 0;  // token of the first column of this rank

  LOGITLESS_HD NoiseKey key(int64_t row) const {
    return {seed, step, static_cast<uint64_t>(row_ids[row])};
  }
};

}  // namespace logitless
