// What the row kernels of every device share: the rows of a call, their outputs, and the
// coefficients of their gradient.
#pragma once

#include "row_state.h"
#include "tensor_view.h"

namespace logitless {

// The CPU works through a row in blocks of this many columns, numbered by global vocabulary id: two
// passes over a block stay in L1 (8 KiB of floats). Sums are in the compute type inside a block and
// in double across blocks, so any tiling of the vocabulary in multiples of the block gives the same
// bits. Sampling draws a block first, everywhere.
constexpr int64_t kBlock = 2048;

// y = softcap(pre_scale * (raw + bias)); z = scale * y. Without a softcap pre_scale is 1, and scale
// holds logit_scale.
struct LogitTransform {
  const void* bias = nullptr;  // compute type, first column of the tile; may be null
  double pre_scale = 1;
  double softcap = 0;  // 0: none

  LOGITLESS_HD bool changes_logits() const { return bias != nullptr || softcap != 0; }
};

// Everything about the rows of a call that does not change from tile to tile.
struct Rows {
  int64_t n = 0;
  const int64_t* targets = nullptr;   // [n]
  const uint8_t* mask = nullptr;      // [n] or null: all
  const double* row_scale = nullptr;  // [n] or null: `scale`
  double scale = 1;
  LogitTransform transform;
  int threads = 1;  // of the CPU

  LOGITLESS_HD bool active(int64_t row) const { return mask == nullptr || mask[row] != 0; }
  LOGITLESS_HD double scale_of(int64_t row) const {
    return row_scale != nullptr ? row_scale[row] : scale;
  }
};

struct RowOutputs {
  TensorView logp, entropy, lse;  // [n]
  // [n] each, or data == null
#define LOGITLESS_FIELD(name) TensorView name;
  LOGITLESS_STATISTICS(LOGITLESS_FIELD)
#undef LOGITLESS_FIELD
  int64_t* argmax = nullptr;  // [n] or null
};

// Calls write(array, row, value) for every result that is a number.
template <typename Write>
LOGITLESS_HD inline void write_row(
    const RowOutputs& out, int64_t row, const TokenValues& v, const TokenExtras& e, Write write
) {
  write(out.logp, row, v.logp);
  write(out.entropy, row, v.entropy);
  write(out.lse, row, v.lse);
#define LOGITLESS_WRITE(name) write(out.name, row, e.name);
  LOGITLESS_STATISTICS(LOGITLESS_WRITE)
#undef LOGITLESS_WRITE
}

// Rows are those of [N, V] or, with strides of their own, of [B, T, V].
LOGITLESS_HD inline int64_t row_offset(const TensorView& tile, int64_t row) {
  if (tile.ndim == 2) return row * tile.strides[0];
  return row / tile.shape[1] * tile.strides[0] + row % tile.shape[1] * tile.strides[1];
}

// The column of a target counted from column `first` of the vocabulary, or -1 where it comes
// earlier. What is no target may be any number, from which a plain difference would wrap.
LOGITLESS_HD inline int64_t column_from(int64_t target, int64_t first) {
  return target < first ? -1 : target - first;
}

inline void check_tile(const Rows& rows, const TensorView& tile, const char* name) {
  check(
      tile.ndim == 2 || tile.ndim == 3,
      name,
      " must be [N, V] or [B, T, V], got ",
      tile.ndim,
      " dimensions"
  );
  const int64_t n = tile.ndim == 2 ? tile.shape[0] : tile.shape[0] * tile.shape[1];
  const int last = tile.ndim - 1;
  check(n == rows.n, name, " must have ", rows.n, " rows, got ", n);
  // NumPy's strides of an empty array are zeros
  check(
      tile.size() == 0 || tile.shape[last] <= 1 || tile.strides[last] == 1,
      name,
      " must have contiguous rows (last stride 1)"
  );
  visit_float(tile.dtype, name, [](auto) {});
}

// Of tiles that check_tile has seen.
inline void check_gradient(const TensorView& logits, const TensorView& gradient) {
  check(
      gradient.dtype == logits.dtype,
      "gradient must have the dtype of logits, ",
      dtype_name(logits.dtype),
      ", got ",
      dtype_name(gradient.dtype)
  );
  const int64_t columns = logits.shape[logits.ndim - 1];
  const int64_t got = gradient.shape[gradient.ndim - 1];
  check(got == columns, "gradient must have the columns of logits, ", columns, ", got ", got);
}

// What is wrong with a row. On a device a bad row is reported as row_id * 8 + one of these.
enum class RowError : int64_t { none, infinite, nan, empty, target, overflow, teacher };

LOGITLESS_HD inline RowError row_error(const Moments& a, int64_t target, int64_t vocab) {
  if (a.m == INFINITY) return RowError::infinite;
  if (a.s0 != a.s0) return RowError::nan;
  if (a.s0 == 0) return RowError::empty;
  return target >= 0 && target < vocab ? RowError::none : RowError::target;
}

// Whether scaling takes a row's finite logits beyond what T holds, from its lse in double. A logp
// below that is -inf in T, as that of an impossible token.
template <typename T>
LOGITLESS_HD inline bool overflows(double lse) {
  const double stored = static_cast<double>(static_cast<T>(lse));
  return stored == INFINITY || stored == -INFINITY;
}

// dz = p * (a + b * log p) + g_logp * 1[target], then through the transform back to the raw logits.
struct RowGradient {
  double m, inv_s0, log_s0;
  double a, b, g_logp;
};

// dz_v = g_logp (1[v=a] - p_v) - g_H p_v (log p_v + H) + g_lse p_v
LOGITLESS_HD inline RowGradient row_gradient(
    const Moments& a, double g_logp, double g_entropy, double g_lse
) {
  const double log_s0 = log(a.s0);
  const double entropy = log_s0 - a.s1 / a.s0;
  return {a.m, 1 / a.s0, log_s0, g_lse - g_logp - g_entropy * entropy, -g_entropy, g_logp};
}

}  // namespace logitless
