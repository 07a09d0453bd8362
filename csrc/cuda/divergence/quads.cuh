// Columns of a row to registers and back. They go by fours, 8 bytes of 16-bit logits and 16 of
// float32, so that a thread has the same columns of both sides whatever their types are; the types
// are looked at once for all columns of a thread, and no kernel is compiled for each pair of them.
#pragma once

#include <cuda/runtime/device.cuh>

#include "../rows/transform.cuh"

namespace logitless::cuda {

constexpr int kQuad = 4;
// Of a thread: 32 floats of either side.
constexpr int kQuads = 8;

using Raw = Words4[kQuads];  // of 16-bit logits the first two words count
using Quads = float[kQuads][kQuad];

// The columns of a thread: quad k is k * step after the first, and its columns are `stride` apart.
struct Columns {
  int64_t first;  // of the tile
  int left;       // columns of the part from the first on
  int step, stride;

  LOGITLESS_DEVICE int left_of(int k) const { return left - k * step; }
  LOGITLESS_DEVICE bool whole() const { return stride == 1 && left_of(kQuads - 1) >= kQuad; }
};

// Calls fn(type_tag<S>{}) for the storage types that the drivers let through.
template <typename Fn>
LOGITLESS_DEVICE void by_storage(Dtype dtype, Fn&& fn) {
  if (dtype == Dtype::bf16) return fn(type_tag<bf16>{});
  if (dtype == Dtype::f16) return fn(type_tag<f16>{});
  fn(type_tag<float>{});
}

template <typename S>
LOGITLESS_DEVICE S* column_at(const TensorView& tile, int64_t row, int64_t column) {
  return static_cast<S*>(tile.data) + row_offset(tile, row) + column;
}

template <typename S>
LOGITLESS_DEVICE bool quad_aligned(const S* address) {
  return reinterpret_cast<uintptr_t>(address) % (kQuad * sizeof(S)) == 0;
}

template <typename S>
LOGITLESS_DEVICE Words4 load_quad(const S* source) {
  if constexpr (sizeof(S) == 4) {
    return load16(source);
  } else {
    const Words2 v = load8(source);
    return {{v.word[0], v.word[1], 0, 0}};
  }
}

template <typename S>
LOGITLESS_DEVICE void store_quad(S* target, const Words4& v) {
  if constexpr (sizeof(S) == 4) {
    store16(target, v);
  } else {
    store8(target, {{v.word[0], v.word[1]}});
  }
}

// As stored; columns that are not there read as -inf.
LOGITLESS_DEVICE void load_quads(const TensorView& tile, int64_t row, const Columns& at, Raw& raw) {
  by_storage(tile.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    constexpr int kWords = kQuad / Packed<S>::kPerWord;
    const S* source = column_at<S>(tile, row, at.first);
    const bool aligned = at.stride == 1 && quad_aligned(source);
    if (aligned && at.whole()) {
#pragma unroll
      for (int k = 0; k < kQuads; ++k) raw[k] = load_quad(source + k * at.step);
      return;
    }
    // Elements are waited for a quad at a time, so they are asked for in advance.
#pragma unroll
    for (int k = 0; k < kQuads; ++k) {
      if (at.left_of(k) > 0) prefetch(source + k * at.step);
    }
#pragma unroll
    for (int k = 0; k < kQuads; ++k) {
      raw[k] = aligned && at.left_of(k) >= kQuad
                   ? load_quad(source + k * at.step)
                   : load_elements<S, kWords>(source + k * at.step, at.left_of(k), at.stride);
    }
  });
}

LOGITLESS_DEVICE void unpack_quads(Dtype dtype, const Raw& raw, Quads& out) {
  by_storage(dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    constexpr int kPerWord = Packed<S>::kPerWord;
#pragma unroll
    for (int k = 0; k < kQuads; ++k) {
#pragma unroll
      for (int w = 0; w < kQuad / kPerWord; ++w) {
        float values[kPerWord];
        Packed<S>::unpack(raw[k].word[w], values);
#pragma unroll
        for (int h = 0; h < kPerWord; ++h) out[k][w * kPerWord + h] = values[h];
      }
    }
  });
}

// Into the columns that are there.
LOGITLESS_DEVICE void store_quads(
    const TensorView& tile, int64_t row, const Columns& at, const Quads& values
) {
  by_storage(tile.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    constexpr int kPerWord = Packed<S>::kPerWord;
    S* target = column_at<S>(tile, row, at.first);
    const bool aligned = at.whole() && quad_aligned(target);
#pragma unroll
    for (int k = 0; k < kQuads; ++k) {
      Words4 v = {};
#pragma unroll
      for (int w = 0; w < kQuad / kPerWord; ++w) {
        float part[kPerWord];
#pragma unroll
        for (int h = 0; h < kPerWord; ++h) part[h] = values[k][w * kPerWord + h];
        v.word[w] = Packed<S>::pack(part);
      }
      S* quad = target + k * at.step;
      if (aligned) {
        store_quad(quad, v);
        continue;
      }
#pragma unroll
      for (int i = 0; i < kQuad; ++i) {
        if (i * at.stride < at.left_of(k)) {
          quad[i * at.stride] = Packed<S>::element(v.word[i / kPerWord], i % kPerWord);
        }
      }
    }
  });
}

// The columns of a row of both sides as y; those that are not there as -inf, whatever the softcap.
template <bool kTransformed>
LOGITLESS_DEVICE void read_pair(
    const PairRows& rows, const PairTile& tile, int64_t row, const Columns& at, Quads& y, Quads& z
) {
  Raw raw, other;
  load_quads(tile.student, row, at, raw);
  load_quads(tile.teacher, row, at, other);
  unpack_quads(tile.student.dtype, raw, y);
  unpack_quads(tile.teacher.dtype, other, z);
  if constexpr (kTransformed) {
    const auto transform = [&](const LogitTransform& of, Quads& values) {
      const TransformMath math(of);
#pragma unroll
      for (int k = 0; k < kQuads; ++k) {
        math.apply(values[k], at.first + k * at.step, at.left_of(k), at.stride);
#pragma unroll
        for (int i = 0; i < kQuad; ++i) {
          if (i * at.stride >= at.left_of(k)) values[k][i] = -INFINITY;
        }
      }
    };
    transform(rows.student.transform, y);
    transform(rows.teacher.transform, z);
  }
}

// The part of a row that a warp sums: its lanes' quads follow each other, whatever the alignment,
// so that no layout changes a sum.
struct PairSplit {
  int64_t row, index;
  Columns at;

  LOGITLESS_DEVICE PairSplit(uint64_t number, int64_t splits, int64_t columns, int lane)
      : row(static_cast<int64_t>(number / static_cast<uint64_t>(splits))),
        index(static_cast<int64_t>(number % static_cast<uint64_t>(splits))) {
    const int64_t first = index * kPairColumns, rest = columns - first;
    const int left = static_cast<int>(rest < kPairColumns ? rest : kPairColumns);
    at = {first + lane * kQuad, left - lane * kQuad, kWarp * kQuad, 1};
  }
};
static_assert(kPairColumns == kWarp * kQuad * kQuads, "a split is what a warp holds");

}  // namespace logitless::cuda
