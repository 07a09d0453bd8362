#include "transpose.h"

#include <cstring>

#include "parallel.h"

namespace logitless::cpu {
namespace {

constexpr int64_t kLine = 32;  // columns: a cache line of a row of `out`
constexpr int64_t kTask = 32 * kLine;

uint64_t load(const uint16_t* p) {
  uint64_t word;
  std::memcpy(&word, p, sizeof(word));
  return word;
}
void store(uint16_t* p, uint64_t word) { std::memcpy(p, &word, sizeof(word)); }

// 4 x 4 in four words: pairs of 16 bits change places, then pairs of 32. A tenth of the time of
// one element after the other, on any 64-bit machine.
void square(const uint16_t* in, int64_t in_stride, uint16_t* out, int64_t out_stride) {
  constexpr uint64_t kLow16 = 0x0000ffff0000ffff, kLow32 = 0x00000000ffffffff;
  const uint64_t a = load(in), b = load(in + in_stride);
  const uint64_t c = load(in + 2 * in_stride), d = load(in + 3 * in_stride);
  const uint64_t ab0 = (a & kLow16) | (b & kLow16) << 16, ab1 = (a >> 16 & kLow16) | (b & ~kLow16);
  const uint64_t cd0 = (c & kLow16) | (d & kLow16) << 16, cd1 = (c >> 16 & kLow16) | (d & ~kLow16);
  store(out, (ab0 & kLow32) | cd0 << 32);
  store(out + out_stride, (ab1 & kLow32) | cd1 << 32);
  store(out + 2 * out_stride, ab0 >> 32 | (cd0 & ~kLow32));
  store(out + 3 * out_stride, ab1 >> 32 | (cd1 & ~kLow32));
}

}  // namespace

void transpose_tile(const TensorView& tile, const TensorView& out, int threads) {
  check(tile.ndim == 2 && out.ndim == 2, "tile and out must be matrices");
  const int64_t columns = tile.shape[0], rows = tile.shape[1], out_stride = out.strides[0];
  check(out.shape[0] == rows && out.shape[1] == columns, "out must be the transpose of tile");
  check(dtype_bytes(tile.dtype) == 2 && out.dtype == tile.dtype, "tile and out must be 16-bit");
  check(tile.contiguous() && (columns <= 1 || out.strides[1] == 1), "rows must be contiguous");
  const auto* in = static_cast<const uint16_t*>(tile.data);
  auto* to = static_cast<uint16_t*>(out.data);
  parallel_for((columns + kTask - 1) / kTask, threads, [&](int64_t task) {
    const int64_t stop = columns < (task + 1) * kTask ? columns : (task + 1) * kTask;
    for (int64_t first = task * kTask; first < stop; first += kLine) {
      const int64_t last = stop < first + kLine ? stop : first + kLine;
      // A line of four rows is written whole before the next: rows are often a power of two apart.
      for (int64_t row = 0; row < rows; row += 4) {
        int64_t c = first;
        for (; row + 4 <= rows && c + 4 <= last; c += 4) {
          square(in + c * rows + row, rows, to + row * out_stride + c, out_stride);
        }
        for (; c < last; ++c) {
          for (int64_t r = row; r < rows && r < row + 4; ++r) {
            to[r * out_stride + c] = in[c * rows + r];
          }
        }
      }
    }
  });
}

}  // namespace logitless::cpu
