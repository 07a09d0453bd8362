// The noise of core/noise.h in float32. A counter's words make four tokens that are 16 apart, so
// the threads of a part of a row make that of all its columns first, through shared memory: no
// words are made twice.
#pragma once

#include <cuda/runtime/device.cuh>

#include "quads.cuh"

namespace logitless::cuda {

// What is done to logits before they are y and z.
enum class Steps : int { none, transform, transform_and_noise };

LOGITLESS_HD constexpr bool transforms(Steps steps) { return steps != Steps::none; }
LOGITLESS_HD constexpr bool adds_noise(Steps steps) { return steps == Steps::transform_and_noise; }
// Floats of shared memory; an array has one at least.
LOGITLESS_HD constexpr int noise_room(Steps steps, int64_t columns) {
  return adds_noise(steps) ? static_cast<int>(columns) : 1;
}

// In y of the teacher's row; 0: it has none.
LOGITLESS_DEVICE float noise_size(const PairRows& rows, int64_t row) {
  const double size = rows.noise.sizes == nullptr ? 0 : rows.noise.sizes[row];
  return size == 0 ? 0.0f : static_cast<float>(size / rows.teacher.scale_of(row));
}

// Two normal numbers of two words.
struct NormalPair {
  float first, second;
};

// Words to float are exact, as in noise_radius and noise_angle. What is left of an angle beside
// whole quarters is at most pi / 4, where a few terms of Taylor are enough.
LOGITLESS_DEVICE NormalPair normal_pair(uint32_t length, uint32_t turn) {
  const float u = (static_cast<float>(length >> 9) + 0.5f) * 0x1p-23f;
  const float radius = sqrtf(-2.0f * logf(u));
  const float part = (static_cast<float>(turn >> 7 & 0x7fffff) + 0.5f) * 0x1p-23f - 0.5f;
  const float x = part * 1.57079632679489661923f, x2 = x * x;
  float s = 1.0f / 362880, c = -1.0f / 3628800;
  s = s * x2 - 1.0f / 5040;
  s = s * x2 + 1.0f / 120;
  s = s * x2 - 1.0f / 6;
  s = (s * x2 + 1.0f) * x;
  c = c * x2 + 1.0f / 40320;
  c = c * x2 - 1.0f / 720;
  c = c * x2 + 1.0f / 24;
  c = c * x2 - 0.5f;
  c = c * x2 + 1.0f;
  // whole quarters of a turn: (c, s), (-s, c), (-c, -s), (s, -c)
  const uint32_t quarters = turn >> 30;
  const bool odd = (quarters & 1u) != 0, far = quarters >= 2;
  const float cosine = odd ? -s : c, sine = odd ? c : s;
  return {radius * (far ? -cosine : cosine), radius * (far ? -sine : sine)};
}

// That of one token.
LOGITLESS_DEVICE float normal_of(const NoiseKey& key, int64_t token) {
  const PhiloxWords words = noise_words(key, noise_counter(token));
  const int64_t quarter = token / 16 % 4;
  const bool low = quarter < 2;
  const NormalPair pair =
      normal_pair(low ? words.word[0] : words.word[2], low ? words.word[1] : words.word[3]);
  return quarter % 2 == 0 ? pair.first : pair.second;
}

// Noise on `columns` tokens from `token` on, into out[base] and what follows, by `threads` threads
// of which this is number `thread`. Rounded before it is added, so that every pass adds the same.
template <typename Shared>
LOGITLESS_DEVICE void make_noise(
    const NoiseKey& key,
    float size,
    int64_t token,
    int columns,
    int thread,
    int threads,
    Shared& out,
    int base
) {
  constexpr int kGroup = static_cast<int>(kNoiseGroup);
  const auto skipped = static_cast<int>(token % kNoiseGroup);
  const uint64_t first = noise_counter(token - skipped);
  const int counters = (skipped + columns + kGroup - 1) / kGroup * 16;
  const auto put = [&](int column, float normal) {
    if (column >= 0 && column < columns) out[base + column] = product(size, normal);
  };
#pragma unroll 1
  for (int i = thread; i < counters; i += threads) {
    const PhiloxWords words = noise_words(key, first + static_cast<uint64_t>(i));
    const int column = i / 16 * kGroup + i % 16 - skipped;
    const NormalPair one = normal_pair(words.word[0], words.word[1]);
    const NormalPair two = normal_pair(words.word[2], words.word[3]);
    put(column, one.first);
    put(column + 16, one.second);
    put(column + 32, two.first);
    put(column + 48, two.second);
  }
}

// Adds what make_noise has left; `base` is the place of the first of these columns.
template <typename Shared>
LOGITLESS_DEVICE void add_noise(const Shared& noise, int base, const Columns& at, Quads& z) {
#pragma unroll
  for (int k = 0; k < kQuads; ++k) {
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      if (i * at.stride < at.left_of(k)) z[k][i] += noise[base + k * at.step + i * at.stride];
    }
  }
}

// The columns of a warp's split of both sides; `noise` has kPairColumns places for each warp of the
// block.
template <Steps kSteps, typename Shared>
LOGITLESS_DEVICE void read_split(
    const PairRows& rows,
    const PairTile& tile,
    const PairSplit& split,
    int warp,
    int lane,
    Shared& noise,
    Quads& y,
    Quads& z
) {
  float size = 0.0f;
  const int base = warp * static_cast<int>(kPairColumns);
  if constexpr (adds_noise(kSteps)) {
    size = noise_size(rows, split.row);
    if (size != 0.0f) {
      const int64_t token = rows.noise.start + tile.start + split.index * kPairColumns;
      const int left = split.at.left + lane * kQuad;
      const int columns = left < kPairColumns ? left : static_cast<int>(kPairColumns);
      make_noise(rows.noise.key(split.row), size, token, columns, lane, kWarp, noise, base);
      sync_warp();
    }
  }
  read_pair<transforms(kSteps)>(rows, tile, split.row, split.at, y, z);
  if constexpr (adds_noise(kSteps)) {
    if (size != 0.0f) add_noise(noise, base + lane * kQuad, split.at, z);
  }
}

}  // namespace logitless::cuda
