// The kernels of two softmaxes, written once and compiled once per instruction set
// (divergence_<isa>.cpp). A block of each is brought to y in L1 first, so that what works on the
// two knows no storage type.
#include "divergence.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace logitless::cpu {
namespace LOGITLESS_ISA {
namespace {

#include "../rows/reader.inl"

// Columns of a block with whole lanes: what is past the end is -inf, which has no mass.
inline int64_t padded_columns(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// y of a block, and where `slope` is given dy / d(raw + bias) without `pre_scale`. The block's
// largest y.
template <typename T>
T stage(Dtype dtype, const BlockInput& in, T* y, T* slope) {
  using Vec = typename Simd<T>::Vec;
  constexpr int kW = kWidth<T>;
  Vec max = Vec{} - T(INFINITY);
  visit(dtype, in, [&](auto storage, auto transform) {
    using S = typename decltype(storage)::type;
    constexpr bool kTransformed = decltype(transform)::value;
    // both tiles are of double, or none: the driver has seen to it
    if constexpr (sizeof(typename Storage<S>::T) == sizeof(T)) {
      const Reader<S, kTransformed> y_at(in);
      Vec at{};
      for (int64_t c = 0; c < in.n; c += kW) {
        Vec* const asked = kTransformed && slope != nullptr ? &at : nullptr;
        const Vec v = c + kW <= in.n ? y_at(c, asked) : y_at.tail(c, in.n - c, asked);
        max = larger(v, max);
        store(y + c, v);
        if (asked != nullptr) store(slope + c, at);
      }
    }
  });
  for (int64_t c = in.n; c < padded_columns(in.n); ++c) y[c] = -T(INFINITY);
  T m = -T(INFINITY);
  for (int lane = 0; lane < kW; ++lane) {
    if (max[lane] > m) m = max[lane];
  }
  return m;
}

#include "noise.inl"

// The same of the teacher's, with its noise.
template <typename T>
T stage_teacher(const PairBlock& in, T* y) {
  using Vec = typename Simd<T>::Vec;
  constexpr int kW = kWidth<T>;
  const T m = stage<T>(in.teacher_dtype, in.teacher, y, nullptr);
  if (in.noise.size == 0) return m;
  alignas(64) T memory[kBlock + 2 * kNoiseGroup];
  const T* noise = noise_of_block(in.noise, in.teacher.n, memory);
  Vec max = Vec{} - T(INFINITY);
  for (int64_t c = 0; c < padded_columns(in.teacher.n); c += kW) {
    const Vec v = load<Vec>(y + c) + load<Vec>(noise + c) * T(in.noise.size);
    max = larger(v, max);
    store(y + c, v);
  }
  T found = -T(INFINITY);
  for (int lane = 0; lane < kW; ++lane) {
    if (max[lane] > found) found = max[lane];
  }
  return found;
}

// What y is counted from: of a block without any mass, 0, from which its columns are -inf still.
template <typename T>
inline T reference_of(T m) {
  return m == -T(INFINITY) ? T(0) : m;
}

// In base 2: (y - m) log2(e) * scale.
template <typename T>
inline T bits_scale(const BlockInput& in) {
  return T(in.scale * kLog2E);
}

// Few sums per lane: there are six of them in the registers.
template <typename T>
constexpr int kSums = kGroup<T> / 4;

template <typename T>
void moments_of(const PairBlock& in, PairState* out) {
  using Vec = typename Simd<T>::Vec;
  constexpr int kW = kWidth<T>;
  alignas(64) T y[kBlock], other[kBlock];
  const T m = stage<T>(in.dtype, in.student, y, nullptr);
  const T m_other = stage_teacher<T>(in, other);
  const T from = reference_of(m), from_other = reference_of(m_other);
  const T scale = bits_scale<T>(in.student), scale_other = bits_scale<T>(in.teacher);
  const Vec lowest = Vec{} + Simd<T>::kLowest;
  Vec s0[kSums<T>] = {}, s1[kSums<T>] = {}, gap[kSums<T>] = {};
  Vec t0[kSums<T>] = {}, t1[kSums<T>] = {}, back[kSums<T>] = {};
  for (int64_t i = 0; i < padded_columns(in.student.n); i += kLanes) {
    for (int u = 0; u < kGroup<T>; ++u) {
      const int sum = u % kSums<T>;
      const Vec x = (load<Vec>(y + i + u * kW) - from) * scale;
      const Vec z = (load<Vec>(other + i + u * kW) - from_other) * scale_other;
      const Vec x_low = larger(lowest, x), z_low = larger(lowest, z);
      const Vec p = vector_exp2<T>(x_low, Simd<T>::kSumQ);
      const Vec q = vector_exp2<T>(z_low, Simd<T>::kSumQ);
      // by select: both may be -inf, and one of them where the other has mass
      const Vec d = x - z;
      s0[sum] += p;
      s1[sum] += x_low * p;
      gap[sum] += p > T(0) ? d * p : Vec{};
      t0[sum] += q;
      t1[sum] += z_low * q;
      back[sum] -= q > T(0) ? d * q : Vec{};
    }
  }
  out->student = {m, lane_sum<T>(s0), lane_sum<T>(s1) * kLn2, lane_sum<T>(gap) * kLn2};
  out->teacher = {m_other, lane_sum<T>(t0), lane_sum<T>(t1) * kLn2, lane_sum<T>(back) * kLn2};
}

// With d = log2 of (1 - beta) p over beta q: log2 of (1 - beta) p over mix. Where q has no mass d
// is +inf, and this 0.
template <typename T>
LOGITLESS_INLINE typename Simd<T>::Vec share_of(typename Simd<T>::Vec d) {
  using Vec = typename Simd<T>::Vec;
  const Vec lowest = Vec{} + Simd<T>::kLowest, apart = d > T(0) ? -d : d;
  const Vec log_sum = log2_1p<T>(vector_exp2<T>(larger(lowest, apart)));
  return (d > T(0) ? Vec{} : d) - log_sum;
}

template <typename T>
void mix_of(const PairBlock& in, const PairNormals& of, double beta, MixSums* out) {
  using Vec = typename Simd<T>::Vec;
  constexpr int kW = kWidth<T>;
  alignas(64) T y[kBlock], other[kBlock];
  stage<T>(in.dtype, in.student, y, nullptr);
  stage_teacher<T>(in, other);
  const T m = T(of.m), m_other = T(of.teacher_m), offset = T(pair_odds(of, beta));
  const T scale = bits_scale<T>(in.student), scale_other = bits_scale<T>(in.teacher);
  const T own = T(mix_offset(beta)), others = T(teacher_mix_offset(beta));
  const Vec lowest = Vec{} + Simd<T>::kLowest;
  Vec student[kSums<T>] = {}, teacher[kSums<T>] = {};
  for (int64_t i = 0; i < padded_columns(in.student.n); i += kLanes) {
    for (int u = 0; u < kGroup<T>; ++u) {
      const int sum = u % kSums<T>;
      const Vec x = (load<Vec>(y + i + u * kW) - m) * scale;
      const Vec z = (load<Vec>(other + i + u * kW) - m_other) * scale_other;
      const Vec p = vector_exp2<T>(larger(lowest, x)), q = vector_exp2<T>(larger(lowest, z));
      const Vec d = (x - z) + offset, share = share_of<T>(d);
      student[sum] += p > T(0) ? (share + own) * p : Vec{};
      // log2 of beta q over mix; where p has no mass both are -inf, and it is 0
      const Vec rest = d > T(-INFINITY) ? share - d : Vec{};
      teacher[sum] += q > T(0) ? (rest + others) * q : Vec{};
    }
  }
  out->student = lane_sum<T>(student) * kLn2 * __builtin_exp2(-of.log2_s0);
  out->teacher = lane_sum<T>(teacher) * kLn2 * __builtin_exp2(-of.teacher_log2_s0);
}

enum class Term { none, gap, mix, other };

// y becomes d(raw) without its slope.
template <typename T, Term kTerm>
void differentiate(
    T* y,
    const T* other,
    const PairBlock& in,
    const PairNormals& of,
    const PairCoefficients& g,
    double beta
) {
  using Vec = typename Simd<T>::Vec;
  constexpr int kW = kWidth<T>;
  const T m = T(of.m), m_other = T(of.teacher_m), offset = T(pair_odds(of, beta));
  const T scale = bits_scale<T>(in.student), scale_other = bits_scale<T>(in.teacher);
  const double size = __builtin_fmax(
      __builtin_fmax(__builtin_fabs(g.constant), __builtin_fabs(g.linear)), __builtin_fabs(g.gap)
  );
  const int shift = exponent_shift(size, g.other);
  const T constant = T(__builtin_ldexp(g.constant, shift));
  const T linear = T(__builtin_ldexp(g.linear, shift)), gap = T(__builtin_ldexp(g.gap, shift));
  const T teacher = T(__builtin_ldexp(g.other, shift));
  const T round = Simd<T>::kRound - T(shift);
  const Vec lowest = Vec{} + (Simd<T>::kLowest + T(shift));
  for (int64_t c = 0; c < in.student.n; c += kW) {
    const Vec x = (load<Vec>(y + c) - m) * scale;
    const Vec x_low = larger(lowest, x), p = vector_exp2<T>(x_low, round);
    Vec factor = constant + linear * x_low;
    Vec d{};
    if constexpr (kTerm != Term::none) {
      const Vec z = (load<Vec>(other + c) - m_other) * scale_other;
      if constexpr (kTerm == Term::gap) factor += gap * (x - z);
      if constexpr (kTerm == Term::mix) factor += gap * share_of<T>((x - z) + offset);
      if constexpr (kTerm == Term::other) {
        d = teacher * vector_exp2<T>(larger(lowest, z), round);
      }
    }
    // by select: a gap may be anything where p has no mass
    store(y + c, (p > T(0) ? factor * p : Vec{}) + d);
  }
}

template <typename T>
void gradient_of(
    const PairBlock& in,
    const PairNormals& of,
    const PairGradient& g,
    Divergence kind,
    double beta,
    void* out
) {
  using Vec = typename Simd<T>::Vec;
  constexpr int kW = kWidth<T>;
  alignas(64) T y[kBlock], other[kBlock], slope[kBlock];
  stage<T>(in.dtype, in.student, y, slope);
  const LogitTransform& transform = in.student.transform;
  const bool sloped = transform.changes_logits();
  const double scale = in.student.scale * (transform.softcap != 0 ? transform.pre_scale : 1);
  const PairCoefficients bits = pair_coefficients(scale, of, g, kind, beta);
  const bool alone = g.c == 0 && g.t == 0;
  if (!alone) stage_teacher<T>(in, other);
  if (alone) {
    differentiate<T, Term::none>(y, other, in, of, bits, 0.5);
  } else if (kind == Divergence::forward_kl) {
    differentiate<T, Term::other>(y, other, in, of, bits, 0.5);
  } else if (kind == Divergence::reverse_kl) {
    differentiate<T, Term::gap>(y, other, in, of, bits, 0.5);
  } else {
    differentiate<T, Term::mix>(y, other, in, of, bits, beta);
  }
  if (sloped) {
    for (int64_t c = 0; c < in.student.n; c += kW) {
      store(y + c, load<Vec>(y + c) * load<Vec>(slope + c));
    }
  }
  visit_float(in.dtype, "gradient", [&](auto tag) {
    using S = typename decltype(tag)::type;
    if constexpr (sizeof(typename Storage<S>::T) == sizeof(T)) {
      S* to = static_cast<S*>(out);
      int64_t c = 0;
      for (; c + kW <= in.student.n; c += kW) Storage<S>::write(to + c, load<Vec>(y + c));
      if (c < in.student.n) {
        S buffer[kW];
        Storage<S>::write(buffer, load<Vec>(y + c));
        __builtin_memcpy(to + c, buffer, (in.student.n - c) * sizeof(S));
      }
    }
  });
}

void moments(const PairBlock& in, PairState* out) {
  in.dtype == Dtype::f64 ? moments_of<double>(in, out) : moments_of<float>(in, out);
}

void mix(const PairBlock& in, const PairNormals& of, double beta, MixSums* out) {
  in.dtype == Dtype::f64 ? mix_of<double>(in, of, beta, out) : mix_of<float>(in, of, beta, out);
}

void gradient(
    const PairBlock& in,
    const PairNormals& of,
    const PairGradient& g,
    Divergence kind,
    double beta,
    void* out
) {
  in.dtype == Dtype::f64 ? gradient_of<double>(in, of, g, kind, beta, out)
                         : gradient_of<float>(in, of, g, kind, beta, out);
}

}  // namespace

extern const PairKernels pair_kernels;
const PairKernels pair_kernels = {moments, mix, gradient};

}  // namespace LOGITLESS_ISA
}  // namespace logitless::cpu
