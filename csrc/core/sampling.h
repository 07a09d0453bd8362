// Draws of a token per row, the same on every device: what random numbers are a function of, the
// score of a block of the vocabulary, and the order of a row's entries.
#pragma once

#include <cmath>
#include <cstring>

#include "philox.h"
#include "rows.h"

namespace logitless {

// The best-scoring block so far and the token drawn in it.
struct SampleState {
  double score = -INFINITY;
  double token = -1;
};
static_assert(sizeof(SampleState) == 16, "Python allocates [N, 2] float64 for it");

struct SampleKey {
  uint64_t seed;
  uint64_t step;           // below 2^43
  const int64_t* row_ids;  // [n]
};

// Blocks of the vocabulary have numbers below; the draw from a truncated distribution has this one.
constexpr int64_t kTruncatedDraw = (int64_t{1} << 20) - 1;
// Sampling numbers blocks of the vocabulary: its ids are below this.
constexpr int64_t kMostSampled = kTruncatedDraw * kBlock;

// (0, 1), never an end: 53 bits and a half.
LOGITLESS_HD inline double uniform(uint32_t high, uint32_t low) {
  const uint64_t bits = (uint64_t{high} << 21) ^ (low >> 11);
  return (static_cast<double>(bits) + 0.5) * 0x1p-53;
}

// The top bit keeps these counters apart from those of random token selection under the same seed.
LOGITLESS_HD inline PhiloxWords block_noise(const SampleKey& key, int64_t row, int64_t block) {
  const uint64_t place = uint64_t{1} << 63 | key.step << 20 | static_cast<uint64_t>(block);
  return philox_words(key.seed, static_cast<uint64_t>(key.row_ids[row]), place);
}

// Log-sum-exp of a block and Gumbel noise: the largest score picks a block with its probability.
LOGITLESS_HD inline double block_score(
    double m, double s0, double scale, const PhiloxWords& noise
) {
  const double gumbel = -log(-log(uniform(noise.word[0], noise.word[1])));
  return m * scale + log(s0) + gumbel;
}

// The number that a token inside the best block is drawn by.
LOGITLESS_HD inline double number_in_block(const PhiloxWords& noise) {
  return uniform(noise.word[2], noise.word[3]);
}

// The number that a token of a truncated distribution is drawn by.
LOGITLESS_HD inline double truncated_number(const SampleKey& key, int64_t row) {
  const PhiloxWords noise = block_noise(key, row, kTruncatedDraw);
  return uniform(noise.word[0], noise.word[1]);
}

struct Truncation {
  int64_t top_k = 0;  // 0: no limit
  double top_p = 1;   // (0, 1]; 1: no limit
  double min_p = 0;   // [0, 1]; 0: no limit
};

// An entry above -inf as a number, larger where it comes first: by y, and of equal ones the smaller
// id, which is below 2^32. No key is 0.
LOGITLESS_HD inline uint64_t entry_key(float y, int64_t id) {
  y += 0.0f;  // -0 and 0 are the same number
  uint32_t bits;
  std::memcpy(&bits, &y, sizeof bits);
  constexpr uint32_t sign = uint32_t{1} << 31;
  const uint32_t ordered = (bits & sign) != 0 ? ~bits : bits | sign;
  return uint64_t{ordered} << 32 | static_cast<uint32_t>(~static_cast<uint32_t>(id));
}
LOGITLESS_HD inline float y_of_key(uint64_t key) {
  const auto ordered = static_cast<uint32_t>(key >> 32);
  constexpr uint32_t sign = uint32_t{1} << 31;
  const uint32_t bits = (ordered & sign) != 0 ? ordered ^ sign : ~ordered;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}
LOGITLESS_HD inline int64_t id_of_key(uint64_t key) {
  return static_cast<uint32_t>(~static_cast<uint32_t>(key));
}

}  // namespace logitless
