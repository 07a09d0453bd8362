// The covariance report of tokens on a CUDA device, and the few numbers of a call.
#include "../arrays/scalars.h"
#include "tokens.h"

namespace logitless::bindings {

void CudaTokens::covariance_sums(
    py::handle logp_object,
    py::handle advantages_object,
    py::handle mask_object,
    py::handle mean_advantage_object,
    py::handle mean_logp_object,
    double above,
    py::handle scores_object,
    py::handle words_object,
    py::handle flag_object,
    int64_t stream
) const {
  const Array logp = reads(logp_object, "logp");
  const Array advantages = reads(advantages_object, "advantages");
  const Array mask = reads(mask_object, "mask");
  const DeviceNumber mean_advantage(mean_advantage_object, "mean_advantage", place_);
  const DeviceNumber mean_logp(mean_logp_object, "mean_logp", place_);
  const Array scores = writes(scores_object, "scores"), words = writes(words_object, "words");
  const Array flag = writes(flag_object, "flag");
  const int64_t n = logp->size();
  visit_real(logp, [&](auto tag, Dtype dtype) {
    using T = typename decltype(tag)::type;
    const cuda::CovarianceArgs<T> args = {
        n,
        data_of<const T>(logp, dtype, n),
        data_of<const T>(advantages, dtype, n),
        data_of<const uint8_t>(mask, Dtype::boolean, n),
        {mean_advantage.get(), mean_logp.get()},
        above,
        data_of<uint64_t>(scores, Dtype::i64, n),
        data_of<int64_t>(words, Dtype::i64, cuda::kCovarianceWords),
        data_of<int64_t>(flag, Dtype::i64, 1)
    };
    check_apart(logp, advantages, mask, mean_advantage, mean_logp, scores, words, flag);
    const py::gil_scoped_release release;
    cuda::covariance_sums(args, queue(stream));
  });
}

void CudaTokens::covariance_means(
    py::handle words_object, py::handle out_object, int64_t stream
) const {
  const Array words = reads(words_object, "words"), out = writes(out_object, "out");
  const cuda::CovarianceMeansArgs args = {
      data_of<const int64_t>(words, Dtype::i64, cuda::kCovarianceWords),
      data_of<double>(out, Dtype::f64, 3)
  };
  check_apart(words, out);
  const py::gil_scoped_release release;
  cuda::covariance_means(args, queue(stream));
}

void CudaTokens::quantile_levels(
    py::handle scores_object,
    py::handle count_object,
    const std::array<double, cuda::kQuantiles>& shares,
    py::handle bins_object,
    py::handle states_object,
    py::handle out_object,
    int first,
    int last,
    int64_t stream
) const {
  const Array scores = reads(scores_object, "scores"), count = reads(count_object, "count");
  const Array bins = writes(bins_object, "bins"), states = writes(states_object, "states");
  const Array out = writes(out_object, "out");
  check(
      0 <= first && first <= last && last <= cuda::kQuantileLevels + 1,
      "first and last must rise from 0 to ",
      cuda::kQuantileLevels + 1,
      ", got ",
      first,
      " and ",
      last
  );
  constexpr int64_t searches = int64_t{cuda::kQuantileLevels} * cuda::kQuantiles;
  constexpr int64_t words = sizeof(cuda::RadixState) / sizeof(int64_t);
  const int64_t n = scores->size();
  cuda::QuantileArgs args = {
      n,
      data_of<const uint64_t>(scores, Dtype::i64, n),
      data_of<const int64_t>(count, Dtype::i64, 1),
      {},
      data_of<int64_t>(bins, Dtype::i64, searches * kRadixBins),
      reinterpret_cast<cuda::RadixState*>(data_of<int64_t>(states, Dtype::i64, searches * words)),
      data_of<double>(out, Dtype::f64, cuda::kQuantiles),
      0
  };
  std::copy(shares.begin(), shares.end(), args.share);
  check_apart(scores, count, bins, states, out);
  const py::gil_scoped_release release;
  cuda::quantile_levels(args, first, last, queue(stream));
}

void CudaTokens::collect_numbers(
    const py::sequence& numbers, py::handle out_object, int64_t stream
) const {
  const Array out = writes(out_object, "out");
  const auto n = static_cast<int64_t>(numbers.size());
  check(n <= cuda::kMostNumbers, "numbers must be at most ", cuda::kMostNumbers, ", got ", n);
  cuda::NumbersArgs args = {static_cast<int>(n), {}, data_of<double>(out, Dtype::f64, n)};
  // those of arrays; held until the kernel is queued
  std::vector<Array> arrays;
  arrays.reserve(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    const py::object number = numbers[static_cast<size_t>(i)];
    cuda::NumberOf& from = args.from[i];
    if (py::isinstance<py::float_>(number) || py::isinstance<py::int_>(number)) {
      from.real.value = number.cast<double>();
      continue;
    }
    const Array& array = arrays.emplace_back(reads(number, "numbers"));
    if (array->dtype == Dtype::i64)
      from.whole = data_of<const int64_t>(array, Dtype::i64, 1);
    else
      from.real.at = data_of<const double>(array, Dtype::f64, 1);
    check_apart(array, out);
  }
  const py::gil_scoped_release release;
  cuda::collect_numbers(args, queue(stream));
}

void CudaTokens::count_shares(
    py::handle count_object,
    double fraction,
    py::handle inverse_object,
    py::handle part_object,
    int64_t stream
) const {
  const Array count = reads(count_object, "count");
  const auto inverse = optional_array(inverse_object, "inverse", Access::write, place_);
  const auto part = optional_array(part_object, "part", Access::write, place_);
  check(fraction >= 0 && fraction <= 1, "fraction must be from 0 to 1, got ", fraction);
  const cuda::CountArgs args = {
      data_of<const int64_t>(count, Dtype::i64, 1),
      fraction,
      data_of<double>(inverse, Dtype::f64, 1),
      data_of<int64_t>(part, Dtype::i64, 1)
  };
  check_apart(count, inverse, part);
  const py::gil_scoped_release release;
  cuda::count_shares(args, queue(stream));
}

void CudaTokens::loss_outputs(
    py::handle sums_object,
    int tokens,
    py::handle total_object,
    const std::vector<std::pair<int, bool>>& metrics,
    py::handle loss_object,
    py::handle out_object,
    int64_t stream
) const {
  const Array sums = reads(sums_object, "sums"), loss = writes(loss_object, "loss");
  const Array out = writes(out_object, "out");
  std::optional<ScalarArray<int64_t>> total;
  if (!total_object.is_none()) total.emplace(total_object, "total", Dtype::i64, place_);
  const int64_t known = sums->size(), n = static_cast<int64_t>(metrics.size());
  check(n <= cuda::kMostNumbers, "metrics must be at most ", cuda::kMostNumbers, ", got ", n);
  const auto check_place = [&](int place) {
    check(0 <= place && place < known, "a sum must be from 0 to ", known - 1, ", got ", place);
  };
  check_place(tokens);
  cuda::OutputsArgs args = {};
  args.sums = data_of<const double>(sums, Dtype::f64, known);
  args.tokens = tokens;
  args.call = !total.has_value();
  if (total) args.total = total->get();
  args.n = static_cast<int>(n);
  for (int64_t i = 0; i < n; ++i) {
    const auto& [place, per_token] = metrics[static_cast<size_t>(i)];
    check_place(place);
    args.metric[i] = {place, per_token};
  }
  visit_real(loss, [&](auto tag, Dtype dtype) {
    using T = typename decltype(tag)::type;
    T* const one = data_of<T>(loss, dtype, 1);
    if constexpr (std::is_same_v<T, double>)
      args.wide_loss = one;
    else
      args.loss = one;
  });
  args.metrics = data_of<float>(out, Dtype::f32, n);
  check_apart(sums, total, loss, out);
  const py::gil_scoped_release release;
  cuda::loss_outputs(args, queue(stream));
}

}  // namespace logitless::bindings
