// Drivers of sums, scores and selection, and of the covariance report.
#include "radix.cuh"
#include "report.cuh"
#include "scores.cuh"
#include "sequences.cuh"
#include "sums.cuh"

namespace logitless::cuda {

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

void fold_sequences(const FoldArgs& args, Stream stream) {
  start("fold_sequences", fold_sequences_kernel, args.sequences, stream, args, 1);
}

void exp_values(const ExpArgs& args, Stream stream) {
  start("exp", exp_kernel, args.n, stream, args);
}

template <typename T>
void covariance_sums(const CovarianceArgs<T>& args, Stream stream) {
  start("covariance_sums", covariance_sums_kernel<T>, args.n, stream, args, kSumTokens);
}

void covariance_means(const CovarianceMeansArgs& args, Stream stream) {
  start("covariance_means", covariance_means_kernel, 1, stream, args);
}

void quantile_levels(const QuantileArgs& args, int first, int last, Stream stream) {
  QuantileArgs of_level = args;
  for (of_level.level = first; of_level.level < last; ++of_level.level) {
    // one block at least, which keeps the states; and one that writes the numbers
    const bool counts = of_level.level < kQuantileLevels && args.n > 0;
    start(
        "quantile_level", quantile_level_kernel, counts ? args.n : 1, stream, of_level, kRadixTokens
    );
  }
}

template void value_sums(const SumsArgs<float>&, Stream);
template void value_sums(const SumsArgs<double>&, Stream);
template void covariance_sums(const CovarianceArgs<float>&, Stream);
template void covariance_sums(const CovarianceArgs<double>&, Stream);
template void covariance_scores(const ScoresArgs<float>&, Stream);
template void covariance_scores(const ScoresArgs<double>&, Stream);

}  // namespace logitless::cuda
