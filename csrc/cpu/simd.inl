// Vectors of the compiler (GCC and Clang), one width per instruction set, and the vector exp.
// Included inside an instruction set's anonymous namespace; no std templates here, since an inline
// function compiled for AVX-512 could be the copy the linker keeps for everyone.

constexpr int kBytes = LOGITLESS_VECTOR_BYTES;
typedef float VecF __attribute__((vector_size(kBytes)));
typedef int32_t IntF __attribute__((vector_size(kBytes)));
typedef uint32_t BitsF __attribute__((vector_size(kBytes)));
typedef uint16_t HalfBits __attribute__((vector_size(kBytes / 2)));
typedef double VecD __attribute__((vector_size(kBytes)));
typedef int64_t IntD __attribute__((vector_size(kBytes)));
typedef uint64_t BitsD __attribute__((vector_size(kBytes)));

template <typename T>
struct Simd;

// Polynomials: e^r = 1 + r + r^2 Q(r) on |r| <= ln2/2, Q interpolated at Chebyshev nodes in 40
// digits.
template <>
struct Simd<float> {
  using Vec = VecF;
  using Int = IntF;
  using Bits = BitsF;
  static constexpr int kExponentBits = 23;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kLowest = -87.33654f;  // log of the smallest normal
  static constexpr float kLn2Hi = 0.693359375f, kLn2Lo = -2.12194440054690583e-4f;
  static constexpr uint32_t kBias = 127;
  static constexpr float kQ[] = {
      0.5f,
      0.16666576986989698776f,
      0.041666554617204574203f,
      0.0083631790527225773704f,
      0.0013926183587713491454f
  };
};

template <>
struct Simd<double> {
  using Vec = VecD;
  using Int = IntD;
  using Bits = BitsD;
  static constexpr int kExponentBits = 52;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLowest = -708.39;
  static constexpr double kLn2Hi = 0x1.62e42fefa0000p-1, kLn2Lo = 0x1.cf79abc9e3b39p-40;
  static constexpr uint64_t kBias = 1023;
  static constexpr double kQ[] = {
      0.5,
      0.16666666666666670991,
      0.041666666666666669755,
      0.0083333333333261351258,
      0.0013888888888883748305,
      0.00019841269874820625271,
      0.000024801587325547741216,
      2.755725540020642443e-6,
      2.7557273643110295328e-7,
      2.5105217004720745164e-8,
      2.0914686968086877233e-9
  };
};

template <typename To, typename From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

template <typename V>
inline V load(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
template <typename V>
inline void store(void* p, const V& v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

// e^x for x <= 88 (709 in double); maximum error 1 ulp for float on [-87.33, 88], checked over
// every float by tests. Below kLowest, -inf included, the result is exactly 0, chosen by select.
// NaN stays NaN: scaling by 2^k is a product, since adding k to a NaN's exponent bits could make a
// number of it.
template <typename T>
inline typename Simd<T>::Vec vector_exp(typename Simd<T>::Vec x) {
  using S = Simd<T>;
  using Vec = typename S::Vec;
  using Bits = typename S::Bits;
  const Vec shifted = x * T(1.4426950408889634074) + S::kRound;
  const Vec k = shifted - S::kRound;
  Vec r = x - k * S::kLn2Hi;
  r = r - k * S::kLn2Lo;
  constexpr int kTerms = sizeof(S::kQ) / sizeof(S::kQ[0]);
  Vec q = r * S::kQ[kTerms - 1] + S::kQ[kTerms - 2];
  for (int i = kTerms - 3; i >= 0; --i) q = q * r + S::kQ[i];
  const Vec p = (q * r) * r + r + T(1);
  const Vec power = bit_cast<Vec>((bit_cast<Bits>(shifted) + S::kBias) << S::kExponentBits);
  return x < S::kLowest ? Vec{} : p * power;
}

// tanh to about 2 ulp: a series near 0, where 1 - 2/(1 + e^2|x|) would cancel.
template <typename T>
inline typename Simd<T>::Vec vector_tanh(typename Simd<T>::Vec x) {
  using Vec = typename Simd<T>::Vec;
  Vec a = x < T(0) ? -x : x;
  const T far = sizeof(T) == 4 ? T(10) : T(20);
  const Vec capped = a > far ? (Vec{} + far) : a;
  const Vec big = T(1) - T(2) / (T(1) + vector_exp<T>(capped + capped));
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
  static VecF read(const float* p) { return load<VecF>(p); }
  static void write(float* p, VecF v) { store(p, v); }
};

template <>
struct Storage<double> {
  using T = double;
  static VecD read(const double* p) { return load<VecD>(p); }
  static void write(double* p, VecD v) { store(p, v); }
};

template <>
struct Storage<bf16> {
  using T = float;
  static VecF read(const bf16* p) {
    return bit_cast<VecF>(__builtin_convertvector(load<HalfBits>(p), BitsF) << 16);
  }
  // Round to nearest, ties to even; a NaN keeps a mantissa bit.
  static void write(bf16* p, VecF v) {
    const BitsF bits = bit_cast<BitsF>(v);
    const BitsF rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const BitsF out = v == v ? rounded : ((bits >> 16) | 0x40u);
    store(p, __builtin_convertvector(out, HalfBits));
  }
};

template <>
struct Storage<f16> {
  using T = float;
  static VecF read(const f16* p) {
    const BitsF h = __builtin_convertvector(load<HalfBits>(p), BitsF);
    const BitsF magnitude = (h & 0x7fffu) << 13;
    const VecF scaled = bit_cast<VecF>(magnitude) * 0x1p112f;
    const BitsF finite = bit_cast<BitsF>(scaled);
    const BitsF special = finite | 0x7f800000u;
    const BitsF out = (h & 0x7c00u) == 0x7c00u ? special : finite;
    return bit_cast<VecF>(out | ((h & 0x8000u) << 16));
  }
  // Round to nearest even: subnormal halves through the float adder, normal ones on the bits.
  static void write(f16* p, VecF v) {
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
