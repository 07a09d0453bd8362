// Vectors of the compiler (GCC and Clang), one width per instruction set, and the vector exp.
// Included inside an instruction set's anonymous namespace; no std templates here, since an inline
// function compiled for AVX-512 could be the copy the linker keeps for everyone.

// GCC leaves vector_exp2 as a call in some loops, which doubles their time.
#define LOGITLESS_INLINE inline __attribute__((always_inline))

constexpr int kBytes = LOGITLESS_VECTOR_BYTES;
typedef float VecF __attribute__((vector_size(kBytes)));
typedef uint32_t BitsF __attribute__((vector_size(kBytes)));
typedef uint16_t HalfBits __attribute__((vector_size(kBytes / 2)));
typedef double VecD __attribute__((vector_size(kBytes)));
typedef uint64_t BitsD __attribute__((vector_size(kBytes)));

template <typename T>
struct Simd;

// Of float in core/exp2.h, with what the terms are; of double with a relative error of 8e-18.
template <>
struct Simd<float> {
  using Vec = VecF;
  using Bits = BitsF;
  static constexpr int kExponentBits = 23;
  static constexpr float kRound = kExp2Round;
  static constexpr float kLowest = kExp2Lowest;
  // Too small to be seen beside 1, and far from what is not normal.
  static constexpr float kSpeck = 0x1p-100f;
  static constexpr float kQ[] = {LOGITLESS_EXP2_TERMS};
  static constexpr float kSumQ[] = {LOGITLESS_EXP2_SUM_TERMS};
};

template <>
struct Simd<double> {
  using Vec = VecD;
  using Bits = BitsD;
  static constexpr int kExponentBits = 52;
  static constexpr double kRound = 6755399441055744.0 + 1022.0;
  static constexpr double kLowest = -1022.0;
  static constexpr double kSpeck = 0x1p-900;
  static constexpr double kQ[] = {
      2 * 0.69314718055994530942,
      2 * 0.2402265069591009822,
      2 * 0.055504108664821594339,
      2 * 0.0096181291076068885273,
      2 * 0.001333355814641693531,
      2 * 0.00015403530441736050155,
      2 * 0.000015252733829836118394,
      2 * 1.3215442587921689653e-6,
      2 * 1.0178062445845773521e-7,
      2 * 7.0725859492692236999e-9,
      2 * 4.4549605981865183938e-10
  };
  static constexpr const auto& kSumQ = kQ;
};

constexpr double kLog2E = 1.4426950408889634074;
constexpr double kLn2 = 0.69314718055994530942;

template <typename To, typename From>
LOGITLESS_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

template <typename V>
LOGITLESS_INLINE V load(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
template <typename V>
LOGITLESS_INLINE void store(void* p, const V& v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

// a > b ? a : b, so that a NaN in b comes through. Compilers make two instructions of that line
// where x86 has one: 6% of the forward pass.
LOGITLESS_INLINE VecF larger(VecF a, VecF b) {
#if defined(__x86_64__) && LOGITLESS_VECTOR_BYTES == 64
  return _mm512_max_ps(a, b);
#elif defined(__x86_64__) && LOGITLESS_VECTOR_BYTES == 32
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}
LOGITLESS_INLINE VecD larger(VecD a, VecD b) { return a > b ? a : b; }

// Bit i: a[i] > b[i].
LOGITLESS_INLINE uint64_t lanes_above(VecF a, VecF b) {
#if defined(__x86_64__) && LOGITLESS_VECTOR_BYTES == 64
  return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
#elif defined(__x86_64__) && LOGITLESS_VECTOR_BYTES == 32
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
#elif defined(__x86_64__)
  return static_cast<unsigned>(_mm_movemask_ps(_mm_cmpgt_ps(a, b)));
#else
  const auto above = a > b;
  uint64_t bits = 0;
  for (int i = 0; i < kBytes / 4; ++i) bits |= uint64_t(above[i] & 1) << i;
  return bits;
#endif
}
LOGITLESS_INLINE uint64_t lanes_above(VecD a, VecD b) {
  const auto above = a > b;
  uint64_t bits = 0;
  for (int i = 0; i < kBytes / 8; ++i) bits |= uint64_t(above[i] & 1) << i;
  return bits;
}

// The float before a finite x or +inf.
LOGITLESS_INLINE float next_below(float x) {
  int32_t bits = bit_cast<int32_t>(x);
  if (x == 0) return -0x1p-149f;
  return bit_cast<float>(x > 0 ? bits - 1 : bits + 1);
}
LOGITLESS_INLINE double next_below(double x) { return x; }

// 2^(t-shift) for t in [kLowest + shift, 127 + shift] (1023 in double), which the caller clamps
// with larger(lowest, t). Where the result would be below 2^-125.5 (-1021.5) it is exactly 0:
// nothing in here is a denormal number, which makes some CPUs 10 times as slow as a normal one.
// Maximum error 1 ulp for float (1.25 without FMA), checked over every float of the range by tests.
// NaN stays NaN, since scaling by 2^k is a product: adding k to a NaN's exponent bits could make a
// number of it.
//
// `round` is kRound - shift. With t - shift = k + f the two factors are 2 * 2^f and 2^(k-1), so
// that an exponent field of 0 stands for all k below -125: no result below a normal number is left
// to be made.
template <typename T, int kTerms>
LOGITLESS_INLINE typename Simd<T>::Vec vector_exp2(
    typename Simd<T>::Vec t, const T (&coefficients)[kTerms], T round = Simd<T>::kRound
) {
  using S = Simd<T>;
  using Vec = typename S::Vec;
  const Vec shifted = t + round;
  const Vec f = t - (shifted - round);
  Vec q = f * coefficients[kTerms - 1] + coefficients[kTerms - 2];
  for (int i = kTerms - 3; i >= 0; --i) q = q * f + coefficients[i];
  q = q * f + T(2);
  return q * bit_cast<Vec>(bit_cast<typename S::Bits>(shifted) << S::kExponentBits);
}

template <typename T>
LOGITLESS_INLINE typename Simd<T>::Vec vector_exp2(
    typename Simd<T>::Vec t, T round = Simd<T>::kRound
) {
  return vector_exp2<T>(t, Simd<T>::kQ, round);
}

// e, or 0 where e^2 would be a denormal number. One that is an addend of a fused multiply-add is
// never made, if the sum it goes into is not one itself: that is for the caller to see to.
template <typename T>
LOGITLESS_INLINE typename Simd<T>::Vec squarable(typename Simd<T>::Vec e) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return e;
#else
  const T least = sizeof(T) == 4 ? T(0x1p-60) : T(0x1p-500);
  return e < least ? typename Simd<T>::Vec{} : e;
#endif
}

// tanh to about 2 ulp: a series near 0, where 1 - 2/(1 + e^2|x|) would cancel. Where `slope` is
// given it gets tanh' = 4 e^2|x| / (1 + e^2|x|)^2, for 1 - tanh^2 would cancel far from 0; past 43
// (350 in double), where that is below 1e-36, it is 0.
template <typename T>
LOGITLESS_INLINE typename Simd<T>::Vec vector_tanh(
    typename Simd<T>::Vec x, typename Simd<T>::Vec* slope = nullptr
) {
  using Vec = typename Simd<T>::Vec;
  Vec a = x < T(0) ? -x : x;
  const T far = sizeof(T) == 4 ? T(43) : T(350);
  const Vec capped = a > far ? (Vec{} + far) : a;
  const Vec e = vector_exp2<T>(capped * T(2 * kLog2E));
  const Vec w = T(2) / (T(1) + e);
  const Vec big = T(1) - w;
  if (slope != nullptr) *slope = a > far ? Vec{} : e * w * w;
  const Vec t = a * a;
  // Taylor to x^17: relative error 2e-9 at 0.25 in float's use, 3e-13 at 0.1 in double's.
  Vec series = t * T(6404582. / 10854718875.) + T(-929569. / 638512875.);
  series = series * t + T(21844. / 6081075.);
  series = series * t + T(-1382. / 155925.);
  series = series * t + T(62. / 2835.);
  series = series * t + T(-17. / 315.);
  series = series * t + T(2. / 15.);
  series = series * t + T(-1. / 3.);
  series = a + a * t * series;
  const T near = sizeof(T) == 4 ? T(0.25) : T(0.1);
  const Vec r = a < near ? series : big;
  return x < T(0) ? -r : r;
}

// Storage to compute type, one vector at a time.
template <typename S>
struct Storage;

template <>
struct Storage<float> {
  using T = float;
  LOGITLESS_INLINE static VecF read(const float* p) { return load<VecF>(p); }
  LOGITLESS_INLINE static void write(float* p, VecF v) { store(p, v); }
};

template <>
struct Storage<double> {
  using T = double;
  LOGITLESS_INLINE static VecD read(const double* p) { return load<VecD>(p); }
  LOGITLESS_INLINE static void write(double* p, VecD v) { store(p, v); }
};

template <>
struct Storage<bf16> {
  using T = float;
  LOGITLESS_INLINE static VecF read(const bf16* p) {
    return bit_cast<VecF>(__builtin_convertvector(load<HalfBits>(p), BitsF) << 16);
  }
  // Round to nearest, ties to even; a NaN keeps a mantissa bit.
  LOGITLESS_INLINE static void write(bf16* p, VecF v) {
#if defined(__AVX512BF16__)
    // One instruction for the nine below. It also turns subnormals (below 1e-38) into 0.
    store(p, _mm512_cvtneps_pbh(v));
#else
    const BitsF bits = bit_cast<BitsF>(v);
    const BitsF rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const BitsF out = v == v ? rounded : ((bits >> 16) | 0x40u);
    store(p, __builtin_convertvector(out, HalfBits));
#endif
  }
};

template <>
struct Storage<f16> {
  using T = float;
  LOGITLESS_INLINE static VecF read(const f16* p) {
    const BitsF h = __builtin_convertvector(load<HalfBits>(p), BitsF);
    const BitsF magnitude = (h & 0x7fffu) << 13;
    const VecF scaled = bit_cast<VecF>(magnitude) * 0x1p112f;
    const BitsF finite = bit_cast<BitsF>(scaled);
    const BitsF special = finite | 0x7f800000u;
    const BitsF out = (h & 0x7c00u) == 0x7c00u ? special : finite;
    return bit_cast<VecF>(out | ((h & 0x8000u) << 16));
  }
  // Round to nearest even: subnormal halves through the float adder, normal ones on the bits.
  LOGITLESS_INLINE static void write(f16* p, VecF v) {
    const BitsF bits = bit_cast<BitsF>(v);
    const BitsF sign = (bits >> 16) & 0x8000u;
    const BitsF magnitude = bits & 0x7fffffffu;
    const BitsF subnormal = bit_cast<BitsF>(bit_cast<VecF>(magnitude) + 0.5f) - 0x3f000000u;
    const BitsF normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
    const BitsF nan_bits = BitsF{} + 0x7e00u;
    const BitsF inf_bits = BitsF{} + 0x7c00u;
    BitsF out = magnitude < 0x38800000u ? subnormal : normal;
    out = magnitude >= 0x477ff000u ? inf_bits : out;
    out = magnitude > 0x7f800000u ? nan_bits : out;
    store(p, __builtin_convertvector(out | sign, HalfBits));
  }
};

// Two vectors from as many consecutive columns. Of bfloat16, one takes the even columns and one the
// odd: a shift and a mask, where keeping the order would need a widening as well.
template <typename S>
LOGITLESS_INLINE void read_pair(
    const S* p,
    typename Simd<typename Storage<S>::T>::Vec& a,
    typename Simd<typename Storage<S>::T>::Vec& b
) {
  a = Storage<S>::read(p);
  b = Storage<S>::read(p + kBytes / sizeof(typename Storage<S>::T));
}
template <>
LOGITLESS_INLINE void read_pair<bf16>(const bf16* p, VecF& a, VecF& b) {
  const BitsF bits = load<BitsF>(p);
  a = bit_cast<VecF>(bits << 16);
  b = bit_cast<VecF>(bits & 0xffff0000u);
}
