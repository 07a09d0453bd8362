// The largest logits of every row, what a backward of these alone loses, and the gradient of an
// entry: what the kernels of every device share.
#pragma once

#include "rows.h"

namespace logitless {

// The most that a row may have room for: a device sorts it in a block's shared memory, a CPU on the
// stack.
constexpr int64_t kMostCapacity = 2048;

// Terms of one chain of additions: the sum of a token that 100,000 rows have kept is one of such
// sums.
constexpr int64_t kChain = 1024;

// A row holds up to `capacity` entries; where they are full, the `keep` = capacity / 2 largest
// stay. Entries are ordered by (y, -id): of equal ones the smaller id comes first.
//
// What a finalized row holds is a function of its logits alone, whatever the tiling, the threads,
// the instruction set or the device: the `keep` first of all entries with
// y > max y - margin / scale. Tiles must come in ascending order of their start.
struct TopK {
  int64_t capacity = 0;         // entries a row has room for
  int64_t stride = 0;           // entries from one row's memory to the next
  double margin = INFINITY;     // nats below the row's maximum; infinite: only the count limits
  double* values = nullptr;     // [n, stride] y of the entries
  int32_t* ids = nullptr;       // [n, stride] global vocabulary ids
  double* threshold = nullptr;  // [n] an entry that is not larger cannot be among the kept
  int64_t* count = nullptr;     // [n]

  LOGITLESS_HD int64_t keep() const { return capacity / 2; }
  LOGITLESS_HD double* values_of(int64_t row) const { return values + row * stride; }
  LOGITLESS_HD int32_t* ids_of(int64_t row) const { return ids + row * stride; }
};

// What a row served from its kept entries loses.
struct Dropped {
  double* mass;     // [n] 1 - sum of kept p; a rounding below 0 is 0
  double* entropy;  // [n] sum of dropped |p (log p + H)|; infinite where that is not known
  uint8_t* wider;   // [n] whether the row may be served by more entries than it has room for here
};

// How many entries a row keeps: as few as leave `enough` of mass or less, in steps, and never more
// than `most`. Of those the last are dropped while they sum to no more than `slack`: they would
// cost as much as the first.
struct Economy {
  int64_t step, most;
  double enough, slack;
};

// p and p log p + p H of an entry; a p of 0 contributes nothing, whatever its log.
struct Share {
  double p, surprise;
};

struct Distribution {
  double m, scale, log_s0, entropy;

  LOGITLESS_HD Distribution(const Moments& a, double row_scale)
      : m(a.m), scale(row_scale), log_s0(log(a.s0)), entropy(log_s0 - a.s1 / a.s0) {}

  LOGITLESS_HD double log_p(double y) const { return (y - m) * scale - log_s0; }
  LOGITLESS_HD Share share(double y) const {
    const double l = log_p(y), p = exp(l);
    return {p, p == 0 ? 0 : p * (l + entropy)};
  }
};

// How many of the sorted entries stay: what follows them sums to at most `slack`.
LOGITLESS_HD inline int64_t trimmed(
    const Distribution& d, const double* y, int64_t count, double slack
) {
  double mass = 0;
  while (count > 1) {
    mass += exp(d.log_p(y[count - 1]));
    if (mass > slack) break;
    --count;
  }
  return count;
}

// What a row keeps, the target apart, and what that drops.
struct Kept {
  int64_t count = 0;
  bool has_target = false;
  double mass = INFINITY, entropy = INFINITY;

  LOGITLESS_HD bool serves(double enough) const { return mass <= enough && entropy < INFINITY; }
};

// The sums over the first entries, of more and more of them.
class Prefix {
 public:
  LOGITLESS_HD Prefix(const Distribution& d, const double* y) : d_(d), y_(y) {}

  LOGITLESS_HD void reach(int64_t count) {
    for (; count_ < count; ++count_) {
      const Share share = d_.share(y_[count_]);
      mass_ += share.p;
      surprise_ += share.surprise;
    }
  }

  // What is dropped where the first `count_` entries are kept, and the target if it is not of them.
  LOGITLESS_HD Kept kept(bool has_target, double target, double largest_dropped) const {
    const Share other = has_target ? Share{} : d_.share(target);
    const double mass = mass_ + other.p, surprise = surprise_ + other.surprise;
    const bool known = largest_dropped + d_.entropy <= 0;
    Kept kept;
    kept.count = count_;
    kept.has_target = has_target;
    kept.mass = mass < 1 ? 1 - mass : 0;
    if (known) kept.entropy = fabs(surprise);
    return kept;
  }

 private:
  const Distribution& d_;
  const double* y_;
  int64_t count_ = 0;
  double mass_ = 0, surprise_ = 0;
};

// Of the `found` sorted entries of a row. `wider`: whether a row that these do not serve may be
// served by more than it has room for.
LOGITLESS_HD inline Kept kept_of(
    const TopK& all,
    int64_t row,
    int64_t found,
    const RowState& s,
    int64_t target,
    double scale,
    const Economy& economy,
    bool* wider
) {
  const double* y = all.values_of(row);
  const int32_t* ids = all.ids_of(row);
  int64_t place = 0;
  *wider = false;
  while (place < found && ids[place] != target) ++place;
  const Distribution d(s.moments, scale);
  Prefix prefix(d, y);
  Kept best;
  for (int64_t room = 0; room < found || room == 0;) {
    room = room + economy.step < found ? room + economy.step : found;
    const int64_t kept = trimmed(d, y, room, economy.slack);
    prefix.reach(kept);
    // The largest entry that is not kept: the first that is let go, or else no more than the least
    // where more may follow, or than the margin allows. What follows is not looked at, so that a
    // row with room for one step finds what one with room for more finds at that step.
    const bool full = room > 0 && (room % economy.step == 0 || room == all.keep());
    const double largest = kept < room ? d.log_p(y[kept])
                           : full      ? d.log_p(y[room - 1])
                                       : -all.margin - d.log_s0;
    const Kept now = prefix.kept(place < kept, s.target, largest);
    if (best.mass > economy.enough || now.entropy < INFINITY) best = now;
    // As many as may still come, each as large as the last.
    const double to_come = found > 0 ? (economy.most - room) * exp(d.log_p(y[room - 1])) : 0;
    if (best.serves(economy.enough) || best.mass - economy.slack - to_come > economy.enough) break;
    *wider = room == found && found == all.keep() && found < economy.most;
    if (room == found) break;
  }
  return best;
}

// Leaves in an active row, which holds `found` sorted entries, those that are kept, the target
// among them once, and measures what is dropped. Needs room for keep + 1 entries.
//
// Where every dropped p is at most e^-H, all terms of the dropped sum have one sign, and it follows
// from the kept ones, since the sum over all is 0. A row of which this is known with more entries
// keeps more. A row that no number of entries serves keeps as many as it takes to see that.
LOGITLESS_HD inline void measure_row(
    const TopK& all,
    int64_t row,
    int64_t found,
    const RowState& s,
    int64_t target,
    double scale,
    const Economy& economy,
    const Dropped& dropped
) {
  bool wider;
  const Kept best = kept_of(all, row, found, s, target, scale, economy, &wider);
  int64_t kept = best.count;
  if (!best.has_target) {
    all.values_of(row)[kept] = s.target;
    all.ids_of(row)[kept++] = static_cast<int32_t>(target);
  }
  all.count[row] = kept;
  dropped.mass[row] = best.mass;
  dropped.entropy[row] = best.entropy;
  dropped.wider[row] = wider;
}

// d(raw) of an entry with this y: the dense kernel's formula, in double.
LOGITLESS_HD inline double entry_gradient(
    const RowGradient& g, const LogitTransform& transform, double scale, double y, bool is_target
) {
  const double x = (y - g.m) * scale;
  const double p = exp(x) * g.inv_s0;
  double dz = p == 0 ? 0 : p * (g.a + g.b * (x - g.log_s0));
  if (is_target) dz += g.g_logp;
  if (transform.softcap == 0) return dz * scale;
  const double t = y / transform.softcap;
  return dz * scale * transform.pre_scale * (1 - t * t);
}

}  // namespace logitless
