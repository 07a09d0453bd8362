// The row kernels, written once and compiled once per instruction set (rows_<isa>.cpp).
#include "rows.h"

namespace logitless::cpu {
namespace LOGITLESS_ISA {
namespace {

#include "simd.inl"

// Partial sums live in this many virtual lanes on every instruction set and are added up in lane
// order.
constexpr int kLanes = 64;

// One block of y in L1, padded with -inf to whole lane groups: padding adds exactly nothing.
template <typename T>
struct Block {
  alignas(64) T y[kBlock];
  int64_t padded;
  T max;
};

template <typename T>
inline typename Simd<T>::Vec apply_chain(
    typename Simd<T>::Vec v, const Chain& chain, const T* bias
) {
  using Vec = typename Simd<T>::Vec;
  if (bias != nullptr) v = v + load<Vec>(bias);
  if (chain.softcap == 0) return v;
  const T cap = T(chain.softcap);
  return vector_tanh<T>(v * T(chain.pre / chain.softcap)) * cap;
}

// Reads raw[0, n) through the chain. The tail goes through a padded copy, never past the row's end.
template <typename S, typename Block>
inline void read_block(const BlockInput& in, Block& block) {
  using T = typename Storage<S>::T;
  using Vec = typename Simd<T>::Vec;
  constexpr int kWidth = kBytes / sizeof(T);
  const S* raw = static_cast<const S*>(in.raw);
  const T* bias = static_cast<const T*>(in.chain.bias);
  if (bias != nullptr) bias += in.first;
  const Vec lowest = Vec{} - T(INFINITY);
  constexpr int kGroup = kLanes / kWidth;
  Vec max[kGroup];
  for (int u = 0; u < kGroup; ++u) max[u] = lowest;
  int64_t i = 0;
  if (in.chain.bias == nullptr && in.chain.softcap == 0) {
    for (; i + kLanes <= in.n; i += kLanes) {
      for (int u = 0; u < kGroup; ++u) {
        const Vec v = Storage<S>::read(raw + i + u * kWidth);
        max[u] = v > max[u] ? v : max[u];
        store(block.y + i + u * kWidth, v);
      }
    }
  } else {
    for (; i + kLanes <= in.n; i += kLanes) {
      for (int u = 0; u < kGroup; ++u) {
        const int64_t c = i + u * kWidth;
        const Vec v =
            apply_chain<T>(Storage<S>::read(raw + c), in.chain, bias ? bias + c : nullptr);
        max[u] = v > max[u] ? v : max[u];
        store(block.y + c, v);
      }
    }
  }
  block.padded = i;
  if (i < in.n) {
    S tail[kLanes] = {};
    T tail_bias[kLanes] = {};
    __builtin_memcpy(tail, raw + i, (in.n - i) * sizeof(S));
    if (bias != nullptr) __builtin_memcpy(tail_bias, bias + i, (in.n - i) * sizeof(T));
    for (int u = 0; u < kGroup; ++u) {
      const Vec v = apply_chain<T>(
          Storage<S>::read(tail + u * kWidth), in.chain, bias ? tail_bias + u * kWidth : nullptr
      );
      store(block.y + i + u * kWidth, v);
    }
    for (int64_t c = in.n; c < i + kLanes; ++c) block.y[c] = -T(INFINITY);
    for (int u = 0; u < kGroup; ++u) {
      const Vec v = load<Vec>(block.y + i + u * kWidth);
      max[u] = v > max[u] ? v : max[u];
    }
    block.padded = i + kLanes;
  }
  block.max = -T(INFINITY);
  for (int u = 0; u < kGroup; ++u) {
    for (int lane = 0; lane < kWidth; ++lane) {
      if (max[u][lane] > block.max) block.max = max[u][lane];
    }
  }
}

// Asks for the next block while this one is computed on: the exp pass leaves the memory bus idle.
template <typename S>
inline void prefetch_next(const BlockInput& in, int64_t i) {
  const char* next =
      static_cast<const char*>(in.raw) + (i + kBlock) * static_cast<int64_t>(sizeof(S));
  for (size_t line = 0; line < kLanes * sizeof(S); line += 64) __builtin_prefetch(next + line);
}

template <typename Vec, int kGroup>
inline double lane_sum(const Vec (&v)[kGroup]) {
  constexpr int kWidth = kLanes / kGroup;
  double sum = 0;
  for (int u = 0; u < kGroup; ++u) {
    for (int lane = 0; lane < kWidth; ++lane) sum += static_cast<double>(v[u][lane]);
  }
  return sum;
}

template <typename S, bool kExtras>
void block_moments(const BlockInput& in, int64_t target_column, BlockMoments* out) {
  using T = typename Storage<S>::T;
  using Vec = typename Simd<T>::Vec;
  constexpr int kWidth = kBytes / sizeof(T);
  constexpr int kGroup = kLanes / kWidth;
  Block<T> block;
  read_block<S>(in, block);
  *out = BlockMoments{Moments{}, NAN, -1};
  if (target_column >= 0 && target_column < in.n) out->target = block.y[target_column];
  if (block.max == -T(INFINITY)) {
    // Nothing finite: the empty piece, unless a NaN hides among the -inf.
    for (int64_t c = 0; c < in.n; ++c) {
      if (block.y[c] != block.y[c]) out->moments.s0 = NAN;
    }
    return;
  }
  const T m = block.max;
  const T scale = T(in.scale);
  Vec s0[kGroup] = {}, s1[kGroup] = {}, s2[kGroup] = {}, q0[kGroup] = {}, q1[kGroup] = {};
  for (int64_t i = 0; i < block.padded; i += kLanes) {
    prefetch_next<S>(in, i);
    for (int u = 0; u < kGroup; ++u) {
      const Vec x = (load<Vec>(block.y + i + u * kWidth) - m) * scale;
      const Vec e = vector_exp<T>(x);
      // e is exactly 0 below kLowest, but -inf * 0 is not: clamp x for the products only.
      const Vec xc = x < Simd<T>::kLowest ? (Vec{} + Simd<T>::kLowest) : x;
      const Vec xe = xc * e;
      s0[u] += e;
      s1[u] += xe;
      if (kExtras) {
        s2[u] += xc * xe;
        q0[u] += e * e;
        q1[u] += xe * e;
      }
    }
  }
  out->moments = {m, lane_sum(s0), lane_sum(s1), lane_sum(s2), lane_sum(q0), lane_sum(q1)};
  if (kExtras) {
    out->argmax = 0;
    while (block.y[out->argmax] != m) ++out->argmax;
  }
}

template <typename S>
void block_gradient(
    const BlockInput& in, const BlockGradient& g, int64_t target_column, void* out_data
) {
  using T = typename Storage<S>::T;
  using Vec = typename Simd<T>::Vec;
  constexpr int kWidth = kBytes / sizeof(T);
  S* out = static_cast<S*>(out_data);
  Block<T> block;
  read_block<S>(in, block);
  const T m = T(g.m), scale = T(in.scale), inv_s0 = T(g.inv_s0), log_s0 = T(g.log_s0);
  const T a = T(g.a), b = T(g.b);
  const bool capped = in.chain.softcap != 0;
  const T inv_cap = capped ? T(1 / in.chain.softcap) : T(0);
  const T factor = T(in.scale * (capped ? in.chain.pre : 1));
  const bool has_target = target_column >= 0 && target_column < in.n;
  T target_slope = factor;
  if (has_target && capped) {
    const T t = block.y[target_column] * inv_cap;
    target_slope = factor * (1 - t * t);
  }
  for (int64_t i = 0; i < block.padded; i += kWidth) {
    const Vec y = load<Vec>(block.y + i);
    const Vec x = (y - m) * scale;
    const Vec p = vector_exp<T>(x) * inv_s0;
    const Vec xc = x < Simd<T>::kLowest ? (Vec{} + Simd<T>::kLowest) : x;
    Vec d = p * (a + b * (xc - log_s0)) * factor;
    if (capped) {
      const Vec t = y * inv_cap;
      d = d * (T(1) - t * t);
    }
    store(block.y + i, d);
  }
  if (has_target) block.y[target_column] += T(g.g_logp) * target_slope;
  int64_t i = 0;
  for (; i + kWidth <= in.n; i += kWidth) Storage<S>::write(out + i, load<Vec>(block.y + i));
  if (i < in.n) {
    S tail[kWidth];
    Storage<S>::write(tail, load<Vec>(block.y + i));
    __builtin_memcpy(out + i, tail, (in.n - i) * sizeof(S));
  }
}

template <typename S>
void block_weights(const BlockInput& in, double m, double* weights, double* y) {
  using T = typename Storage<S>::T;
  using Vec = typename Simd<T>::Vec;
  constexpr int kWidth = kBytes / sizeof(T);
  Block<T> block;
  read_block<S>(in, block);
  for (int64_t i = 0; i < in.n; ++i) y[i] = block.y[i];
  for (int64_t i = 0; i < block.padded; i += kWidth) {
    const Vec x = (load<Vec>(block.y + i) - T(m)) * T(in.scale);
    store(block.y + i, vector_exp<T>(x));
  }
  for (int64_t i = 0; i < in.n; ++i) weights[i] = block.y[i];
}

void moments(Dtype dtype, const BlockInput& in, int64_t target, bool extras, BlockMoments* out) {
  visit_float(dtype, "logits", [&](auto tag) {
    using S = typename decltype(tag)::type;
    extras ? block_moments<S, true>(in, target, out) : block_moments<S, false>(in, target, out);
  });
}

void gradient(
    Dtype dtype, const BlockInput& in, const BlockGradient& g, int64_t target, void* out
) {
  visit_float(dtype, "logits", [&](auto tag) {
    block_gradient<typename decltype(tag)::type>(in, g, target, out);
  });
}

void weights(Dtype dtype, const BlockInput& in, double m, double* out, double* y) {
  visit_float(dtype, "logits", [&](auto tag) {
    block_weights<typename decltype(tag)::type>(in, m, out, y);
  });
}

}  // namespace

#define LOGITLESS_STRING2(name) #name
#define LOGITLESS_STRING(name) LOGITLESS_STRING2(name)
extern const RowKernels kernels;
const RowKernels kernels = {LOGITLESS_STRING(LOGITLESS_ISA), moments, gradient, weights};

}  // namespace LOGITLESS_ISA
}  // namespace logitless::cpu
