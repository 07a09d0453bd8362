// The noise of core/noise.h a group of tokens at a time. Included inside an instruction set's
// anonymous namespace.

// Words of 16 counters from `first` on: loops over them are what compilers make vectors of.
LOGITLESS_INLINE void noise_words_of(
    const NoiseKey& key, uint64_t first, uint32_t (&words)[4][16]
) {
  const uint64_t seed = key.seed ^ kNoiseSeed, place = key.step << kNoiseStepShift | first;
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int j = 0; j < 16; ++j) {
    words[0][j] = static_cast<uint32_t>(key.row);
    words[1][j] = static_cast<uint32_t>(key.row >> 32);
    // counters of a group share all but their lowest four bits
    words[2][j] = static_cast<uint32_t>(place) + static_cast<uint32_t>(j);
    words[3][j] = static_cast<uint32_t>(place >> 32);
  }
  for (int round = 0; round < 10; ++round) {
    for (int j = 0; j < 16; ++j) {
      const uint64_t product0 = uint64_t{0xD2511F53} * words[0][j];
      const uint64_t product1 = uint64_t{0xCD9E8D57} * words[2][j];
      words[0][j] = static_cast<uint32_t>(product1 >> 32) ^ words[1][j] ^ key0;
      words[1][j] = static_cast<uint32_t>(product1);
      words[2][j] = static_cast<uint32_t>(product0 >> 32) ^ words[3][j] ^ key1;
      words[3][j] = static_cast<uint32_t>(product0);
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// sum of coefficient[i] x^i, from the last on.
template <typename Vec, typename T, int kTerms>
LOGITLESS_INLINE Vec polynomial(Vec x, const T (&coefficients)[kTerms]) {
  Vec sum = Vec{} + coefficients[kTerms - 1];
  for (int i = kTerms - 2; i >= 0; --i) sum = sum * x + coefficients[i];
  return sum;
}

// Taylor about 0 on |x| <= pi / 4, of sin(x) / x and of cos(x) in x^2.
template <typename T>
struct Turn;
template <>
struct Turn<float> {
  using Word = uint32_t;
  static constexpr float kSin[] = {1.0f, -1.0f / 6, 1.0f / 120, -1.0f / 5040, 1.0f / 362880};
  static constexpr float kCos[] = {
      1.0f, -1.0f / 2, 1.0f / 24, -1.0f / 720, 1.0f / 40320, -1.0f / 3628800
  };
};
template <>
struct Turn<double> {
  using Word = uint64_t;
  static constexpr double kSin[] = {
      1.0,
      -1.0 / 6,
      1.0 / 120,
      -1.0 / 5040,
      1.0 / 362880,
      -1.0 / 39916800,
      1.0 / 6227020800,
      -1.0 / 1307674368000,
      1.0 / 355687428096000
  };
  static constexpr double kCos[] = {
      1.0,
      -1.0 / 2,
      1.0 / 24,
      -1.0 / 720,
      1.0 / 40320,
      -1.0 / 3628800,
      1.0 / 479001600,
      -1.0 / 87178291200,
      1.0 / 20922789888000,
      -1.0 / 6402373705728000
  };
};

// -ln u of u in (0, 1): with u = 2^k w and w in [1/sqrt 2, sqrt 2], ln w = 2 atanh((w - 1) / (w +
// 1)), which keeps its digits beside 1.
template <typename T>
LOGITLESS_INLINE typename Simd<T>::Vec minus_log(typename Simd<T>::Vec u) {
  using Vec = typename Simd<T>::Vec;
  using Bits = typename Simd<T>::Bits;
  constexpr int kTerms = sizeof(T) == 4 ? 6 : 12, kMantissa = Simd<T>::kExponentBits;
  constexpr int kBias = sizeof(T) == 4 ? 127 : 1023;
  constexpr typename Turn<T>::Word kMask = (typename Turn<T>::Word{1} << kMantissa) - 1;
  const Bits bits = bit_cast<Bits>(u), one = bit_cast<Bits>(Vec{} + T(1));
  Vec w = bit_cast<Vec>((bits & (Bits{} + kMask)) | one);
  Vec k = __builtin_convertvector(bits >> kMantissa, Vec) - T(kBias);
  const auto large = w > T(1.41421356237309504880);
  w = large ? w * T(0.5) : w;
  k = large ? k + T(1) : k;
  const Vec s = (w - T(1)) / (w + T(1)), square = s * s;
  Vec series = Vec{} + T(1.0 / (2 * kTerms - 1));
  for (int i = kTerms - 2; i >= 0; --i) series = series * square + T(1.0 / (2 * i + 1));
  return -(k * T(kLn2) + T(2) * s * series);
}

inline float root(float x) { return __builtin_sqrtf(x); }
inline double root(double x) { return __builtin_sqrt(x); }

// The 64 tokens of a group, into out.
template <typename T>
void noise_group(const NoiseKey& key, int64_t group, T* out) {
  using Vec = typename Simd<T>::Vec;
  constexpr int kW = kWidth<T>;
  static_assert(16 % kW == 0, "a vector lies within 16 counters");
  uint32_t words[4][16];
  noise_words_of(key, static_cast<uint64_t>(group) * 16, words);
  for (int half = 0; half < 2; ++half) {
    T lengths[16], turns[16], parts[16];
    for (int j = 0; j < 16; ++j) {
      const uint32_t a = words[2 * half][j], b = words[2 * half + 1][j];
      lengths[j] = (T(static_cast<int32_t>(a >> 9)) + T(0.5)) * T(0x1p-23);
      turns[j] = T(static_cast<int32_t>(b >> 30));
      parts[j] = (T(static_cast<int32_t>(b >> 7 & 0x7fffff)) + T(0.5)) * T(0x1p-23) - T(0.5);
    }
    for (int j = 0; j < 16; j += kW) {
      store(lengths + j, T(2) * minus_log<T>(load<Vec>(lengths + j)));
      for (int i = j; i < j + kW; ++i) lengths[i] = root(lengths[i]);
      const Vec radius = load<Vec>(lengths + j);
      const Vec x = load<Vec>(parts + j) * T(1.57079632679489661923), x2 = x * x;
      const Vec s = x * polynomial(x2, Turn<T>::kSin), c = polynomial(x2, Turn<T>::kCos);
      const Vec turn = load<Vec>(turns + j);
      // quarters of a turn: (c, s), (-s, c), (-c, -s), (s, -c)
      const auto odd = (turn == T(1)) | (turn == T(3)), far = turn >= T(2);
      const Vec cosine = odd ? -s : c, sine = odd ? c : s;
      store(out + 32 * half + j, radius * (far ? -cosine : cosine));
      store(out + 32 * half + 16 + j, radius * (far ? -sine : sine));
    }
  }
}

// Of `columns` tokens, rounded up to whole lanes: where in `memory` they start, which has room for
// two groups more.
template <typename T>
const T* noise_of_block(const BlockNoise& noise, int64_t columns, T* memory) {
  if (noise.values != nullptr) {
    for (int64_t c = 0; c < padded_columns(columns); ++c) {
      memory[c] = c < columns ? T(noise.values[c]) : T(0);
    }
    return memory;
  }
  const int64_t skipped = noise.first % kNoiseGroup, first = noise.first / kNoiseGroup;
  for (int64_t group = 0; group * kNoiseGroup < skipped + padded_columns(columns); ++group) {
    noise_group<T>(noise.key, first + group, memory + group * kNoiseGroup);
  }
  return memory + skipped;
}
