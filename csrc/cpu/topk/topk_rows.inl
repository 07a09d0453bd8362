// What keeps the largest entries of a row: entries above a threshold, and how many are above one.
// Included by topk.inl, inside an instruction set's anonymous namespace.

template <typename S, bool kTransformed>
int64_t block_above(const BlockInput& in, double threshold, double* y_out, int32_t* columns) {
  using T = typename Storage<S>::T;
  using Vec = typename Simd<T>::Vec;
  constexpr int kW = kWidth<T>;
  const Reader<S, kTransformed> y_at(in);
  // The largest T that is not above the threshold: the same comparison, a vector at a time.
  T limit = T(threshold);
  if (static_cast<double>(limit) > threshold) limit = next_below(limit);
  int64_t found = 0;
  const auto take = [&](Vec y, uint64_t lanes, int64_t c) __attribute__((always_inline)) {
    for (; lanes != 0; lanes &= lanes - 1) {
      const int lane = __builtin_ctzll(lanes);
      y_out[found] = y[lane];
      columns[found++] = static_cast<int32_t>(c + lane);
    }
  };
  int64_t c = 0;
  for (; c + kLanes <= in.n; c += kLanes) {
    Vec most = Vec{} - T(INFINITY);
    for (int u = 0; u < kGroup<T>; u += 2) {
      Vec v0, v1;
      y_at.pair(c + u * kW, v0, v1);
      most = larger(v0, larger(v1, most));
    }
    if (lanes_above(most, Vec{} + limit) == 0) continue;
    for (int u = 0; u < kGroup<T>; ++u) {
      const Vec y = y_at(c + u * kW);
      take(y, lanes_above(y, Vec{} + limit), c + u * kW);
    }
  }
  for (; c + kW <= in.n; c += kW) {
    const Vec y = y_at(c);
    take(y, lanes_above(y, Vec{} + limit), c);
  }
  if (c < in.n) {
    const Vec y = y_at.tail(c, in.n - c);
    take(y, lanes_above(y, Vec{} + limit) & ((uint64_t{1} << (in.n - c)) - 1), c);
  }
  return found;
}

int64_t count_above(const double* y, int64_t n, double limit) {
  using Bits = typename Simd<double>::Bits;
  constexpr int kW = kWidth<double>;
  Bits above{};
  int64_t i = 0;
  for (; i + kW <= n; i += kW) above -= bit_cast<Bits>(load<VecD>(y + i) > limit);  // true is -1
  int64_t count = 0;
  for (int lane = 0; lane < kW; ++lane) count += static_cast<int64_t>(above[lane]);
  for (; i < n; ++i) count += y[i] > limit;
  return count;
}
