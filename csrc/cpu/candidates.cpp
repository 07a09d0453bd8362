#include "candidates.h"

#include <algorithm>

#include "parallel.h"

namespace logitless::cpu {
namespace {

struct Entry {
  double y;
  int32_t id;
};

// No two entries are equal, so that any correct selection finds the same ones.
bool before(const Entry& a, const Entry& b) { return a.y != b.y ? a.y > b.y : a.id < b.id; }

// One row of the arrays. Sorting wants an entry's y and id side by side, and happens on the stack.
class Row {
 public:
  Row(const Candidates& all, int64_t row)
      : y_(all.y + row * all.room),
        ids_(all.ids + row * all.room),
        floor_(all.floor[row]),
        count_(all.count[row]),
        room_(all.room),
        keep_(all.keep()) {}

  double floor() const { return floor_; }
  // Comparisons with a NaN leave the floor where it is.
  void raise_floor(double limit) {
    if (limit > floor_) floor_ = limit;
  }

  void push(double y, int32_t id) {
    if (!(y > floor_)) return;
    if (count_ == room_) {
      compact();
      if (!(y > floor_)) return;
    }
    y_[count_] = y;
    ids_[count_++] = id;
  }

  // The floor may be the y of the least kept: what is ruled out is below the limit.
  void settle(double limit) {
    Entry entries[kMostCandidates];
    int64_t n = 0;
    for (int64_t i = 0; i < count_; ++i) {
      if (!(y_[i] <= limit)) entries[n++] = {y_[i], ids_[i]};
    }
    std::sort(entries, entries + n, before);
    write(entries, std::min(n, keep_));
  }

 private:
  // Makes room without losing any of the `keep` largest: raises the floor to a value that at least
  // so many are above, found by halving. A count is a few vector comparisons, where a selection of
  // the exact K-th is a chain of mispredicted branches (0.5 against 2.4 us for K = 64).
  void compact() {
    double low = *std::min_element(y_, y_ + count_), high = *std::max_element(y_, y_ + count_);
    for (int halvings = 0; halvings < 24; ++halvings) {
      const double middle = low + (high - low) / 2;
      const int64_t n = above(middle);
      if (n < keep_) {
        high = middle;
      } else if (n > keep_ + keep_ / 4) {
        low = middle;
      } else {
        raise_floor(middle);
        return drop_below_floor();
      }
    }
    select();
  }

  int64_t above(double limit) const {
    int64_t n = 0;
    for (int64_t i = 0; i < count_; ++i) n += y_[i] > limit;
    return n;
  }

  void drop_below_floor() {
    int64_t n = 0;
    for (int64_t i = 0; i < count_; ++i) {
      y_[n] = y_[i];
      ids_[n] = ids_[i];
      n += y_[i] > floor_;
    }
    count_ = n;
  }

  // Exactly the `keep` largest, where many are equal. Ids ascend, so a later entry that equals the
  // least of them comes after it, and the strict comparison with the floor is right to refuse it.
  void select() {
    Entry entries[kMostCandidates];
    for (int64_t i = 0; i < count_; ++i) entries[i] = {y_[i], ids_[i]};
    std::nth_element(entries, entries + keep_ - 1, entries + count_, before);
    raise_floor(entries[keep_ - 1].y);
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
  double& floor_;
  int64_t& count_;
  int64_t room_, keep_;
};

}  // namespace

void clear_candidates(const Candidates& candidates, int64_t row) {
  candidates.floor[row] = -INFINITY;
  candidates.count[row] = 0;
}

void capture_block(
    const Candidates& candidates,
    int64_t row,
    Dtype dtype,
    const BlockInput& block,
    int64_t first_id,
    double block_max,
    double row_max
) {
  Row kept(candidates, row);
  kept.raise_floor(row_max - candidates.tau / block.scale);
  if (!(block_max > kept.floor())) return;
  double y[kBlock];
  int32_t columns[kBlock];
  const int64_t n = row_kernels().above(dtype, block, kept.floor(), y, columns);
  for (int64_t i = 0; i < n; ++i) {
    kept.push(y[i], static_cast<int32_t>(first_id + columns[i]));
  }
}

void settle_candidates(const Rows& rows, const RowState* state, const Candidates& candidates) {
  parallel_for(rows.n, rows.threads, [&](int64_t row) {
    if (!rows.active(row)) return clear_candidates(candidates, row);
    Row kept(candidates, row);
    kept.settle(state[row].moments.m - candidates.tau / rows.scale_of(row));
  });
}

}  // namespace logitless::cpu
