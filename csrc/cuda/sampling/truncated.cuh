// Draws from the top_k, top_p and min_p of each row, from all of its logits: a block a row.
#pragma once

#include "../../core/exp.h"
#include "slabs.cuh"

namespace logitless::cuda {

struct TruncatedArgs {
  Rows rows;
  TensorView logits;
  int64_t blocks;  // of a row
  const BlockSum* sums;
  Truncation truncation;
  SampleKey key;
  RowState* state;
  TruncatedDraw out;
};

// The largest logit of a row and its sum, of those of its blocks; the same in all threads.
LOGITLESS_DEVICE BlockSum row_sum(const TruncatedArgs& args, int64_t row, double scale) {
  const int lane = slab_thread() % kWarp;
  const BlockSum* sums = args.sums + row * args.blocks;
  double m = -INFINITY;
  for (int64_t i = lane; i < args.blocks; i += kWarp) m = fmax(m, sums[i].m);
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) m = fmax(m, exchange(m, bits));
  double s0 = 0;
  for (int64_t i = lane; i < args.blocks; i += kWarp) {
    // 0 is of nothing finite, whose m is no number
    if (sums[i].s0 != 0) s0 += exp((sums[i].m - m) * scale) * sums[i].s0;
  }
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) s0 += exchange(s0, bits);
  return {m, s0};
}

// The first entries of a row: how many, their mass, and the key of the last.
struct Head {
  int64_t count = 0;
  double mass = 0;
  uint64_t last = 0;
};

// Which are the first: at most so many, each with less mass than `enough` before it, and none that
// weighs less than `least`.
struct Limits {
  int64_t most;
  double enough;
  double least;
};

// The slabs that a walk has come by: where each begins, and what lies before it. A walk whose
// limits lie within the last one's begins at the slab where it ends, and reads the row once less
// for each before it.
constexpr int kTrail = 64;
template <typename Uppers, typename Counts, typename Masses>
struct Trail {
  Uppers& uppers;
  Counts& counts;
  Masses& masses;
  int n = 0;

  LOGITLESS_DEVICE void add(uint64_t upper, const Head& before) {
    if (n == kTrail) return;
    if (slab_thread() == 0) {
      uppers[n] = upper;
      counts[n] = before.count;
      masses[n] = before.mass;
    }
    ++n;
  }

  // The last slab that begins within the limits; all before it is taken.
  LOGITLESS_DEVICE uint64_t last_within(const Limits& limits, Head& before) {
    sync_block();
    int last = 0;
    while (last + 1 < n && counts[last + 1] < limits.most && masses[last + 1] < limits.enough)
      ++last;
    before.count = counts[last];
    before.mass = masses[last];
    return uppers[last];
  }
};

// From `upper` on, after `head`. `slab` is what `keys` hold: sorted again only where it is another
// that is needed.
template <typename Row, typename Keys, typename Steps>
LOGITLESS_DEVICE Head head_of(
    const Row& row,
    const BlockSum& whole,
    double scale,
    const Limits& limits,
    Head head,
    uint64_t upper,
    Slab& slab,
    Keys& keys,
    Steps& trail
) {
  for (;;) {
    trail.add(upper, head);
    if (slab.upper != upper) {
      slab = slab_below(row, upper);
      sort_slab(row, slab, keys);
    }
    double weights[kPerThread], mine = 0;
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      const int i = slab_thread() * kPerThread + j;
      weights[j] = 0;
      if (i < slab.n) weights[j] = exp_of((double{y_of_key(keys[i])} - whole.m) * scale);
      mine += weights[j];
    }
    double before = head.mass + sums_of_block(mine).before, mass = 0;
    int inside = 0;
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      const int i = slab_thread() * kPerThread + j;
      const bool taken = i < slab.n && head.count + i < limits.most && before < limits.enough &&
                         weights[j] >= limits.least;
      inside += static_cast<int>(taken);
      mass += taken ? weights[j] : 0;
      before += weights[j];
    }
    const int count = count_of_block(inside);
    head.mass += sums_of_block(mass).total;
    head.count += count;
    if (count > 0) head.last = keys[count - 1];
    if (count < slab.n || slab.floor == 0) return head;
    upper = slab.floor;
  }
}

template <typename S, bool kTransformed>
LOGITLESS_KERNEL(kSlabThreads, 1)
truncated_kernel(const TruncatedArgs args) {
  LOGITLESS_SHARED_ARRAY(uint64_t, keys, kSlab);
  LOGITLESS_SHARED_ARRAY(uint64_t, uppers, kTrail);
  LOGITLESS_SHARED_ARRAY(int64_t, counts, kTrail);
  LOGITLESS_SHARED_ARRAY(double, masses, kTrail);
  const int64_t row = block_index();
  const bool writes = slab_thread() == 0;
  const double scale = args.rows.scale_of(row);
  const BlockSum whole = row_sum(args, row, scale);
  const int64_t columns = args.logits.shape[args.logits.ndim - 1];
  const int64_t bytes = (columns + 7) / 8;
  uint8_t* set = args.out.bits != nullptr ? args.out.bits + row * bytes : nullptr;
  if (!(whole.s0 > 0) || whole.m == INFINITY || !(fabs(scale) < INFINITY)) {
    if (writes) {
      args.out.token[row] = 0;
      args.out.kept[row] = 0;
      args.out.kept_logp[row] = NAN;
    }
    for (int64_t i = slab_thread(); set != nullptr && i < bytes; i += kSlabThreads) set[i] = 0;
    return;
  }
  const RowEntries<S, kTransformed> entries(args.rows, args.logits, row);
  const Truncation& truncation = args.truncation;
  Slab slab;
  Trail<decltype(uppers), decltype(counts), decltype(masses)> trail = {uppers, counts, masses};
  const auto first = [&](const Limits& limits) {
    trail.n = 0;
    return head_of(entries, whole, scale, limits, Head(), UINT64_MAX, slab, keys, trail);
  };
  const int64_t most = truncation.top_k > 0 ? truncation.top_k : INT64_MAX;
  double enough = INFINITY;
  if (truncation.top_p < 1) {
    const double total = truncation.top_k > 0 ? first({most, INFINITY, 0}).mass : whole.s0;
    enough = truncation.top_p * total;
  }
  const Head kept = first({most, enough, truncation.min_p});
  // the last entry that begins no later than where the number falls, and weighs anything
  constexpr double up = INFINITY;
  const double reached = nextafter(truncated_number(args.key, row) * kept.mass, up);
  const Limits until = {kept.count, reached, 0x1p-1074};
  Head before;
  const uint64_t upper = trail.last_within(until, before);
  const Head drawn = head_of(entries, whole, scale, until, before, upper, slab, keys, trail);
  if (set != nullptr) entries.write_set(kept.last, set);
  if (!writes) return;
  const double y = y_of_key(drawn.last);
  args.out.token[row] = id_of_key(drawn.last);
  args.out.kept[row] = kept.count;
  args.out.kept_logp[row] = static_cast<float>((y - whole.m) * scale - log(kept.mass));
  args.state[row].target = y;
}

}  // namespace logitless::cuda
