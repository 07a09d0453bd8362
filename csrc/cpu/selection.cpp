#include "selection.h"

#include <algorithm>
#include <vector>

#include "parallel.h"
#include "token_steps.h"

namespace logitless::cpu {
namespace {

constexpr int64_t kBlock = 4096;

// fn(block, begin, end) over fixed blocks of [0, count).
template <typename Fn>
void for_blocks(int64_t count, int threads, Fn&& fn) {
  parallel_for((count + kBlock - 1) / kBlock, threads, [&](int64_t block) {
    fn(block, block * kBlock, std::min((block + 1) * kBlock, count));
  });
}

}  // namespace

template <typename T>
ValueSums value_sums(const SelectionTokens<T>& tokens) {
  static_assert(kBlock <= 4096, "a block's sums fit into 64 bits");
  std::vector<ValueSums> parts(static_cast<size_t>((tokens.count + kBlock - 1) / kBlock));
  const TokenKernels& kernels = token_kernels();
  const auto sum = [&](const T* values, const bool* mask, int n, SplitSum& out) {
    if constexpr (sizeof(T) == sizeof(float))
      return kernels.sum_f32(values, mask, n, out);
    else
      return kernels.sum_f64(values, mask, n, out);
  };
  for_blocks(tokens.count, tokens.threads, [&](int64_t block, int64_t begin, int64_t end) {
    ValueSums& part = parts[static_cast<size_t>(block)];
    const bool* mask = tokens.mask + begin;
    const int n = static_cast<int>(end - begin);
    SplitSum advantage, logp;
    bool good = sum(tokens.advantages + begin, mask, n, advantage);
    good &= sum(tokens.logp + begin, mask, n, logp);
    part.advantage.add(advantage.high, advantage.low);
    part.logp.add(logp.high, logp.low);
    part.count = kernels.count(mask, n);
    for (int64_t i = begin; !good; ++i) {
      const auto outside = [](double v) { return !(std::fabs(v) < FixedSum::kLimit); };
      if (!tokens.mask[i]) continue;
      if (outside(tokens.advantages[i]) || outside(tokens.logp[i])) {
        part.bad_token = i;
        break;
      }
    }
  });
  ValueSums sums;
  for (const ValueSums& part : parts) {
    sums.advantage.add(part.advantage);
    sums.logp.add(part.logp);
    sums.count += part.count;
    if (sums.bad_token < 0) sums.bad_token = part.bad_token;
  }
  return sums;
}

template <typename T>
void covariance_scores(
    const SelectionTokens<T>& tokens, const CovarianceBand& band, uint64_t* scores, bool* candidate
) {
  const TokenKernels& kernels = token_kernels();
  const TokenSource<T> source = {
      tokens.logp, tokens.old_logp, tokens.advantages, nullptr, tokens.mask, 0
  };
  for_blocks(tokens.count, tokens.threads, [&](int64_t, int64_t begin, int64_t end) {
    const int n = static_cast<int>(end - begin);
    uint64_t unused[kBlock];
    uint64_t* out = scores != nullptr ? scores + begin : unused;
    if constexpr (sizeof(T) == sizeof(float)) {
      kernels.cov_f32(source, band, begin, n, out, candidate + begin);
    } else {
      kernels.cov_f64(source, band, begin, n, out, candidate + begin);
    }
  });
}

void ordered_scores(const double* values, int64_t count, uint64_t* scores, int threads) {
  for_blocks(count, threads, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) scores[i] = ordered_bits(values[i]);
  });
}

void exp_values(const double* x, int64_t count, double* out, int threads) {
  for_blocks(count, threads, [&](int64_t, int64_t begin, int64_t end) {
    token_kernels().exp(x + begin, out + begin, static_cast<int>(end - begin));
  });
}

void random_scores(
    const int64_t* ids, int64_t count, uint64_t seed, uint64_t step, uint64_t* scores, int threads
) {
  for_blocks(count, threads, [&](int64_t, int64_t begin, int64_t end) {
    const int n = static_cast<int>(end - begin);
    token_kernels().random(ids + begin, n, seed, step, scores + begin);
  });
}

void compact(
    const bool* flags,
    int64_t count,
    const uint64_t* scores,
    const int64_t* ids,
    uint64_t* out_scores,
    int64_t* out_ids,
    int threads
) {
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  std::vector<int64_t> starts(static_cast<size_t>(blocks) + 1);
  const TokenKernels& kernels = token_kernels();
  for_blocks(count, threads, [&](int64_t block, int64_t begin, int64_t end) {
    starts[static_cast<size_t>(block) + 1] =
        kernels.count(flags + begin, static_cast<int>(end - begin));
  });
  for (size_t block = 0; block < static_cast<size_t>(blocks); ++block) {
    starts[block + 1] += starts[block];
  }
  for_blocks(count, threads, [&](int64_t block, int64_t begin, int64_t end) {
    int64_t place = starts[static_cast<size_t>(block)];
    const int64_t stop = starts[static_cast<size_t>(block) + 1];
    for (int64_t i = begin; place < stop; ++i) {
      // no branch: flags are hard to predict. What is written too much, the next one overwrites.
      if (scores != nullptr) out_scores[place] = scores[i];
      out_ids[place] = ids[i];
      place += flags[i];
    }
    (void)end;
  });
}

int64_t repeated_id(const int64_t* ids, const bool* mask, int64_t count) {
  // Ids mostly come in runs that rise by one from token to token, masked ones included, a run per
  // sequence: unique if no run overlaps another.
  struct Run {
    int64_t first, last;
  };
  std::vector<Run> runs;
  // so many short runs that sorting them is no better than sorting the ids
  const size_t most = static_cast<size_t>(count) / 16 + 16;
  int64_t offset = 0;
  for (int64_t i = 0; i < count && runs.size() <= most; ++i) {
    if (!mask[i]) continue;
    if (ids[i] < 0) return ids[i];
    if (runs.empty() || ids[i] - i != offset) {
      offset = ids[i] - i;
      runs.push_back({ids[i], ids[i]});
    } else {
      runs.back().last = ids[i];
    }
  }
  const auto by_first = [](const Run& a, const Run& b) { return a.first < b.first; };
  std::sort(runs.begin(), runs.end(), by_first);
  bool apart = runs.size() <= most;
  for (size_t i = 1; i < runs.size(); ++i) apart &= runs[i].first > runs[i - 1].last;
  if (apart) return kNoId;
  std::vector<int64_t> sorted;
  for (int64_t i = 0; i < count; ++i) {
    if (!mask[i]) continue;
    if (ids[i] < 0) return ids[i];
    sorted.push_back(ids[i]);
  }
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  return twice == sorted.end() ? kNoId : *twice;
}

void members(
    const int64_t* ids, int64_t count, const int64_t* sorted, int64_t chosen, bool* out, int threads
) {
  // A table of bits, most of them 0, answers for nearly all tokens; a search for the others.
  int bits = 12;
  while ((int64_t{1} << bits) < 16 * chosen && bits < 26) ++bits;
  std::vector<uint64_t> table((size_t{1} << bits) / 64);
  const auto place = [bits](int64_t id) {
    return (static_cast<uint64_t>(id) * 0x9E3779B97F4A7C15u) >> (64 - bits);
  };
  for (int64_t k = 0; k < chosen; ++k) {
    table[place(sorted[k]) / 64] |= uint64_t{1} << (place(sorted[k]) % 64);
  }
  const int64_t* stop = sorted + chosen;
  for_blocks(count, threads, [&](int64_t, int64_t begin, int64_t end) {
    // ids mostly rise, so the next one found is mostly the next of the sorted
    const int64_t* next = sorted;
    for (int64_t i = begin; i < end; ++i) {
      const uint64_t at = place(ids[i]);
      out[i] = false;
      if (((table[at / 64] >> (at % 64)) & 1) == 0) continue;
      if (next == stop || *next != ids[i]) next = std::lower_bound(sorted, stop, ids[i]);
      out[i] = next != stop && *next == ids[i];
      next += out[i];
    }
  });
}

std::array<int64_t, kRadixBins> radix_histogram(
    const uint64_t* scores,
    const int64_t* ids,
    int64_t count,
    const SelectionKey& prefix,
    int level,
    int threads
) {
  // a few blocks at a time, each with its own bins
  constexpr int64_t kChunk = 64 * kBlock;
  const int64_t chunks = (count + kChunk - 1) / kChunk;
  std::vector<std::array<int64_t, kRadixBins>> parts(static_cast<size_t>(chunks));
  parallel_for(chunks, threads, [&](int64_t chunk) {
    // neighbours often fall into one bin, and adding twice to one number means waiting
    constexpr int kCopies = 4;
    int32_t bins[kCopies][kRadixBins] = {};
    const int64_t end = std::min((chunk + 1) * kChunk, count);
    for (int64_t i = chunk * kChunk; i < end; ++i) {
      const SelectionKey key = selection_key(scores[i], ids[i]);
      if (radix_matches(key, prefix, level)) ++bins[i % kCopies][radix_digit(key, level)];
    }
    auto& part = parts[static_cast<size_t>(chunk)];
    for (size_t i = 0; i < part.size(); ++i) {
      part[i] = int64_t{bins[0][i]} + bins[1][i] + bins[2][i] + bins[3][i];
    }
  });
  std::array<int64_t, kRadixBins> bins{};
  for (const auto& part : parts) {
    for (size_t i = 0; i < bins.size(); ++i) bins[i] += part[i];
  }
  return bins;
}

template ValueSums value_sums(const SelectionTokens<float>& tokens);
template ValueSums value_sums(const SelectionTokens<double>& tokens);
template void covariance_scores(
    const SelectionTokens<float>&, const CovarianceBand&, uint64_t*, bool*
);
template void covariance_scores(
    const SelectionTokens<double>&, const CovarianceBand&, uint64_t*, bool*
);

}  // namespace logitless::cpu
