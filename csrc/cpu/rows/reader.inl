// Logits of every storage type as vectors of y. Included inside an instruction set's anonymous
// namespace, by the files of kernels that read logits.
#include "simd.inl"

template <bool kValue>
struct bool_constant {
  static constexpr bool value = kValue;
};

// Partial sums live in this many virtual lanes on every instruction set. Those of the extras use
// half as many, which is what fits into the registers.
constexpr int kLanes = 64;

template <typename T>
constexpr int kWidth = kBytes / static_cast<int>(sizeof(T));
template <typename T>
constexpr int kGroup = kLanes / kWidth<T>;

// Logits as y = softcap(pre_scale * (raw + bias)), read a vector at a time at column c of the
// block.
template <typename S, bool kTransformed>
struct Reader {
  using T = typename Storage<S>::T;
  using Vec = typename Simd<T>::Vec;

  explicit Reader(const BlockInput& in)
      : raw(static_cast<const S*>(in.raw)),
        bias(
            in.transform.bias == nullptr ? nullptr
                                         : static_cast<const T*>(in.transform.bias) + in.first
        ),
        cap(T(in.transform.softcap)),
        inner(in.transform.softcap == 0 ? T(0) : T(in.transform.pre_scale / in.transform.softcap)) {
  }

  // `slope` gets dy / d(raw + bias), without `pre_scale`; asked for only where logits are
  // transformed.
  LOGITLESS_INLINE Vec operator()(int64_t c, Vec* slope = nullptr) const {
    return apply(raw + c, bias == nullptr ? nullptr : bias + c, slope);
  }

  // Two vectors of columns from c on, in whichever order is cheapest.
  LOGITLESS_INLINE void pair(int64_t c, Vec& a, Vec& b) const {
    if constexpr (kTransformed) {
      a = (*this)(c);
      b = (*this)(c + kWidth<T>);
    } else {
      read_pair<S>(raw + c, a, b);
    }
  }

  // The last n < width columns from c on; the rest of the vector repeats the first of them.
  Vec tail(int64_t c, int64_t n, Vec* slope = nullptr) const {
    S values[kWidth<T>];
    T biases[kWidth<T>] = {};
    for (int i = 0; i < kWidth<T>; ++i) values[i] = raw[c + (i < n ? i : 0)];
    if (bias != nullptr) __builtin_memcpy(biases, bias + c, n * sizeof(T));
    return apply(values, bias == nullptr ? nullptr : biases, slope);
  }

  // Every lane the same column.
  Vec broadcast(int64_t c, Vec* slope = nullptr) const {
    S values[kWidth<T>];
    T biases[kWidth<T>] = {};
    for (int i = 0; i < kWidth<T>; ++i) {
      values[i] = raw[c];
      if (bias != nullptr) biases[i] = bias[c];
    }
    return apply(values, bias == nullptr ? nullptr : biases, slope);
  }

  const S* raw;
  const T* bias;
  T cap, inner;

 private:
  LOGITLESS_INLINE Vec apply(const S* values, const T* biases, Vec* slope) const {
    Vec v = Storage<S>::read(values);
    if constexpr (kTransformed) {
      if (biases != nullptr) v = v + load<Vec>(biases);
      if (cap != 0) {
        v = vector_tanh<T>(v * inner, slope) * cap;
      } else if (slope != nullptr) {
        *slope = Vec{} + T(1);
      }
    }
    return v;
  }
};

// Calls fn(storage tag, transformed tag).
template <typename Fn>
void visit(Dtype dtype, const BlockInput& in, Fn&& fn) {
  visit_float(dtype, "logits", [&](auto tag) {
    in.transform.changes_logits() ? fn(tag, bool_constant<true>{})
                                  : fn(tag, bool_constant<false>{});
  });
}

// Halves fold onto each other in double: the same tree on every instruction set, and without the
// chain of dependent additions that one lane after another would be (3% of the forward).
template <typename T, typename Vec, int kCount>
inline double lane_sum(const Vec (&v)[kCount]) {
  constexpr int kTotal = kCount * kWidth<T>;
  T lanes[kTotal];
  double sums[kTotal];
  __builtin_memcpy(lanes, v, sizeof(lanes));
  for (int i = 0; i < kTotal; ++i) sums[i] = lanes[i];
  for (int half = kTotal / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

// How far exponents of e^x are shifted so that its product with coefficients of this size is 0
// before it is a denormal number. Powers of two change no other bit of it.
inline int exponent_shift(double a, double b) {
  const double size = __builtin_fmax(__builtin_fabs(a), __builtin_fabs(b));
  if (!(size > 0 && size < 1)) return 0;
  const int shift = -__builtin_ilogb(size);
  return shift < 100 ? shift : 100;
}
