#include "selection.h"

#include <algorithm>
#include <vector>

#include "../core/philox.h"
#include "../core/token_loss.h"
#include "exp.h"
#include "parallel.h"

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
  std::vector<ValueSums> parts(static_cast<size_t>((tokens.count + kBlock - 1) / kBlock));
  for_blocks(tokens.count, tokens.threads, [&](int64_t block, int64_t begin, int64_t end) {
    ValueSums& part = parts[static_cast<size_t>(block)];
    for (int64_t i = begin; i < end; ++i) {
      if (!tokens.mask[i]) continue;
      const double advantage = tokens.advantages[i];
      const double logp = tokens.logp[i];
      // written so that NaN fails it
      if (!(std::fabs(advantage) < FixedSum::kLimit && std::fabs(logp) < FixedSum::kLimit)) {
        if (part.bad_token < 0) part.bad_token = i;
        continue;
      }
      part.advantage.add(advantage);
      part.logp.add(logp);
      ++part.count;
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
  for_blocks(tokens.count, tokens.threads, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      scores[i] = 0;
      candidate[i] = false;
      if (!tokens.mask[i]) continue;
      const double advantage = tokens.advantages[i];
      const double logp = tokens.logp[i];
      const double cov = covariance(advantage, logp, band.means);
      scores[i] = ordered_bits(cov);
      const bool clipped =
          tokens.old_logp != nullptr &&
          ratio_clipped(
              logp - static_cast<double>(tokens.old_logp[i]), advantage, band.log_low, band.log_high
          );
      candidate[i] = band.low < cov && cov < band.high && !clipped;
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
    exp_all(x + begin, out + begin, static_cast<int>(end - begin));
  });
}

void random_scores(
    const int64_t* ids, int64_t count, uint64_t seed, uint64_t step, uint64_t* scores, int threads
) {
  for_blocks(count, threads, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      scores[i] = random_key(seed, step, static_cast<uint64_t>(ids[i]));
    }
  });
}

std::array<int64_t, kRadixBins> radix_histogram(
    const uint64_t* scores, const int64_t* ids, int64_t count, const SelectionKey& prefix, int level
) {
  std::array<int64_t, kRadixBins> bins{};
  for (int64_t i = 0; i < count; ++i) {
    const SelectionKey key = selection_key(scores[i], ids[i]);
    if (radix_matches(key, prefix, level)) ++bins[static_cast<size_t>(radix_digit(key, level))];
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
