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
