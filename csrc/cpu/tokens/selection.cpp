#include "selection.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "../runtime/parallel.h"
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

// The sum of a block: in one pass of the vector loop, or where that is not exact digit by digit.
struct BlockSum {
  __int128 fixed = 0;
  std::unique_ptr<ExactSum> digits;
  int64_t largest = 0;

  template <typename T>
  void add(const TokenKernels& kernels, const T* values, const uint8_t* mask, int n) {
    static_assert(kBlock <= 4096, "a block's sums fit into 64 bits");
    SplitSum sum;
    bool exact;
    if constexpr (sizeof(T) == sizeof(float))
      exact = kernels.sum_f32(values, mask, n, sum);
    else
      exact = kernels.sum_f64(values, mask, n, sum);
    largest = sum.largest;
    if (exact) {
      fixed = static_cast<__int128>(sum.high) * (int64_t{1} << 48) + sum.low;
      return;
    }
    // not finite: the caller looks for it
    if (!finite()) return;
    digits = std::make_unique<ExactSum>();
    for (int i = 0; i < n; i += kStep) {
      alignas(64) double parts[kStep];
      const int m = std::min(kStep, n - i);
      for (int j = 0; j < m; ++j) {
        const double given = values[i + j];
        parts[j] = mask[i + j] != 0 ? given : 0.0;
      }
      add_parts(kernels, parts, m, exact_sum_level(largest));
    }
    digits->carry();
  }

  bool finite() const { return largest < int64_t{0x7FF} << 52; }

 private:
  // The parts of values at each digit, from that of the largest down. Destroys them.
  void add_parts(const TokenKernels& kernels, double* values, int n, int level) {
    // where the number that rounds to a digit is finite and normal
    constexpr int lowest = 1, highest = 64;
    bool left = true;
    for (; left && lowest <= level && level <= highest; --level) {
      const double large = std::ldexp(1.5, 52 + 32 * level + ExactSum::kLowest);
      int64_t total = 0;
      left = kernels.take(values, n, large, total);
      digits->add_at(level, total);
    }
    for (int i = 0; left && i < n; ++i) digits->add(values[i]);
  }
};

ValueSum total_of(const std::vector<BlockSum>& blocks) {
  ValueSum total;
  __int128 fixed = 0;
  int64_t largest = 0;
  for (const BlockSum& block : blocks) {
    fixed += block.fixed;
    largest = std::max(largest, block.largest);
    if (block.digits) total.sum.add(*block.digits);
  }
  total.sum.add_fixed(fixed);
  total.sum.carry();
  total.level = exact_sum_level(largest);
  return total;
}

}  // namespace

template <typename T>
ValueSums value_sums(const SelectionTokens<T>& tokens) {
  const auto blocks = static_cast<size_t>((tokens.count + kBlock - 1) / kBlock);
  std::vector<BlockSum> advantage(blocks), logp(blocks);
  std::vector<int64_t> counts(blocks);
  const TokenKernels& kernels = token_kernels();
  for_blocks(tokens.count, tokens.threads, [&](int64_t block, int64_t begin, int64_t end) {
    const auto at = static_cast<size_t>(block);
    const uint8_t* mask = tokens.mask + begin;
    const int n = static_cast<int>(end - begin);
    advantage[at].add(kernels, tokens.advantages + begin, mask, n);
    logp[at].add(kernels, tokens.logp + begin, mask, n);
    counts[at] = kernels.count(mask, n);
  });
  ValueSums sums;
  for (size_t block = 0; block < blocks; ++block) {
    if (advantage[block].finite() && logp[block].finite()) continue;
    for (int64_t i = static_cast<int64_t>(block) * kBlock;; ++i) {
      const bool good = std::isfinite(tokens.advantages[i]) && std::isfinite(tokens.logp[i]);
      if (tokens.mask[i] == 0 || good) continue;
      sums.bad_token = i;
      return sums;
    }
  }
  for (int64_t count : counts) sums.count += count;
  sums.advantage = total_of(advantage);
  sums.logp = total_of(logp);
  return sums;
}

namespace {

// Tokens whose scores are in the nearest cache at once.
constexpr int kScores = 1024;

// fn(scores, i, n) over the scores of tokens [begin, end), a few at a time. Returns the first token
// whose old_logp is not finite, or -1.
template <typename T, typename Fn>
int64_t for_scores(
    const SelectionTokens<T>& tokens,
    const CovarianceBand& band,
    int64_t begin,
    int64_t end,
    Fn&& fn
) {
  const TokenKernels& kernels = token_kernels();
  const TokenSource<T> source = {
      tokens.logp, tokens.old_logp, tokens.advantages, nullptr, tokens.mask, 0
  };
  alignas(64) uint64_t scores[kScores];
  for (int64_t i = begin; i < end; i += kScores) {
    const int n = static_cast<int>(std::min<int64_t>(kScores, end - i));
    bool good;
    if constexpr (sizeof(T) == sizeof(float))
      good = kernels.cov_f32(source, band, i, n, scores);
    else
      good = kernels.cov_f64(source, band, i, n, scores);
    if (!good) {
      for (int64_t j = i;; ++j) {
        if (tokens.mask[j] != 0 && !std::isfinite(tokens.old_logp[j])) return j;
      }
    }
    fn(scores, i, n);
  }
  return -1;
}

int64_t first_of(const std::vector<int64_t>& bad_tokens) {
  for (int64_t bad : bad_tokens) {
    if (bad >= 0) return bad;
  }
  return -1;
}

// A few blocks that one thread takes at once, with bins or an output of their own.
constexpr int64_t kChunk = 64 * kBlock;

int64_t chunks_of(int64_t count) { return (count + kChunk - 1) / kChunk; }

}  // namespace

namespace {

// A score that `most` tokens are likely not below, and few more: found from every 32nd, in small
// pieces, since those of a sequence are alike. 1 is below the score of any number.
template <typename T>
uint64_t likely_floor(const SelectionTokens<T>& tokens, const CovarianceBand& band, int64_t most) {
  constexpr int64_t kPiece = 64, kEvery = 32;
  // bins of a quarter of a power of two: of whole ones, three times as many tokens would be above
  constexpr int kBits = 14, kShift = 64 - kBits;
  if (most > tokens.count / 4 || tokens.count < 1024 * kPiece) return 1;
  std::vector<int32_t> bins(size_t{1} << kBits);
  for (int64_t i = 0; i + kPiece <= tokens.count; i += kEvery * kPiece) {
    for_scores(tokens, band, i, i + kPiece, [&](const uint64_t* scores, int64_t, int n) {
      for (int j = 0; j < n; ++j) ++bins[scores[j] >> kShift];
    });
  }
  // a random sample is four deviations short once in 30,000 times
  const double expected = static_cast<double>(most) / kEvery;
  double needed = expected + 4 * std::sqrt(expected) + 8;
  uint64_t bin = bins.size() - 1;
  while (bin > 0 && (needed -= bins[bin]) > 0) --bin;
  return std::max<uint64_t>(bin << kShift, 1);
}

// Those whose score is at least `least`.
template <typename T>
CandidateCount candidates_from(
    const SelectionTokens<T>& tokens,
    const CovarianceBand& band,
    uint64_t least,
    uint64_t* scores,
    int64_t* ids
) {
  const int64_t chunks = chunks_of(tokens.count);
  std::vector<int64_t> bad(static_cast<size_t>(chunks)), counts(bad);
  const TokenKernels& kernels = token_kernels();
  // each chunk in front of its own part of the outputs, then the gaps close
  parallel_for(chunks, tokens.threads, [&](int64_t chunk) {
    const int64_t begin = chunk * kChunk;
    int64_t place = begin;
    const auto keep = [&](const uint64_t* found, int64_t i, int n) {
      place += kernels.at_least(found, tokens.ids + i, n, least, scores + place, ids + place);
    };
    const int64_t end = std::min(begin + kChunk, tokens.count);
    bad[static_cast<size_t>(chunk)] = for_scores(tokens, band, begin, end, keep);
    counts[static_cast<size_t>(chunk)] = place - begin;
  });
  CandidateCount all;
  all.bad_token = first_of(bad);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t count = counts[static_cast<size_t>(chunk)];
    const int64_t from = chunk * kChunk;
    if (all.count != from) {
      std::copy(scores + from, scores + from + count, scores + all.count);
      std::copy(ids + from, ids + from + count, ids + all.count);
    }
    all.count += count;
  }
  return all;
}

}  // namespace

template <typename T>
CandidateCount covariance_candidates(
    const SelectionTokens<T>& tokens,
    const CovarianceBand& band,
    int64_t most,
    uint64_t* scores,
    int64_t* ids
) {
  const uint64_t floor = likely_floor(tokens, band, most);
  const CandidateCount found = candidates_from(tokens, band, floor, scores, ids);
  const bool enough = floor == 1 || found.count >= most || found.bad_token >= 0;
  return enough ? found : candidates_from(tokens, band, 1, scores, ids);
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

std::optional<int64_t> repeated_id(
    const int64_t* ids, const uint8_t* mask, int64_t count, int threads
) {
  // Ids mostly come in runs that rise by one from token to token, masked ones included, a run per
  // sequence: unique if no run overlaps another.
  struct Run {
    int64_t first, last;
  };
  std::vector<Run> runs;
  // so many short runs that sorting them is no better than sorting the ids
  const size_t most = static_cast<size_t>(count) / 16 + 16;
  int64_t offset = 0;
  const auto add = [&](int64_t i, int64_t last) {
    if (runs.empty() || ids[i] - i != offset) {
      offset = ids[i] - i;
      runs.push_back({ids[i], last});
    } else {
      runs.back().last = last;
    }
  };
  const int64_t parts = (count + kStep - 1) / kStep;
  std::vector<uint8_t> rises(static_cast<size_t>(parts));
  for_blocks(count, threads, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kStep) {
      const int n = static_cast<int>(std::min<int64_t>(kStep, end - i));
      rises[static_cast<size_t>(i / kStep)] = token_kernels().consecutive(ids + i, n);
    }
  });
  for (int64_t begin = 0; begin < count && runs.size() <= most; begin += kStep) {
    const int64_t end = std::min<int64_t>(begin + kStep, count);
    // whole, masked ones included: at worst a run overlaps another that its valid tokens do not
    if (rises[static_cast<size_t>(begin / kStep)] != 0 && ids[begin] >= 0 && ids[end - 1] >= 0) {
      add(begin, ids[end - 1]);
      continue;
    }
    for (int64_t i = begin; i < end; ++i) {
      if (mask[i] == 0) continue;
      if (ids[i] < 0) return ids[i];
      add(i, ids[i]);
    }
  }
  const auto by_first = [](const Run& a, const Run& b) { return a.first < b.first; };
  std::sort(runs.begin(), runs.end(), by_first);
  bool apart = runs.size() <= most;
  for (size_t i = 1; i < runs.size(); ++i) apart &= runs[i].first > runs[i - 1].last;
  if (apart) return std::nullopt;
  std::vector<int64_t> sorted;
  for (int64_t i = 0; i < count; ++i) {
    if (mask[i] == 0) continue;
    if (ids[i] < 0) return ids[i];
    sorted.push_back(ids[i]);
  }
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice == sorted.end()) return std::nullopt;
  return *twice;
}

void members(
    const int64_t* ids,
    int64_t count,
    const int64_t* sorted,
    int64_t chosen,
    uint8_t* out,
    int threads
) {
  // Where ids do not rise by one, a table of bits, most of them 0, answers for nearly all tokens; a
  // search for the others.
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
    for (int64_t i = begin; i < end; i += kStep) {
      const int n = static_cast<int>(std::min<int64_t>(kStep, end - i));
      if (ids[i + n - 1] >= ids[i] && token_kernels().consecutive(ids + i, n)) {
        // ids that rise by one: the chosen among them are found from their side
        std::fill(out + i, out + i + n, uint8_t{0});
        const int64_t* next = std::lower_bound(sorted, stop, ids[i]);
        for (; next != stop && *next <= ids[i + n - 1]; ++next) out[i + (*next - ids[i])] = 1;
        continue;
      }
      // the next one found is mostly the next of the sorted
      const int64_t* next = sorted;
      for (int64_t j = i; j < i + n; ++j) {
        const uint64_t at = place(ids[j]);
        out[j] = 0;
        if (((table[at / 64] >> (at % 64)) & 1) == 0) continue;
        if (next == stop || *next != ids[j]) next = std::lower_bound(sorted, stop, ids[j]);
        out[j] = next != stop && *next == ids[j] ? 1 : 0;
        next += out[j];
      }
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
  const int64_t chunks = chunks_of(count);
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
template CandidateCount covariance_candidates(
    const SelectionTokens<float>&, const CovarianceBand&, int64_t, uint64_t*, int64_t*
);
template CandidateCount covariance_candidates(
    const SelectionTokens<double>&, const CovarianceBand&, int64_t, uint64_t*, int64_t*
);

}  // namespace logitless::cpu
