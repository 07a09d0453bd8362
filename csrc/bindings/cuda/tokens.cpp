// The loss of tokens on a CUDA device, and its sums over tokens and sequences.
#include "tokens.h"

#include "../loss_arguments.h"

namespace logitless::bindings {

void CudaTokens::value_sums(
    py::handle first_object,
    py::handle second_object,
    py::handle mask_object,
    py::handle words_object,
    py::handle flag_object,
    int64_t stream
) const {
  const Array first = reads(first_object, "first"), second = reads(second_object, "second");
  const Array mask = reads(mask_object, "mask"), words = writes(words_object, "words");
  const Array flag = writes(flag_object, "flag");
  const int64_t n = first->size();
  visit_real(first, [&](auto tag, Dtype dtype) {
    using T = typename decltype(tag)::type;
    const cuda::SumsArgs<T> args = {
        n,
        data_of<const T>(first, dtype, n),
        data_of<const T>(second, dtype, n),
        data_of<const uint8_t>(mask, Dtype::boolean, n),
        data_of<int64_t>(words, Dtype::i64, cuda::kSumWords),
        data_of<int64_t>(flag, Dtype::i64, 1)
    };
    check_apart(first, second, mask, words, flag);
    const py::gil_scoped_release release;
    cuda::value_sums(args, queue(stream));
  });
}

void CudaTokens::sum_means(py::handle words_object, py::handle means_object, int64_t stream) const {
  const Array words = writes(words_object, "words"), means = writes(means_object, "means");
  const cuda::MeansArgs args = {
      data_of<int64_t>(words, Dtype::i64, cuda::kSumWords), data_of<double>(means, Dtype::f64, 2)
  };
  check_apart(words, means);
  const py::gil_scoped_release release;
  cuda::sum_means(args, queue(stream));
}

void CudaTokens::fold_sequences(
    py::handle ends_object,
    py::handle mask_object,
    py::handle values_object,
    bool largest,
    py::handle out_object,
    int64_t stream
) const {
  const Array ends = reads(ends_object, "ends"), mask = reads(mask_object, "mask");
  const Array values = reads(values_object, "values"), out = writes(out_object, "out");
  const int64_t sequences = ends->size(), n = mask->size();
  const cuda::FoldArgs args = {
      sequences,
      n,
      data_of<const int64_t>(ends, Dtype::i64, sequences),
      data_of<const uint8_t>(mask, Dtype::boolean, n),
      data_of<const double>(values, Dtype::f64, n),
      largest ? cuda::Fold::largest : cuda::Fold::sum,
      data_of<double>(out, Dtype::f64, sequences)
  };
  check_apart(ends, mask, values, out);
  const py::gil_scoped_release release;
  cuda::fold_sequences(args, queue(stream));
}

void CudaTokens::exp(py::handle x_object, py::handle out_object, int64_t stream) const {
  const Array x = reads(x_object, "x"), out = writes(out_object, "out");
  const int64_t n = x->size();
  const cuda::ExpArgs args = {
      n, data_of<const double>(x, Dtype::f64, n), data_of<double>(out, Dtype::f64, n)
  };
  check_apart(x, out);
  const py::gil_scoped_release release;
  cuda::exp_values(args, queue(stream));
}

void CudaTokens::token_loss(const py::kwargs& keywords) const {
  Keywords names(keywords, place_);
  const LossArguments<DeviceNumber> given(names);
  const Array blocks = names.writes(LOGITLESS_NAME("blocks")),
              flag = names.writes(LOGITLESS_NAME("flag"));
  const auto stream = names.value<int64_t>(LOGITLESS_NAME("stream"), 0);
  names.check_all_asked_for();
  const int64_t n = given.tokens();
  const int64_t room = (n + cuda::kLossTokens - 1) / cuda::kLossTokens * cuda::kLossSums;
  visit_real(given.logp, [&](auto tag, Dtype dtype) {
    using T = typename decltype(tag)::type;
    cuda::LossArgs<T> args = {};
    args.n = n;
    given.fill(args, dtype);
    args.entropy_coefficient = given.entropy_coefficient.get().at;
    args.log_low = given.log_low ? given.log_low->get().at : nullptr;
    args.log_high = given.log_high ? given.log_high->get().at : nullptr;
    args.blocks = data_of<double>(blocks, Dtype::f64, room);
    args.sums = data_of<double>(given.sums, Dtype::f64, cuda::kLossSums);
    args.flag = data_of<int64_t>(flag, Dtype::i64, 1);
    check_apart(
        given,
        given.weight,
        given.mean_advantage,
        given.mean_logp,
        given.entropy_coefficient,
        given.log_low,
        given.log_high,
        blocks,
        flag
    );
    const py::gil_scoped_release release;
    cuda::token_loss(args, queue(stream));
  });
}

void register_cuda_tokens(py::module_& m) {
  m.attr("LOSS_TOKENS") = cuda::kLossTokens;
  m.attr("CUDA_SUM_WORDS") = cuda::kSumWords;
  m.attr("COVARIANCE_WORDS") = cuda::kCovarianceWords;
  m.attr("QUANTILES") = cuda::kQuantiles;
  m.attr("MOST_NUMBERS") = cuda::kMostNumbers;
  py::class_<CudaTokens>(m, "CudaTokens", "Token kernels on a CUDA device; calls queue work.")
      .def(py::init<int>(), py::arg("device") = 0)
      .def(
          "value_sums",
          &CudaTokens::value_sums,
          "Adds the exact sums of two arrays over the valid tokens, and their number, to words.",
          py::arg("first"),
          py::arg("second"),
          py::arg("mask"),
          py::arg("words"),
          py::arg("flag"),
          py::arg("stream") = 0
      )
      .def(
          "sum_means",
          &CudaTokens::sum_means,
          "The means of both sums, each rounded once; words are written over.",
          py::arg("words"),
          py::arg("means"),
          py::arg("stream") = 0
      )
      .def(
          "covariance_scores",
          &CudaTokens::covariance_scores,
          "Scores of the tokens in the band, unclipped; the id of each other is -1.",
          py::arg("logp"),
          py::arg("advantages"),
          py::arg("mask"),
          py::arg("old_logp"),
          py::arg("ids"),
          py::arg("band"),
          py::arg("scores"),
          py::arg("out_ids"),
          py::arg("flag"),
          py::arg("stream") = 0
      )
      .def(
          "ordered_scores",
          &CudaTokens::ordered_scores,
          "Ordered bits of some float64 values; the id of each other is -1.",
          py::arg("values"),
          py::arg("which"),
          py::arg("ids"),
          py::arg("scores"),
          py::arg("out_ids"),
          py::arg("stream") = 0
      )
      .def(
          "random_scores",
          &CudaTokens::random_scores,
          "The 64-bit Philox key of each id, 0 of -1.",
          py::arg("ids"),
          py::arg("seed"),
          py::arg("step"),
          py::arg("scores"),
          py::arg("stream") = 0
      )
      .def(
          "radix_levels",
          &CudaTokens::radix_levels,
          "Counts the digits from first up to last of the search for the k-th largest key.",
          py::arg("scores"),
          py::arg("ids"),
          py::arg("k"),
          py::arg("bins"),
          py::arg("states"),
          py::arg("first"),
          py::arg("last"),
          py::arg("exact"),
          py::arg("stream") = 0
      )
      .def(
          "radix_take",
          &CudaTokens::radix_take,
          "Which candidates are the k largest, after all levels; or their ids and -1.",
          py::arg("scores"),
          py::arg("ids"),
          py::arg("k"),
          py::arg("bins"),
          py::arg("states"),
          py::arg("taken"),
          py::arg("flag"),
          py::arg("stream") = 0
      )
      .def(
          "members",
          &CudaTokens::members,
          "Which ids are among the sorted ones.",
          py::arg("ids"),
          py::arg("sorted"),
          py::arg("out"),
          py::arg("stream") = 0
      )
      .def(
          "unique_ids",
          &CudaTokens::unique_ids,
          "Flags valid tokens whose id is negative or that of another.",
          py::arg("ids"),
          py::arg("mask"),
          py::arg("table"),
          py::arg("flag"),
          py::arg("stream") = 0
      )
      .def(
          "flag_tokens",
          &CudaTokens::flag_tokens,
          "Flags each token that is not good, by its place.",
          py::arg("good"),
          py::arg("places"),
          py::arg("flag"),
          py::arg("stream") = 0
      )
      .def(
          "sort_ids",
          &CudaTokens::sort_ids,
          "In rising order, with -1 first in place of each that is negative.",
          py::arg("ids"),
          py::arg("found"),
          py::arg("room"),
          py::arg("out"),
          py::arg("stream") = 0
      )
      .def(
          "covariance_sums",
          &CudaTokens::covariance_sums,
          "Adds the exact sums of a covariance report to words; the scores of each token.",
          py::arg("logp"),
          py::arg("advantages"),
          py::arg("mask"),
          py::arg("mean_advantage"),
          py::arg("mean_logp"),
          py::arg("above"),
          py::arg("scores"),
          py::arg("words"),
          py::arg("flag"),
          py::arg("stream") = 0
      )
      .def(
          "covariance_means",
          &CudaTokens::covariance_means,
          "The mean, the correlation and the share above the limit, from words.",
          py::arg("words"),
          py::arg("out"),
          py::arg("stream") = 0
      )
      .def(
          "quantile_levels",
          &CudaTokens::quantile_levels,
          "Counts the digits from first up to last of the searches for quantiles of scores.",
          py::arg("scores"),
          py::arg("count"),
          py::arg("shares"),
          py::arg("bins"),
          py::arg("states"),
          py::arg("out"),
          py::arg("first"),
          py::arg("last"),
          py::arg("stream") = 0
      )
      .def(
          "collect_numbers",
          &CudaTokens::collect_numbers,
          "Numbers, and arrays of one, side by side in float64.",
          py::arg("numbers"),
          py::arg("out"),
          py::arg("stream") = 0
      )
      .def(
          "count_shares",
          &CudaTokens::count_shares,
          "1 / max(count, 1), and max(fraction * count, 1) rounded down.",
          py::arg("count"),
          py::arg("fraction"),
          py::arg("inverse"),
          py::arg("part"),
          py::arg("stream") = 0
      )
      .def(
          "loss_outputs",
          &CudaTokens::loss_outputs,
          "The loss and its metrics, (sum, whether it is per token) each, from the sums.",
          py::arg("sums"),
          py::arg("tokens"),
          py::arg("total"),
          py::arg("metrics"),
          py::arg("loss"),
          py::arg("out"),
          py::arg("stream") = 0
      )
      .def(
          "fold_sequences",
          &CudaTokens::fold_sequences,
          "Of each sequence's valid tokens the sum of their values, or the largest and 0.",
          py::arg("ends"),
          py::arg("mask"),
          py::arg("values"),
          py::arg("largest"),
          py::arg("out"),
          py::arg("stream") = 0
      )
      .def(
          "exp",
          &CudaTokens::exp,
          "exp of float64 values, the same bits as on the CPU.",
          py::arg("x"),
          py::arg("out"),
          py::arg("stream") = 0
      )
      .def(
          "token_loss",
          &CudaTokens::token_loss,
          "tokens.token_loss, whose scalars may be arrays of one."
      );
}

}  // namespace logitless::bindings
