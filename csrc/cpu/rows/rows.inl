// The row kernels, written once and compiled once per instruction set (rows_<isa>.cpp).
#include "rows.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace logitless::cpu {
namespace LOGITLESS_ISA {
namespace {

#include "reader.inl"

// Asks for the next block while this one is computed on: the exp pass leaves the memory bus idle.
template <typename S>
inline void prefetch_next(const BlockInput& in, int64_t i) {
  const char* next =
      static_cast<const char*>(in.raw) + (i + kBlock) * static_cast<int64_t>(sizeof(S));
  for (size_t line = 0; line < kLanes * sizeof(S); line += 64) __builtin_prefetch(next + line);
}

// Two passes over a block: its maximum, then the sums. Where y is not what memory holds, the first
// pass leaves it in L1 for the second. The tail is padded with -inf: padding adds exactly nothing.
template <typename S, bool kTransformed, bool kExtras>
void block_moments(const BlockInput& in, int64_t target_column, BlockMoments* out) {
  using T = typename Storage<S>::T;
  using Vec = typename Simd<T>::Vec;
  constexpr int kW = kWidth<T>, kG = kGroup<T>, kHalf = kG / 2;
  constexpr bool kInPlace = !kTransformed && sizeof(S) == sizeof(T);
  const Reader<S, kTransformed> y_at(in);
  alignas(64) T y[kBlock];
  Vec max[kG];
  for (int u = 0; u < kG; ++u) max[u] = Vec{} - T(INFINITY);
  const int64_t whole = in.n / kLanes * kLanes;
  const int64_t padded = (in.n + kLanes - 1) / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int u = 0; u < kG; u += 2) {
      Vec v0, v1;
      y_at.pair(i + u * kW, v0, v1);
      max[u] = larger(v0, max[u]);
      max[u + 1] = larger(v1, max[u + 1]);
      if (!kInPlace) {
        store(y + i + u * kW, v0);
        store(y + i + (u + 1) * kW, v1);
      }
    }
  }
  for (int64_t c = whole; c < padded; c += kW) {
    Vec v = Vec{} - T(INFINITY);
    if (c < in.n) v = c + kW <= in.n ? y_at(c) : y_at.tail(c, in.n - c);
    store(y + c, v);
  }
  for (int64_t c = in.n; c < padded; ++c) y[c] = -T(INFINITY);
  for (int64_t c = whole; c < padded; c += kW) max[0] = larger(load<Vec>(y + c), max[0]);
  const T* main = kInPlace ? static_cast<const T*>(in.raw) : y;

  *out = BlockMoments{Moments{}, NAN};
  const auto at = [&](int64_t c) { return y_at.broadcast(c)[0]; };
  if (target_column >= 0 && target_column < in.n) out->target = at(target_column);
  T m = -T(INFINITY);
  for (int u = 0; u < kG; ++u) {
    for (int lane = 0; lane < kW; ++lane) {
      if (max[u][lane] > m) m = max[u][lane];
    }
  }
  if (m == -T(INFINITY)) {
    // Nothing finite: the empty piece, unless a NaN hides among the -inf.
    for (int64_t c = 0; c < in.n; ++c) {
      if (at(c) != at(c)) out->moments.s0 = NAN;
    }
    return;
  }
  // In base 2: t = x log2(e), so that s1, s2 and q1 are in bits until the end.
  const T scale = T(in.scale * kLog2E);
  const Vec lowest = Vec{} + Simd<T>::kLowest;
  Vec s0[kG] = {}, s1[kG] = {}, s2[kHalf] = {}, q0[kHalf], q1[kHalf];
  // A lane of small e alone would sum to denormal numbers here. The specks change no bit of the
  // whole: some lane has the maximum's 1, lanes are added in double, and q1 is rid of them again.
  for (int u = 0; u < kHalf; ++u) {
    q0[u] = Vec{} + Simd<T>::kSpeck;
    q1[u] = Vec{} - Simd<T>::kSpeck;
  }
  for (int64_t i = 0; i < padded; i += kLanes) {
    const T* source = i < whole ? main : y;
    prefetch_next<S>(in, i);
    for (int u = 0; u < kG; ++u) {
      const Vec t = larger(lowest, (load<Vec>(source + i + u * kW) - m) * scale);
      const Vec e = vector_exp2<T>(t, Simd<T>::kSumQ);
      s0[u] += e;
      s1[u] += t * e;
      if (kExtras) {
        const Vec te = t * e, own = squarable<T>(e);
        s2[u % kHalf] += t * te;
        q0[u % kHalf] += own * own;
        q1[u % kHalf] += te * own;
      }
    }
  }
  out->moments.m = m;
  out->moments.s0 = lane_sum<T>(s0);
  out->moments.s1 = lane_sum<T>(s1) * kLn2;
  if (kExtras) {
    out->moments.s2 = lane_sum<T>(s2) * (kLn2 * kLn2);
    out->moments.q0 = lane_sum<T>(q0);
    out->moments.q1 = (lane_sum<T>(q1) + kHalf * kW * double(Simd<T>::kSpeck)) * kLn2;
  }
}

// The first column whose y is `value`, which is in the block.
template <typename S, bool kTransformed>
int64_t block_find(const BlockInput& in, double value) {
  using T = typename Storage<S>::T;
  const Reader<S, kTransformed> y_at(in);
  for (int64_t c = 0; c < in.n; c += kWidth<T>) {
    const int64_t n = in.n - c < kWidth<T> ? in.n - c : kWidth<T>;
    const auto y = n == kWidth<T> ? y_at(c) : y_at.tail(c, n);
    for (int64_t i = 0; i < n; ++i) {
      if (static_cast<double>(y[i]) == value) return c + i;
    }
  }
  return -1;
}

// One pass: d(raw) = e^x (A + B t) dy/du, then the target's own term. Reading and writing the same
// memory is fine: a vector is read before it is written, and the target kept aside.
template <typename S, bool kTransformed>
void block_gradient(
    const BlockInput& in, const RowGradient& g, int64_t target_column, void* out_data
) {
  using T = typename Storage<S>::T;
  using Vec = typename Simd<T>::Vec;
  constexpr int kW = kWidth<T>;
  S* out = static_cast<S*>(out_data);
  const Reader<S, kTransformed> y_at(in);
  const double factor = in.scale * (in.transform.softcap != 0 ? in.transform.pre_scale : 1);
  const T m = T(g.m), scale = T(in.scale * kLog2E);
  const double a = g.inv_s0 * factor * (g.a - g.b * g.log_s0);
  const double b = g.inv_s0 * factor * g.b * kLn2;
  const int shift = exponent_shift(a, b);
  const T constant = T(__builtin_ldexp(a, shift)), linear = T(__builtin_ldexp(b, shift));
  const T round = Simd<T>::kRound - T(shift);
  const Vec lowest = Vec{} + (Simd<T>::kLowest + T(shift));
  const auto gradient = [&](Vec y) __attribute__((always_inline)) {
    const Vec t = larger(lowest, (y - m) * scale);
    return vector_exp2<T>(t, round) * (constant + linear * t);
  };
  const Vec own = Vec{} + T(g.g_logp * factor);
  // d(raw) of the vector that read(slope) reads.
  const auto differentiate = [&](auto&& read, bool is_target) __attribute__((always_inline)) {
    Vec slope{};
    const Vec d = gradient(read(kTransformed ? &slope : nullptr));
    if (!kTransformed) return is_target ? d + own : d;
    return is_target ? d * slope + own * slope : d * slope;
  };
  const bool has_target = target_column >= 0 && target_column < in.n;
  Vec at_target{};
  if (has_target) {
    const auto read = [&](Vec* slope) { return y_at.broadcast(target_column, slope); };
    at_target = differentiate(read, true);
  }
  int64_t c = 0;
  for (; c + kW <= in.n; c += kW) {
    const auto read = [&](Vec* slope) __attribute__((always_inline)) { return y_at(c, slope); };
    Storage<S>::write(out + c, differentiate(read, false));
  }
  S buffer[kW];
  if (c < in.n) {
    const auto read = [&](Vec* slope) { return y_at.tail(c, in.n - c, slope); };
    Storage<S>::write(buffer, differentiate(read, false));
    __builtin_memcpy(out + c, buffer, (in.n - c) * sizeof(S));
  }
  if (has_target) {
    Storage<S>::write(buffer, at_target);
    out[target_column] = buffer[0];
  }
}

template <typename S, bool kTransformed>
void block_weights(const BlockInput& in, double m, double* weights, double* y_out) {
  using T = typename Storage<S>::T;
  using Vec = typename Simd<T>::Vec;
  constexpr int kW = kWidth<T>;
  const Reader<S, kTransformed> y_at(in);
  const Vec lowest = Vec{} + Simd<T>::kLowest;
  for (int64_t c = 0; c < in.n; c += kW) {
    const int64_t n = in.n - c < kW ? in.n - c : kW;
    const Vec y = n == kW ? y_at(c) : y_at.tail(c, n);
    const Vec e = vector_exp2<T>(larger(lowest, (y - T(m)) * T(in.scale * kLog2E)));
    for (int64_t i = 0; i < n; ++i) {
      weights[c + i] = e[i];
      y_out[c + i] = y[i];
    }
  }
}

void moments(Dtype dtype, const BlockInput& in, int64_t target, bool extras, BlockMoments* out) {
  visit(dtype, in, [&](auto storage, auto transform) {
    using S = typename decltype(storage)::type;
    constexpr bool kTransformed = decltype(transform)::value;
    extras ? block_moments<S, kTransformed, true>(in, target, out)
           : block_moments<S, kTransformed, false>(in, target, out);
  });
}

int64_t find(Dtype dtype, const BlockInput& in, double value) {
  int64_t column = -1;
  visit(dtype, in, [&](auto storage, auto transform) {
    column = block_find<typename decltype(storage)::type, decltype(transform)::value>(in, value);
  });
  return column;
}

void gradient(Dtype dtype, const BlockInput& in, const RowGradient& g, int64_t target, void* out) {
  visit(dtype, in, [&](auto storage, auto transform) {
    block_gradient<typename decltype(storage)::type, decltype(transform)::value>(
        in, g, target, out
    );
  });
}

void weights(Dtype dtype, const BlockInput& in, double m, double* out, double* y) {
  visit(dtype, in, [&](auto storage, auto transform) {
    block_weights<typename decltype(storage)::type, decltype(transform)::value>(in, m, out, y);
  });
}

// vector_exp2 over n floats, for its test: n is a multiple of kLanes.
void exp2_floats(const float* t, int64_t n, float* out) {
  const VecF lowest = VecF{} + Simd<float>::kLowest;
  for (int64_t i = 0; i < n; i += kWidth<float>) {
    store(out + i, vector_exp2<float>(larger(lowest, load<VecF>(t + i))));
  }
}

}  // namespace

extern const RowKernels row_kernels;
const RowKernels row_kernels = {moments, find, gradient, weights, exp2_floats};

}  // namespace LOGITLESS_ISA
}  // namespace logitless::cpu
