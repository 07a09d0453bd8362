// Philox 4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3",
// SC'11): random words as a pure function of a counter and a key, so that every thread, rank and
// device draws the same word for the same (seed, step, id) without any state.
#pragma once

#include "config.h"

namespace logitless {

struct PhiloxWords {
  uint32_t word[4];
};

LOGITLESS_HD inline PhiloxWords philox4x32(PhiloxWords counter, uint32_t key0, uint32_t key1) {
  uint32_t* c = counter.word;
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * c[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * c[2];
    c[0] = static_cast<uint32_t>(product1 >> 32) ^ c[1] ^ key0;
    c[1] = static_cast<uint32_t>(product1);
    c[2] = static_cast<uint32_t>(product0 >> 32) ^ c[3] ^ key1;
    c[3] = static_cast<uint32_t>(product0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// 128 random bits of (seed, x, y): the seed is the key, x and y are the counter.
LOGITLESS_HD inline PhiloxWords philox_words(uint64_t seed, uint64_t x, uint64_t y) {
  const PhiloxWords counter = {
      {static_cast<uint32_t>(x),
       static_cast<uint32_t>(x >> 32),
       static_cast<uint32_t>(y),
       static_cast<uint32_t>(y >> 32)}
  };
  return philox4x32(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// The 64-bit key that puts tokens in random order for one optimizer step.
LOGITLESS_HD inline uint64_t random_key(uint64_t seed, uint64_t step, uint64_t token_id) {
  const PhiloxWords words = philox_words(seed, token_id, step);
  return uint64_t{words.word[0]} | uint64_t{words.word[1]} << 32;
}

}  // namespace logitless
