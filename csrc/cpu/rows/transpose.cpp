#include "transpose.h"

#include <algorithm>
#include <cstring>

#include "../runtime/parallel.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace logitless::cpu {
namespace {

typedef uint16_t Half8 __attribute__((vector_size(16)));

// A square of a cache line each way.
constexpr int kSide = 32;
// Columns of a task: two lines, since processors fetch them in pairs.
constexpr int64_t kColumns = 64;

template <int... kLanes>
Half8 pick(Half8 a, Half8 b) {
  return __builtin_shufflevector(a, b, kLanes...);
}

// Eight rows of eight become eight columns: pairs, then fours, then eights.
void turn8(const Half8 (&in)[8], Half8 (&out)[8]) {
  Half8 a[8], b[8];
  for (int i = 0; i < 4; ++i) {
    a[2 * i] = pick<0, 8, 1, 9, 2, 10, 3, 11>(in[i], in[i + 4]);
    a[2 * i + 1] = pick<4, 12, 5, 13, 6, 14, 7, 15>(in[i], in[i + 4]);
  }
  for (int i = 0; i < 4; ++i) {
    b[2 * i] = pick<0, 8, 1, 9, 2, 10, 3, 11>(a[i], a[i + 4]);
    b[2 * i + 1] = pick<4, 12, 5, 13, 6, 14, 7, 15>(a[i], a[i + 4]);
  }
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = pick<0, 8, 1, 9, 2, 10, 3, 11>(b[i], b[i + 4]);
    out[2 * i + 1] = pick<4, 12, 5, 13, 6, 14, 7, 15>(b[i], b[i + 4]);
  }
}

// A whole square, gathered in L1 first so that each line of `out` is written at once.
void turn_square(const uint16_t* in, int64_t in_stride, uint16_t* out, int64_t out_stride) {
  alignas(64) uint16_t square[kSide][kSide];
  for (int row = 0; row < kSide; row += 8) {
    for (int column = 0; column < kSide; column += 8) {
      Half8 rows[8], columns[8];
      for (int i = 0; i < 8; ++i) {
        std::memcpy(&rows[i], in + (row + i) * in_stride + column, sizeof(Half8));
      }
      turn8(rows, columns);
      for (int i = 0; i < 8; ++i) {
        std::memcpy(&square[column + i][row], &columns[i], sizeof(Half8));
      }
    }
  }
  for (int i = 0; i < kSide; ++i) std::memcpy(out + i * out_stride, square[i], sizeof(square[i]));
}

}  // namespace

bool prefer_transposed_gemm() {
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  // leaf 7: AMX-BF16 and AMX-TILE
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d >> 22 & 1) == 0 || (d >> 24 & 1) == 0) {
    return false;
  }
  // leaf 1: whether the system saves extended state at all, which xgetbv then tells more of
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c >> 27 & 1) == 0) return false;
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low >> 17 & 3) == 3;  // configuration and data of tiles
#else
  return false;
#endif
}

void transpose(const TensorView& tile, const TensorView& out, int threads) {
  const int64_t n = tile.shape[0], width = tile.shape[1];
  const auto* in = static_cast<const uint16_t*>(tile.data);
  auto* to = static_cast<uint16_t*>(out.data);
  parallel_for((width + kColumns - 1) / kColumns, threads, [&](int64_t task) {
    const int64_t last = std::min((task + 1) * kColumns, width);
    for (int64_t row = 0; row < n; row += kSide) {
      for (int64_t i = row + kSide; i < std::min(row + 2 * kSide, n); ++i) {
        __builtin_prefetch(in + i * width + task * kColumns);
        __builtin_prefetch(in + i * width + task * kColumns + kSide);
      }
      for (int64_t column = task * kColumns; column < last; column += kSide) {
        if (row + kSide <= n && column + kSide <= last) {
          turn_square(in + row * width + column, width, to + column * n + row, n);
          continue;
        }
        for (int64_t c = column; c < std::min(column + kSide, last); ++c) {
          for (int64_t r = row; r < std::min(row + kSide, n); ++r)
            to[c * n + r] = in[r * width + c];
        }
      }
    }
  });
}

}  // namespace logitless::cpu
