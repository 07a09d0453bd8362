// Token kernels on a CUDA device, on the caller's stream: sums, scores, selection and the policy
// loss of the tokens of a call. They allocate nothing, wait for nothing and may be captured in a
// graph. Built without CUDA, absent.cpp defines the same symbols.
//
// Masks are bytes, of which each but 0 is true. What is wrong with a token lowers *flag to
// token * 8 + kBadToken.
#pragma once

#include "../../core/token_loss.h"
#include "../../core/tokens/covariance.h"
#include "../../core/tokens/exact_sum.h"
#include "../../core/tokens/radix_select.h"
#include "../runtime/runtime.h"

namespace logitless::cuda {

// The kind of a wrong token, after those of rows: KINDS of backends/row_kernels/errors.py.
constexpr int kBadToken = 7;

// A number that the host knows, or one that an earlier kernel writes.
template <typename T>
struct Scalar {
  T value = 0;
  const T* at = nullptr;

  LOGITLESS_HD T get() const { return at != nullptr ? *at : value; }
};
using Number = Scalar<double>;

struct Means {
  Number advantage, logp;

  LOGITLESS_HD TokenMeans get() const { return {advantage.get(), logp.get()}; }
};

// Words of the sums of a rank, which add up over ranks: digits of two sums, and the number of
// valid tokens.
constexpr int64_t kSumWords = 2 * ExactSum::kDigits + 1;

template <typename T>
struct SumsArgs {
  int64_t n;
  const T *first, *second;
  const uint8_t* mask;
  int64_t* words;  // [kSumWords], zeros before
  int64_t* flag;
};
template <typename T>
void value_sums(const SumsArgs<T>& args, Stream stream);

// The means of both; the words are written over.
struct MeansArgs {
  int64_t* words;
  double* means;  // [2]
};
void sum_means(const MeansArgs& args, Stream stream);

// Candidates are all tokens: one that is none has the id -1.
template <typename T>
struct ScoresArgs {
  int64_t n;
  const T *logp, *advantages, *old_logp;  // the last may be null
  const uint8_t* mask;
  const int64_t* ids;
  Means means;
  double low, high, log_low, log_high;
  uint64_t* scores;
  int64_t* out_ids;
  int64_t* flag;
};
template <typename T>
void covariance_scores(const ScoresArgs<T>& args, Stream stream);

struct OrderedArgs {
  int64_t n;
  const double* values;
  const uint8_t* which;
  const int64_t* ids;
  uint64_t* scores;
  int64_t* out_ids;
};
void ordered_scores(const OrderedArgs& args, Stream stream);

struct RandomArgs {
  int64_t n;
  const int64_t* ids;
  uint64_t seed, step;
  uint64_t* scores;
};
void random_scores(const RandomArgs& args, Stream stream);

// Where the search for the k-th largest key is before a digit is looked at.
struct RadixState {
  SelectionKey prefix;
  int64_t needed;  // how many of the keys with this prefix are among the k largest
  int64_t done;    // those at least the prefix are the k largest
};

struct RadixArgs {
  int64_t n;
  const uint64_t* scores;
  const int64_t* ids;
  Scalar<int64_t> k;
  int64_t* bins;       // [kRadixLevels, kRadixBins], zeros before
  RadixState* states;  // [kRadixLevels + 1]
  bool exact;  // all digits of the key, where a prefix of it is enough to tell the k largest
  int level;   // of the launch
};
// Levels [first, last): each counts one more digit. Of several ranks the bins of a level are added
// before the next.
void radix_levels(const RadixArgs& args, int first, int last, Stream stream);

// Which candidates are the k largest, after all levels. Ids that repeat lower *flag.
struct TakeArgs {
  RadixArgs search;
  uint8_t* taken;
  int64_t* taken_ids;  // or -1; one of both is null
  int64_t* flag;
};
void radix_take(const TakeArgs& args, Stream stream);

struct MembersArgs {
  int64_t n, chosen;
  const int64_t *ids, *sorted;
  uint8_t* out;
};
void members(const MembersArgs& args, Stream stream);

// What is made of the values of a sequence's valid tokens.
enum class Fold : uint8_t { sum, largest };

struct FoldArgs {
  int64_t sequences, n;
  const int64_t* ends;  // [sequences], where each sequence ends
  const uint8_t* mask;
  const double* values;
  Fold fold;
  double* out;  // [sequences]; of no valid token 0
};
void fold_sequences(const FoldArgs& args, Stream stream);

// Ids of valid tokens that are negative or another's lower *flag.
struct UniqueArgs {
  int64_t n;
  const int64_t* ids;
  const uint8_t* mask;
  int32_t* table;  // [slots], zeros before; more of them than tokens
  int64_t slots;
  int64_t* flag;
};
void unique_ids(const UniqueArgs& args, Stream stream);

// Ids that a block sorts, and how many sorted runs become one.
constexpr int kSortRun = 4096, kSortWays = 16;

// Into rising order, with -1 first in place of each that is negative.
struct SortArgs {
  int64_t n;
  const int64_t* ids;
  int64_t* found;  // [1], 0 before
  int64_t* room;   // [2, n]
  int64_t* out;    // [n]
};
void sort_ids(const SortArgs& args, Stream stream);

// Of a launch: runs of `width` in `from`.
struct MergeArgs {
  int64_t n, width;
  const int64_t *found, *from;
  int64_t* to;
  bool last;
};

// Words of the sums of a covariance, which add up over ranks: digits of three sums, the number of
// tokens above a limit and that of all.
constexpr int64_t kCovarianceWords = 3 * ExactSum::kDigits + 2;

template <typename T>
struct CovarianceArgs {
  int64_t n;
  const T *logp, *advantages;
  const uint8_t* mask;
  Means means;
  double above;
  uint64_t* scores;  // [n], 0 of what is no valid token
  int64_t* words;    // [kCovarianceWords], zeros before
  int64_t* flag;
};
template <typename T>
void covariance_sums(const CovarianceArgs<T>& args, Stream stream);

struct CovarianceMeansArgs {
  const int64_t* words;
  double* out;  // [3]: the mean, the correlation, the share above the limit
};
void covariance_means(const CovarianceMeansArgs& args, Stream stream);

// Quantiles that are looked for at once, by the digits of their scores.
constexpr int kQuantiles = 5, kQuantileLevels = kRadixLevels / 2;

// The smallest value that a share of `count` scores does not exceed; NaN of none.
struct QuantileArgs {
  int64_t n;
  const uint64_t* scores;
  const int64_t* count;
  double share[kQuantiles];
  int64_t* bins;       // [kQuantileLevels, kQuantiles, kRadixBins], zeros before
  RadixState* states;  // [kQuantileLevels, kQuantiles]
  double* out;         // [kQuantiles], written by level kQuantileLevels
  int level;           // of the launch
};
// Levels [first, last), as radix_levels.
void quantile_levels(const QuantileArgs& args, int first, int last, Stream stream);

// Tokens that are not good lower *flag, each as its place says, or its own number.
struct FlagArgs {
  int64_t n;
  const uint8_t* good;
  const int64_t* places;  // may be null
  int64_t* flag;
};
void flag_tokens(const FlagArgs& args, Stream stream);

// Numbers of a call as float64.
struct NumberOf {
  Number real;
  const int64_t* whole;  // null: real
};
constexpr int kMostNumbers = 32;
struct NumbersArgs {
  int n;
  NumberOf from[kMostNumbers];
  double* out;
};
void collect_numbers(const NumbersArgs& args, Stream stream);

// Of a count: 1 / max(count, 1), and max(fraction * count, 1) rounded down. Either may be null.
struct CountArgs {
  const int64_t* count;
  double fraction;
  double* inverse;
  int64_t* part;
};
void count_shares(const CountArgs& args, Stream stream);

struct MetricOf {
  int32_t sum;
  int32_t per_token;  // 0 or 1: words, which a thread reads where the arguments are
};

// The loss, and its metrics: sums, or their means over the tokens of the batch.
struct OutputsArgs {
  const double* sums;
  int tokens;  // where the sums have the number of tokens of the call
  bool call;   // means are over those
  Scalar<int64_t> total;
  int n;
  MetricOf metric[kMostNumbers];
  float* loss;
  double* wide_loss;  // one of both is null
  float* metrics;     // [n]
};
void loss_outputs(const OutputsArgs& args, Stream stream);

struct ExpArgs {
  int64_t n;
  const double* x;
  double* out;
};
void exp_values(const ExpArgs& args, Stream stream);

constexpr int kLossSums = 13;
// Tokens of a block, whose sums are added in order.
constexpr int kLossTokens = 1024;

// As cpu::TokenLossArgs, with the sums of blocks as workspace.
template <typename T>
struct LossArgs {
  int64_t n = 0;
  const T *logp, *old_logp, *advantages;
  const double* weights;
  const uint8_t* mask;
  Number weight;
  const T *entropy, *kl_logp, *penalty_logp;
  const uint8_t* selected;
  const double *log_ratio, *factor, *precomputed_loss, *precomputed_slope;
  T *g_logp, *g_entropy;
  double* g_policy;
  Means means;
  double grad_scale;
  TokenLossParams params;
  // where an earlier kernel writes those of params; may be null
  const double *log_low, *log_high, *entropy_coefficient;
  double* blocks;  // [ceil(n / kLossTokens), kLossSums]
  double* sums;    // [kLossSums]
  int64_t* flag;
};
template <typename T>
void token_loss(const LossArgs<T>& args, Stream stream);

}  // namespace logitless::cuda
