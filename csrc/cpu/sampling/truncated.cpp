#include "truncated.h"

#include <algorithm>
#include <vector>

#include "../../core/exp.h"
#include "../rows/tiles.h"
#include "../runtime/parallel.h"
#include "../topk/kernels.h"

namespace logitless::cpu {
namespace {

// Entries of a whole row that are sorted first; eight times as many where these do not do.
constexpr int64_t kFirstSorted = 4096;

// The largest entries of a row in order, and what they are weighed by.
struct Sorted {
  const double* y;
  int64_t n;
  bool everything;  // no entry of the row is missing
  Moments moments;
  double scale;

  double weight(int64_t i) const { return exp_of((y[i] - moments.m) * scale); }
};

struct Choice {
  int64_t entry;  // -1: more entries are needed to know the set
  int64_t kept;   // entries of the set
};

// The entry drawn by `u`.
Choice draw(const Sorted& top, const Truncation& truncation, double u) {
  const bool limited = truncation.top_k > 0 && truncation.top_k <= top.n;
  const int64_t n = limited ? truncation.top_k : top.n;
  // Whether the first n are all that top_k leaves.
  const bool known = limited || top.everything;
  double enough = INFINITY;
  if (truncation.top_p < 1) {
    double total = top.moments.s0;
    if (truncation.top_k > 0) {
      if (!known) return {-1, 0};
      total = 0;
      for (int64_t i = 0; i < n; ++i) total += top.weight(i);
    }
    enough = truncation.top_p * total;
  }
  double mass = 0;
  int64_t kept = 0;
  bool ends = known;
  for (; kept < n && mass < enough; ++kept) {
    const double weight = top.weight(kept);
    // The largest has the weight 1.
    if (weight < truncation.min_p) {
      ends = true;
      break;
    }
    mass += weight;
  }
  if (mass < enough && !ends) return {-1, 0};
  double sum = 0;
  int64_t drawn = 0;
  for (int64_t i = 0; i < kept && sum <= u * mass; ++i) {
    const double weight = top.weight(i);
    if (weight > 0) drawn = i;
    sum += weight;
  }
  return {drawn, kept};
}

// A row without a meaning draws nothing: rows_finalize names it.
bool is_bad(const Moments& moments) { return row_error(moments, 0, 1) != RowError::none; }

struct Entry {
  double y;
  int64_t id;
};
bool before(const Entry& a, const Entry& b) { return a.y != b.y ? a.y > b.y : a.id < b.id; }

// Every entry of a row that is not -inf.
std::vector<Entry> entries_of(const TileRow& row) {
  std::vector<Entry> entries;
  entries.reserve(row.columns);
  double y[kBlock];
  int32_t columns[kBlock];
  for (int64_t block = 0; block < row.blocks(); ++block) {
    const BlockInput input = row.block(block);
    const int64_t n = topk_kernels().above(row.dtype, input, -INFINITY, y, columns);
    for (int64_t i = 0; i < n; ++i) entries.push_back({y[i], input.first + columns[i]});
  }
  return entries;
}

// Sorts the first `limit` of the entries, of which the first `done` are already in their place.
void sort_first(std::vector<Entry>& entries, int64_t done, int64_t limit) {
  const auto start = entries.begin() + done, stop = entries.begin() + limit;
  if (stop != entries.end()) std::nth_element(start, stop, entries.end(), before);
  std::sort(start, stop, before);
}

}  // namespace

void draw_from_topk(
    const Rows& rows,
    const TopK& topk,
    const Truncation& truncation,
    const SampleKey& key,
    RowState* state,
    const TruncatedDraw& out
) {
  parallel_for(rows.n, rows.threads, [&](int64_t row) {
    out.token[row] = 0;
    if (out.kept != nullptr) out.kept[row] = 0;
    if (is_bad(state[row].moments)) return;
    const double* y = topk.values_of(row);
    const int64_t n = topk.count[row];
    const bool everything = n < topk.keep() && topk.margin == INFINITY;
    const Sorted top{y, n, everything, state[row].moments, rows.scale_of(row)};
    const auto [i, kept] = draw(top, truncation, truncated_number(key, row));
    check(i < n, "row ", row, ": it has nothing to draw from");
    out.token[row] = i < 0 ? -1 : topk.ids_of(row)[i];
    if (out.kept != nullptr) out.kept[row] = kept;
    if (i >= 0) state[row].target = y[i];
  });
}

void draw_from_rows(
    const Rows& rows,
    const TensorView& logits,
    const Truncation& truncation,
    const SampleKey& key,
    RowState* state,
    const TruncatedDraw& out
) {
  check_tile(rows, logits, "logits", 0);
  parallel_for(rows.n, rows.threads, [&](int64_t row) {
    out.token[row] = 0;
    if (out.kept != nullptr) out.kept[row] = 0;
    if (is_bad(state[row].moments)) return;
    std::vector<Entry> entries = entries_of(tile_row(rows, logits, row));
    const int64_t size = static_cast<int64_t>(entries.size());
    check(size > 0, "row ", row, ": it has no finite logit to draw");
    std::vector<double> y;
    Choice drawn{-1, 0};
    for (int64_t limit = std::max(kFirstSorted, truncation.top_k); drawn.entry < 0; limit *= 8) {
      const int64_t done = static_cast<int64_t>(y.size());
      limit = std::min(limit, size);
      sort_first(entries, done, limit);
      for (int64_t i = done; i < limit; ++i) y.push_back(entries[i].y);
      const Moments& moments = state[row].moments;
      const Sorted top{y.data(), limit, limit == size, moments, rows.scale_of(row)};
      drawn = draw(top, truncation, truncated_number(key, row));
    }
    out.token[row] = entries[drawn.entry].id;
    state[row].target = entries[drawn.entry].y;
    if (out.kept != nullptr) out.kept[row] = drawn.kept;
    if (out.ids == nullptr) return;
    int32_t* ids = out.ids + row * logits.shape[1];
    for (int64_t i = 0; i < drawn.kept; ++i) ids[i] = static_cast<int32_t>(entries[i].id);
  });
}

}  // namespace logitless::cpu
