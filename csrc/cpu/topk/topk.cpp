#include "topk.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "../rows/tiles.h"
#include "../runtime/parallel.h"
#include "kernels.h"

namespace logitless::cpu {
namespace {

struct Entry {
  double y;
  int32_t id;
};

// Sorting would run out of bounds on a NaN, which is before nothing; no kernel keeps one.
Entry entry(double y, int32_t id) {
  check(y == y, "the kept logits hold a NaN");
  return {y, id};
}

// No two entries are equal, so that any correct selection finds the same ones.
bool before(const Entry& a, const Entry& b) { return a.y != b.y ? a.y > b.y : a.id < b.id; }

bool is_float(const Entry& a) { return static_cast<double>(static_cast<float>(a.y)) == a.y; }

// The larger key comes before. Both zeros are equal.
uint64_t key_of(const Entry& a) {
  const float y = static_cast<float>(a.y) + 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &y, sizeof bits);
  const uint32_t ordered = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | ~static_cast<uint32_t>(a.id);
}

Entry entry_of(uint64_t key) {
  const auto ordered = static_cast<uint32_t>(key >> 32);
  const uint32_t bits = (ordered >> 31) != 0 ? ordered & 0x7fffffffu : ~ordered;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return {y, static_cast<int32_t>(~static_cast<uint32_t>(key))};
}

// Byte by byte, which takes a seventh of the time of comparisons, half of whose branches are
// mispredicted.
void sort_floats(Entry* entries, int64_t n) {
  uint64_t keys[kMostCapacity], sorted[kMostCapacity];
  uint64_t *from = keys, *to = sorted;
  std::transform(entries, entries + n, from, key_of);
  for (int shift = 0; shift < 64; shift += 8) {
    const auto byte = [&](uint64_t key) { return (key >> shift) & 255; };
    int64_t places[256] = {};
    for (int64_t i = 0; i < n; ++i) ++places[byte(from[i])];
    if (places[byte(from[0])] == n) continue;
    int64_t place = 0;
    for (int value = 255; value >= 0; --value) place += std::exchange(places[value], place);
    for (int64_t i = 0; i < n; ++i) to[places[byte(from[i])]++] = from[i];
    std::swap(from, to);
  }
  std::transform(from, from + n, entries, entry_of);
}

void sort_entries(Entry* entries, int64_t n) {
  constexpr int64_t kFew = 128;
  if (n > kFew && std::all_of(entries, entries + n, is_float)) return sort_floats(entries, n);
  std::sort(entries, entries + n, before);
}

// One row of the arrays. Sorting wants an entry's y and id side by side, and happens on the stack.
class Row {
 public:
  Row(const TopK& all, int64_t row)
      : y_(all.values_of(row)),
        ids_(all.ids_of(row)),
        threshold_(all.threshold[row]),
        count_(all.count[row]),
        capacity_(all.capacity),
        keep_(all.keep()) {}

  double threshold() const { return threshold_; }
  // Comparisons with a NaN leave the threshold where it is.
  void raise_threshold(double limit) {
    if (limit > threshold_) threshold_ = limit;
  }

  // Adds a block's entries, in ascending order of their ids; `step` is a nat in y.
  void add(const double* y, const int32_t* ids, int64_t n, double row_max, double step) {
    if (count_ + n > capacity_) return merge(y, ids, n, row_max, step);
    for (int64_t i = 0; i < n; ++i) {
      y_[count_ + i] = y[i];
      ids_[count_ + i] = ids[i];
    }
    count_ += n;
  }

  // The threshold may be the y of the least kept: what is ruled out is below the limit.
  void finalize(double limit) {
    Entry entries[kMostCapacity];
    int64_t n = 0;
    for (int64_t i = 0; i < count_; ++i) {
      if (!(y_[i] <= limit)) entries[n++] = entry(y_[i], ids_[i]);
    }
    sort_entries(entries, n);
    write(entries, std::min(n, keep_));
  }

 private:
  // The row's entries and a block's where they do not fit: raises the threshold to a value that at
  // least `keep` of them are above, and not many more. It is found by comparing all of them with a
  // few values: a selection of the exact K-th is a chain of mispredicted branches, and five times
  // as slow.
  void merge(const double* y, const int32_t* ids, int64_t n, double row_max, double step) {
    double all_y[kMostCapacity + kBlock];
    int32_t all_ids[kMostCapacity + kBlock];
    int64_t count = 0;
    const auto append = [&](const double* values, const int32_t* names, int64_t size) {
      for (int64_t i = 0; i < size; ++i)
        all_y[count + i] = values[i], all_ids[count + i] = names[i];
      count += size;
    };
    append(y_, ids_, count_);
    append(y, ids, n);
    double limit = 0;
    if (!separates(all_y, count, row_max, step, &limit)) return select(all_y, all_ids, count);
    raise_threshold(limit);
    count_ = 0;
    for (int64_t i = 0; i < count; ++i) {
      y_[count_] = all_y[i];
      ids_[count_] = all_ids[i];
      count_ += all_y[i] > limit;
    }
  }

  // A value that from keep to 1.25 keep of the entries are above; none is found where many are
  // equal.
  bool separates(const double* y, int64_t count, double high, double step, double* limit) const {
    double low = -INFINITY;
    for (int tries = 0; tries < 32; ++tries, step *= 2) {
      const double at = low == -INFINITY ? high - step : low + (high - low) / 2;
      const int64_t n = topk_kernels().count_above(y, count, at);
      *limit = at;
      if (n >= keep_ && n <= keep_ + keep_ / 4) return true;
      if (n < keep_) {
        high = at;
      } else {
        low = at;
      }
    }
    return false;
  }

  // Exactly the `keep` largest. Ids ascend from tile to tile, so a later entry that equals the
  // least of them comes after it, and the strict comparison with the threshold is right to refuse
  // it.
  void select(const double* y, const int32_t* ids, int64_t n) {
    Entry entries[kMostCapacity + kBlock];
    for (int64_t i = 0; i < n; ++i) entries[i] = entry(y[i], ids[i]);
    std::nth_element(entries, entries + keep_ - 1, entries + n, before);
    raise_threshold(entries[keep_ - 1].y);
    write(entries, keep_);
  }

  void write(const Entry* entries, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      y_[i] = entries[i].y;
      ids_[i] = entries[i].id;
    }
    count_ = n;
  }

  double* y_;
  int32_t* ids_;
  double& threshold_;
  int64_t& count_;
  int64_t capacity_, keep_;
};

}  // namespace

void clear_topk(const TopK& topk, int64_t row) {
  topk.threshold[row] = -INFINITY;
  topk.count[row] = 0;
}

void TopKObserver::push(
    int64_t row,
    Dtype dtype,
    const BlockInput& block,
    int64_t first_id,
    double block_max,
    double row_max
) const {
  Row kept(topk_, row);
  kept.raise_threshold(row_max - topk_.margin / block.scale);
  if (!(block_max > kept.threshold())) return;
  double y[kBlock];
  int32_t ids[kBlock];
  const int64_t n = topk_kernels().above(dtype, block, kept.threshold(), y, ids);
  for (int64_t i = 0; i < n; ++i) ids[i] += static_cast<int32_t>(first_id);
  kept.add(y, ids, n, row_max, 1 / block.scale);
}

void recapture_topk(
    const Rows& rows,
    const TensorView& logits,
    int64_t start,
    bool first,
    const RowState* state,
    const TopK& topk
) {
  check_tile(rows, logits, "logits", start);
  const TopKObserver observer(topk);
  parallel_for(rows.n, rows.threads, [&](int64_t row) {
    if (!rows.active(row)) return;
    if (first) clear_topk(topk, row);
    const TileRow tile = tile_row(rows, logits, row);
    for (int64_t i = 0; i < tile.blocks(); ++i) {
      const double m = state[row].moments.m;
      observer.push(row, tile.dtype, tile.block(i), start + i * kBlock, INFINITY, m);
    }
  });
}

void finalize_topk(const Rows& rows, const RowState* state, const TopK& topk) {
  parallel_for(rows.n, rows.threads, [&](int64_t row) {
    if (!rows.active(row)) return;
    Row kept(topk, row);
    kept.finalize(state[row].moments.m - topk.margin / rows.scale_of(row));
  });
}

}  // namespace logitless::cpu
