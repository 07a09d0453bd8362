// Sparse rows times a dense matrix, and their way into memory. Included by topk.inl, inside an
// instruction set's anonymous namespace.

// Vectors of sums held in registers while the entries go by.
constexpr int kSums = kBytes == 64 ? 16 : 8;
// Rows of the dense matrix lie anywhere: one is asked for this many entries ahead.
constexpr int64_t kAhead = 6;

// kCount vectors of columns from c on, for all entries.
template <typename S, int kCount>
LOGITLESS_INLINE void sum_columns(
    const SparseSum& in, int64_t c, typename Simd<typename Storage<S>::T>::Vec* sums
) {
  using T = typename Storage<S>::T;
  constexpr int kW = kWidth<T>;
  const S* dense = static_cast<const S*>(in.dense) + in.first + c;
  const T* values = static_cast<const T*>(in.values);
  for (int64_t i = 0; i < in.count; ++i) {
    if (i + kAhead < in.count) {
      const char* ahead = reinterpret_cast<const char*>(dense + in.columns[i + kAhead] * in.stride);
      for (size_t line = 0; line < kCount * kW * sizeof(S); line += 64) {
        __builtin_prefetch(ahead + line);
      }
    }
    const S* row = dense + in.columns[i] * in.stride;
    for (int u = 0; u < kCount; ++u) sums[u] += values[i] * Storage<S>::read(row + u * kW);
  }
}

template <typename S>
void sum_chain(const SparseSum& in, typename Storage<S>::T* out) {
  using T = typename Storage<S>::T;
  using Vec = typename Simd<T>::Vec;
  constexpr int kW = kWidth<T>;
  int64_t c = 0;
  for (; c + kSums * kW <= in.n; c += kSums * kW) {
    Vec sums[kSums] = {};
    sum_columns<S, kSums>(in, c, sums);
    for (int u = 0; u < kSums; ++u) store(out + c + u * kW, sums[u]);
  }
  for (; c + kW <= in.n; c += kW) {
    Vec sum[1] = {};
    sum_columns<S, 1>(in, c, sum);
    store(out + c, sum[0]);
  }
  if (c == in.n) return;
  Vec sum{};
  const S* dense = static_cast<const S*>(in.dense) + in.first + c;
  for (int64_t i = 0; i < in.count; ++i) {
    S row[kW] = {};
    __builtin_memcpy(row, dense + in.columns[i] * in.stride, (in.n - c) * sizeof(S));
    sum += static_cast<const T*>(in.values)[i] * Storage<S>::read(row);
  }
  T last[kW];
  store(last, sum);
  __builtin_memcpy(out + c, last, (in.n - c) * sizeof(T));
}

template <typename S>
void sparse_sum_of(const SparseSum& in, typename Storage<S>::T* out) {
  using T = typename Storage<S>::T;
  SparseSum part = in;
  part.count = in.count < kChain ? in.count : kChain;
  sum_chain<S>(part, out);
  for (int64_t done = part.count; done < in.count; done += part.count) {
    part.columns = in.columns + done;
    part.values = static_cast<const T*>(in.values) + done;
    part.count = in.count - done < kChain ? in.count - done : kChain;
    T more[kBlock];
    sum_chain<S>(part, more);
    for (int64_t c = 0; c < in.n; ++c) out[c] += more[c];
  }
}

template <typename S>
void deposit_in(const typename Storage<S>::T* sums, int64_t n, bool add, S* out) {
  using T = typename Storage<S>::T;
  using Vec = typename Simd<T>::Vec;
  constexpr int kW = kWidth<T>;
  const auto total = [&](Vec sum, const S* old) __attribute__((always_inline)) {
    return add ? sum + Storage<S>::read(old) : sum;
  };
  int64_t c = 0;
  for (; c + kW <= n; c += kW) Storage<S>::write(out + c, total(load<Vec>(sums + c), out + c));
  if (c == n) return;
  S old[kW] = {};
  T last[kW] = {};
  __builtin_memcpy(old, out + c, (n - c) * sizeof(S));
  __builtin_memcpy(last, sums + c, (n - c) * sizeof(T));
  Storage<S>::write(old, total(load<Vec>(last), old));
  __builtin_memcpy(out + c, old, (n - c) * sizeof(S));
}
