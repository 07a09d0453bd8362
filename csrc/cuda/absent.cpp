// The symbols of the CUDA kernels in a build without them.
#include <stdexcept>

#include "divergence/divergence.h"
#include "divergence/entries.h"
#include "rows/rows.h"
#include "sampling/sampling.h"
#include "tokens/tokens.h"
#include "topk/sets.h"
#include "topk/topk.h"

namespace logitless::cuda {
namespace {

[[noreturn]] void fail() {
  throw std::runtime_error(
      std::string("this build of logitless has no CUDA kernels: ") + build_info().reason
  );
}

}  // namespace

BuildInfo build_info() { return {false, false, "", "", LOGITLESS_CUDA_REASON}; }

std::string device_reason(int) { return std::string("built without CUDA: ") + build_info().reason; }

DeviceGuard::DeviceGuard(int) { fail(); }
DeviceGuard::~DeviceGuard() = default;

void rows_forward(
    const Rows&, const TensorView&, int64_t, bool, bool, RowState*, void*, int64_t, Stream
) {
  fail();
}

void rows_finalize(
    const Rows&, const RowState*, int64_t, const int64_t*, const RowOutputs&, int64_t*, Stream
) {
  fail();
}

void rows_gradient(
    const Rows&,
    const TensorView&,
    int64_t,
    const RowState*,
    const Upstream&,
    const Upstream&,
    const Upstream&,
    const TensorView&,
    Stream
) {
  fail();
}

void topk_capture(
    const Rows&, const TensorView&, int64_t, bool, const RowState*, const void*, const TopK&, Stream
) {
  fail();
}
void topk_finalize(const Rows&, const RowState*, const TopK&, Stream) { fail(); }
void topk_measure(
    const Rows&, const RowState*, const TopK&, const Economy&, const Dropped&, Stream
) {
  fail();
}
void sparse_gradient(
    const Rows&,
    const RowState*,
    const TopK&,
    const int64_t*,
    const Upstream&,
    const Upstream&,
    const Upstream&,
    const SparseRows&,
    Stream
) {
  fail();
}
void sparse_multiply(
    const SparseRows&,
    const int32_t*,
    const TensorView&,
    bool,
    const Chains&,
    const TensorView&,
    Stream
) {
  fail();
}
void sparse_add_row_sums(const SparseRows&, const int32_t*, float*, int64_t, Stream) { fail(); }

void set_logits(const SparseRows&, const TensorView&, const TensorView&, Stream) { fail(); }
void read_set_tile(const SparseRows&, const TensorView&, int64_t, Stream) { fail(); }
void write_set_tile(const SparseRows&, const TensorView&, int64_t, Stream) { fail(); }
void set_forward(const Rows&, const SparseRows&, bool, RowState*, Stream) { fail(); }
void set_gradient(
    const Rows&,
    const SparseRows&,
    const RowState*,
    const Upstream&,
    const Upstream&,
    const Upstream&,
    float*,
    Stream
) {
  fail();
}

void entries_forward(const PairRows&, const PairEntries&, PairState*, Stream) { fail(); }
void entries_mix(const PairRows&, const PairEntries&, const PairState*, double, MixSums*, Stream) {
  fail();
}
void entries_gradient(
    const PairRows&,
    const PairEntries&,
    const PairState*,
    const MixSums*,
    Divergence,
    double,
    const Upstream&,
    const Upstream&,
    float*,
    Stream
) {
  fail();
}

void pair_forward(const PairRows&, const PairTile&, bool, PairState*, const Workspace&, Stream) {
  fail();
}

void pair_mix(
    const PairRows&,
    const PairTile&,
    bool,
    const PairState*,
    double,
    MixSums*,
    const Workspace&,
    Stream
) {
  fail();
}

void pair_finalize(
    const PairRows&, const PairState*, const int64_t*, const PairOutputs&, int64_t*, Stream
) {
  fail();
}

void pair_gradient(
    const PairRows&,
    const PairTile&,
    const PairState*,
    const MixSums*,
    Divergence,
    double,
    const Upstream&,
    const Upstream&,
    const TensorView&,
    const Workspace&,
    Stream
) {
  fail();
}

void rows_sample(
    const Rows&,
    const TensorView&,
    int64_t,
    bool,
    const SampleKey&,
    RowState*,
    SampleState*,
    const SamplingWorkspace&,
    Stream
) {
  fail();
}

void draw_from_rows(
    const Rows&,
    const TensorView&,
    const Truncation&,
    const SampleKey&,
    RowState*,
    const TruncatedDraw&,
    const SamplingWorkspace&,
    Stream
) {
  fail();
}

template <typename T>
void value_sums(const SumsArgs<T>&, Stream) {
  fail();
}
template <typename T>
void covariance_scores(const ScoresArgs<T>&, Stream) {
  fail();
}
template <typename T>
void covariance_sums(const CovarianceArgs<T>&, Stream) {
  fail();
}
template <typename T>
void token_loss(const LossArgs<T>&, Stream) {
  fail();
}
template void value_sums(const SumsArgs<float>&, Stream);
template void value_sums(const SumsArgs<double>&, Stream);
template void covariance_scores(const ScoresArgs<float>&, Stream);
template void covariance_scores(const ScoresArgs<double>&, Stream);
template void covariance_sums(const CovarianceArgs<float>&, Stream);
template void covariance_sums(const CovarianceArgs<double>&, Stream);
template void token_loss(const LossArgs<float>&, Stream);
template void token_loss(const LossArgs<double>&, Stream);
void sum_means(const MeansArgs&, Stream) { fail(); }
void ordered_scores(const OrderedArgs&, Stream) { fail(); }
void random_scores(const RandomArgs&, Stream) { fail(); }
void radix_levels(const RadixArgs&, int, int, Stream) { fail(); }
void radix_take(const TakeArgs&, Stream) { fail(); }
void unique_ids(const UniqueArgs&, Stream) { fail(); }
void flag_tokens(const FlagArgs&, Stream) { fail(); }
void sort_ids(const SortArgs&, Stream) { fail(); }
void covariance_means(const CovarianceMeansArgs&, Stream) { fail(); }
void quantile_levels(const QuantileArgs&, int, int, Stream) { fail(); }
void collect_numbers(const NumbersArgs&, Stream) { fail(); }
void count_shares(const CountArgs&, Stream) { fail(); }
void loss_outputs(const OutputsArgs&, Stream) { fail(); }
void members(const MembersArgs&, Stream) { fail(); }
void fold_sequences(const FoldArgs&, Stream) { fail(); }
void exp_values(const ExpArgs&, Stream) { fail(); }

}  // namespace logitless::cuda
