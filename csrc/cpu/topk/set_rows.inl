// Logits of a row at some columns alone: products with gathered rows of a matrix, and entries of a
// tile. Included by topk.inl, inside an instruction set's anonymous namespace.

// Vectors of sums of one product.
constexpr int kDots = 4;

// How many rows of the matrix, which lie anywhere, are on their way while one is read.
constexpr int64_t kRowsAhead = 3;

// sum + the products of a vector at a and one at b: of bf16 where there is an instruction for it
// two vectors, so that a step is half as many.
template <typename S>
struct Products {
  using Vec = typename Simd<typename Storage<S>::T>::Vec;
  static constexpr int kStep = kWidth<typename Storage<S>::T>;
  LOGITLESS_INLINE static Vec add(Vec sum, const S* a, const S* b) {
    return sum + Storage<S>::read(a) * Storage<S>::read(b);
  }
};
#if defined(__AVX512BF16__)
template <>
struct Products<bf16> {
  static constexpr int kStep = 2 * kWidth<float>;
  LOGITLESS_INLINE static VecF add(VecF sum, const bf16* a, const bf16* b) {
    return _mm512_dpbf16_ps(sum, load<__m512bh>(a), load<__m512bh>(b));
  }
};
#endif

template <typename S>
typename Storage<S>::T dot_of(const S* a, const S* b, int64_t n, const S* ahead) {
  using T = typename Storage<S>::T;
  using Vec = typename Simd<T>::Vec;
  constexpr int kW = kWidth<T>, kStep = Products<S>::kStep;
  Vec sums[kDots] = {};
  int64_t c = 0;
  for (; c + kDots * kStep <= n; c += kDots * kStep) {
    for (size_t line = 0; line < kDots * kStep * sizeof(S); line += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(ahead + c) + line);
    }
    for (int u = 0; u < kDots; ++u) {
      sums[u] = Products<S>::add(sums[u], a + c + u * kStep, b + c + u * kStep);
    }
  }
  for (; c + kStep <= n; c += kStep) sums[0] = Products<S>::add(sums[0], a + c, b + c);
  if (c < n) {
    S x[kStep] = {}, y[kStep] = {};
    __builtin_memcpy(x, a + c, (n - c) * sizeof(S));
    __builtin_memcpy(y, b + c, (n - c) * sizeof(S));
    sums[1] = Products<S>::add(sums[1], x, y);
  }
  T lanes[kW];
  store(lanes, (sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (int half = kW / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

template <typename S>
void dots_of(const RowDots& in, typename Storage<S>::T* values) {
  const S* row = static_cast<const S*>(in.row);
  const S* dense = static_cast<const S*>(in.dense);
  for (int64_t i = 0; i < in.count; ++i) {
    const int64_t next = i + kRowsAhead < in.count ? i + kRowsAhead : i;
    const S* ahead = dense + in.columns[next] * in.stride;
    values[i] = dot_of<S>(row, dense + in.columns[i] * in.stride, in.n, ahead);
  }
}

template <typename S>
void pick_of(const RowEntries& in) {
  using T = typename Storage<S>::T;
  constexpr int kW = kWidth<T>;
  const S* row = static_cast<const S*>(in.row);
  T* values = static_cast<T*>(in.values);
  for (int64_t i = 0; i < in.count; i += kW) {
    const int64_t n = in.count - i < kW ? in.count - i : kW;
    S some[kW] = {};
    for (int64_t u = 0; u < n; ++u) some[u] = row[in.columns[i + u] - in.start];
    const auto read = Storage<S>::read(some);
    __builtin_memcpy(values + i, &read, n * sizeof(T));
  }
}

template <typename S>
void put_of(const RowEntries& in) {
  using T = typename Storage<S>::T;
  using Vec = typename Simd<T>::Vec;
  constexpr int kW = kWidth<T>;
  S* row = static_cast<S*>(in.row);
  const T* values = static_cast<const T*>(in.values);
  for (int64_t i = 0; i < in.count; i += kW) {
    const int64_t n = in.count - i < kW ? in.count - i : kW;
    T some[kW] = {};
    __builtin_memcpy(some, values + i, n * sizeof(T));
    S rounded[kW];
    Storage<S>::write(rounded, load<Vec>(some));
    for (int64_t u = 0; u < n; ++u) row[in.columns[i + u] - in.start] = rounded[u];
  }
}
