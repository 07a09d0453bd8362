// Which tokens of the whole batch a control acts on: sums, scores and histograms of one rank.
#pragma once

#include <array>
#include <optional>

#include "../../core/tokens/covariance.h"
#include "../../core/tokens/exact_sum.h"
#include "../../core/tokens/radix_select.h"
#include "token_steps.h"

namespace logitless::cpu {

template <typename T>
struct SelectionTokens {
  int64_t count = 0;
  const T* logp = nullptr;
  const T* advantages = nullptr;
  const uint8_t* mask = nullptr;
  const T* old_logp = nullptr;  // or null: no token counts as clipped
  const int64_t* ids = nullptr;
  int threads = 1;
};

struct ValueSum {
  ExactSum sum;
  // exact_sum_level of the largest magnitude
  int level = -1;
};

struct ValueSums {
  ValueSum advantage;
  ValueSum logp;
  int64_t count = 0;
  // The first valid token with a value that is not finite; -1: none.
  int64_t bad_token = -1;
};

template <typename T>
ValueSums value_sums(const SelectionTokens<T>& tokens);

// The scores and ids of candidates in their order, at the front of two arrays with room for all
// tokens: the `most` largest are among them, and few others where `most` is a small part of all.
// First bad token as in ValueSums, here one whose old_logp is not finite.
struct CandidateCount {
  int64_t count = 0;
  int64_t bad_token = -1;
};
template <typename T>
CandidateCount covariance_candidates(
    const SelectionTokens<T>& tokens,
    const CovarianceBand& band,
    int64_t most,
    uint64_t* scores,
    int64_t* ids
);

void ordered_scores(const double* values, int64_t count, uint64_t* scores, int threads);

void exp_values(const double* x, int64_t count, double* out, int threads);

void random_scores(
    const int64_t* ids, int64_t count, uint64_t seed, uint64_t step, uint64_t* scores, int threads
);

// How many keys that start like `prefix` have each value of digit `level`.
std::array<int64_t, kRadixBins> radix_histogram(
    const uint64_t* scores,
    const int64_t* ids,
    int64_t count,
    const SelectionKey& prefix,
    int level,
    int threads
);

// A negative id of a valid token, else one that two of them have, else none.
std::optional<int64_t> repeated_id(
    const int64_t* ids, const uint8_t* mask, int64_t count, int threads
);

// out[i]: whether ids[i] is among the `chosen` sorted ids.
void members(
    const int64_t* ids,
    int64_t count,
    const int64_t* sorted,
    int64_t chosen,
    uint8_t* out,
    int threads
);

}  // namespace logitless::cpu
