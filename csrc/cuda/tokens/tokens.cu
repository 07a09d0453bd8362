// Drivers of the token kernels but the loss.
#include "radix.cuh"
#include "scores.cuh"
#include "sequences.cuh"
#include "sums.cuh"

namespace logitless::cuda {
namespace {

// A thread a token, or a block so many.
template <typename Args>
void start(
    const char* name,
    void (*kernel)(Args),
    int64_t n,
    Stream stream,
    const Args& args,
    int64_t tokens = kTokenThreads
) {
  const DeviceGuard guard(stream.device);
  launch(name, kernel, (n + tokens - 1) / tokens, kTokenThreads, stream, args);
}

}  // namespace

template <typename T>
void value_sums(const SumsArgs<T>& args, Stream stream) {
  start("value_sums", value_sums_kernel<T>, args.n, stream, args, kSumTokens);
}

void sum_means(const MeansArgs& args, Stream stream) {
  start("sum_means", sum_means_kernel, 1, stream, args);
}

template <typename T>
void covariance_scores(const ScoresArgs<T>& args, Stream stream) {
  start("covariance_scores", covariance_scores_kernel<T>, args.n, stream, args);
}

void ordered_scores(const OrderedArgs& args, Stream stream) {
  start("ordered_scores", ordered_scores_kernel, args.n, stream, args);
}

void random_scores(const RandomArgs& args, Stream stream) {
  start("random_scores", random_scores_kernel, args.n, stream, args);
}

void radix_levels(const RadixArgs& args, int first, int last, Stream stream) {
  RadixArgs of_level = args;
  for (of_level.level = first; of_level.level < last; ++of_level.level) {
    // one block at least, which keeps the state
    const int64_t n = args.n > 0 ? args.n : 1;
    start("radix_level", radix_level_kernel, n, stream, of_level, kRadixTokens);
  }
}

void radix_take(const TakeArgs& args, Stream stream) {
  TakeArgs last = args;
  last.search.level = kRadixLevels;
  start("radix_take", radix_take_kernel, args.search.n, stream, last);
}

void members(const MembersArgs& args, Stream stream) {
  start("members", members_kernel, args.n, stream, args);
}

void fold_sequences(const FoldArgs& args, Stream stream) {
  start("fold_sequences", fold_sequences_kernel, args.sequences, stream, args, 1);
}

void exp_values(const ExpArgs& args, Stream stream) {
  start("exp", exp_kernel, args.n, stream, args);
}

template void value_sums(const SumsArgs<float>&, Stream);
template void value_sums(const SumsArgs<double>&, Stream);
template void covariance_scores(const ScoresArgs<float>&, Stream);
template void covariance_scores(const ScoresArgs<double>&, Stream);

}  // namespace logitless::cuda
