// _core.tokens.CudaTokens: the token kernels on a CUDA device, on the stream that each call names.
#include <pybind11/pybind11.h>

#include "../cuda/tokens/tokens.h"
#include "arrays/overlap.h"
#include "arrays/scalars.h"

namespace py = pybind11;

namespace logitless::bindings {
namespace {

// A number of Python's, or an array of one that an earlier kernel writes.
template <typename T>
class ScalarArray {
 public:
  ScalarArray(py::handle object, const char* name, Dtype dtype, const Place& place) {
    if (py::isinstance<py::float_>(object) || py::isinstance<py::int_>(object)) {
      scalar_.value = object.cast<T>();
      return;
    }
    array_.emplace(object, name, Access::read, place);
    scalar_.at = data_of<const T>(*array_, dtype, 1);
  }
  cuda::Scalar<T> get() const { return scalar_; }
  void collect(Spans& spans) const { spans.take(array_); }

 private:
  std::optional<Array> array_;
  cuda::Scalar<T> scalar_;
};

class CudaTokens {
 public:
  explicit CudaTokens(int device) : device_(device) {
    if (!cuda::build_info().compiled) throw std::runtime_error(cuda::device_reason(device));
    if (!cuda::build_info().emulated) place_ = {device, -1};
  }

  void value_sums(
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

  void sum_means(py::handle words_object, py::handle means_object, int64_t stream) const {
    const Array words = writes(words_object, "words"), means = writes(means_object, "means");
    const cuda::MeansArgs args = {
        data_of<int64_t>(words, Dtype::i64, cuda::kSumWords), data_of<double>(means, Dtype::f64, 2)
    };
    check_apart(words, means);
    const py::gil_scoped_release release;
    cuda::sum_means(args, queue(stream));
  }

  void covariance_scores(
      py::handle logp_object,
      py::handle advantages_object,
      py::handle mask_object,
      py::handle old_logp_object,
      py::handle ids_object,
      const py::dict& band,
      py::handle scores_object,
      py::handle out_ids_object,
      py::handle flag_object,
      int64_t stream
  ) const {
    const Array logp = reads(logp_object, "logp");
    const Array advantages = reads(advantages_object, "advantages");
    const Array mask = reads(mask_object, "mask"), ids = reads(ids_object, "ids");
    const auto old_logp = optional_array(old_logp_object, "old_logp", Access::read, place_);
    const Array scores = writes(scores_object, "scores");
    const Array out_ids = writes(out_ids_object, "out_ids");
    const Array flag = writes(flag_object, "flag");
    const auto number = [&](const char* name) { return field_of<double>(band, name); };
    const auto mean = [&](const char* name) {
      return ScalarArray<double>(field_of<py::object>(band, name), name, Dtype::f64, place_);
    };
    const auto mean_advantage = mean("mean_advantage"), mean_logp = mean("mean_logp");
    const int64_t n = logp->size();
    visit_real(logp, [&](auto tag, Dtype dtype) {
      using T = typename decltype(tag)::type;
      const cuda::ScoresArgs<T> args = {
          n,
          data_of<const T>(logp, dtype, n),
          data_of<const T>(advantages, dtype, n),
          data_of<const T>(old_logp, dtype, n),
          data_of<const uint8_t>(mask, Dtype::boolean, n),
          data_of<const int64_t>(ids, Dtype::i64, n),
          {mean_advantage.get(), mean_logp.get()},
          number("low"),
          number("high"),
          number("log_low"),
          number("log_high"),
          data_of<uint64_t>(scores, Dtype::i64, n),
          data_of<int64_t>(out_ids, Dtype::i64, n),
          data_of<int64_t>(flag, Dtype::i64, 1)
      };
      check_apart(
          logp, advantages, mask, old_logp, ids, mean_advantage, mean_logp, scores, out_ids, flag
      );
      const py::gil_scoped_release release;
      cuda::covariance_scores(args, queue(stream));
    });
  }

  void ordered_scores(
      py::handle values_object,
      py::handle which_object,
      py::handle ids_object,
      py::handle scores_object,
      py::handle out_ids_object,
      int64_t stream
  ) const {
    const Array values = reads(values_object, "values"), which = reads(which_object, "which");
    const Array ids = reads(ids_object, "ids"), scores = writes(scores_object, "scores");
    const Array out_ids = writes(out_ids_object, "out_ids");
    const int64_t n = values->size();
    const cuda::OrderedArgs args = {
        n,
        data_of<const double>(values, Dtype::f64, n),
        data_of<const uint8_t>(which, Dtype::boolean, n),
        data_of<const int64_t>(ids, Dtype::i64, n),
        data_of<uint64_t>(scores, Dtype::i64, n),
        data_of<int64_t>(out_ids, Dtype::i64, n)
    };
    check_apart(values, which, ids, scores, out_ids);
    const py::gil_scoped_release release;
    cuda::ordered_scores(args, queue(stream));
  }

  void random_scores(
      py::handle ids_object, uint64_t seed, uint64_t step, py::handle scores_object, int64_t stream
  ) const {
    const Array ids = reads(ids_object, "ids"), scores = writes(scores_object, "scores");
    const int64_t n = ids->size();
    const cuda::RandomArgs args = {
        n,
        data_of<const int64_t>(ids, Dtype::i64, n),
        seed,
        step,
        data_of<uint64_t>(scores, Dtype::i64, n)
    };
    check_apart(ids, scores);
    const py::gil_scoped_release release;
    cuda::random_scores(args, queue(stream));
  }

  void radix_levels(
      py::handle scores_object,
      py::handle ids_object,
      py::handle k_object,
      py::handle bins_object,
      py::handle states_object,
      int first,
      int last,
      bool exact,
      int64_t stream
  ) const {
    const Search search(*this, scores_object, ids_object, k_object, bins_object, states_object);
    check(
        0 <= first && first <= last && last <= kRadixLevels,
        "first and last must rise from 0 to ",
        kRadixLevels,
        ", got ",
        first,
        " and ",
        last
    );
    check_apart(search);
    const py::gil_scoped_release release;
    cuda::radix_levels(search.args(exact), first, last, queue(stream));
  }

  void radix_take(
      py::handle scores_object,
      py::handle ids_object,
      py::handle k_object,
      py::handle bins_object,
      py::handle states_object,
      py::handle taken_object,
      py::handle flag_object,
      int64_t stream
  ) const {
    const Search search(*this, scores_object, ids_object, k_object, bins_object, states_object);
    const Array taken = writes(taken_object, "taken"), flag = writes(flag_object, "flag");
    const cuda::RadixArgs radix = search.args(false);
    const cuda::TakeArgs args = {
        radix,
        data_of<uint8_t>(taken, Dtype::boolean, radix.n),
        data_of<int64_t>(flag, Dtype::i64, 1)
    };
    check_apart(search, taken, flag);
    const py::gil_scoped_release release;
    cuda::radix_take(args, queue(stream));
  }

  void members(
      py::handle ids_object, py::handle sorted_object, py::handle out_object, int64_t stream
  ) const {
    const Array ids = reads(ids_object, "ids"), sorted = reads(sorted_object, "sorted");
    const Array out = writes(out_object, "out");
    const int64_t n = ids->size(), chosen = sorted->size();
    const cuda::MembersArgs args = {
        n,
        chosen,
        data_of<const int64_t>(ids, Dtype::i64, n),
        data_of<const int64_t>(sorted, Dtype::i64, chosen),
        data_of<uint8_t>(out, Dtype::boolean, n)
    };
    check_apart(ids, sorted, out);
    const py::gil_scoped_release release;
    cuda::members(args, queue(stream));
  }

  void fold_sequences(
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

  void exp(py::handle x_object, py::handle out_object, int64_t stream) const {
    const Array x = reads(x_object, "x"), out = writes(out_object, "out");
    const int64_t n = x->size();
    const cuda::ExpArgs args = {
        n, data_of<const double>(x, Dtype::f64, n), data_of<double>(out, Dtype::f64, n)
    };
    check_apart(x, out);
    const py::gil_scoped_release release;
    cuda::exp_values(args, queue(stream));
  }

  void token_loss(
      py::handle logp_object,
      py::handle old_logp_object,
      py::handle advantages_object,
      py::handle weights_object,
      py::handle entropy_object,
      py::handle kl_logp_object,
      py::handle selected_object,
      py::handle g_logp_object,
      py::handle g_entropy_object,
      py::handle mean_advantage_object,
      py::handle mean_logp_object,
      double grad_scale,
      py::handle entropy_coefficient_object,
      double kl_coefficient,
      double penalty_coefficient,
      const TokenLossParams& params,
      py::handle sums_object,
      py::handle mask_object,
      py::handle weight_object,
      py::handle penalty_logp_object,
      py::handle log_ratio_object,
      py::handle factor_object,
      py::handle precomputed_loss_object,
      py::handle precomputed_slope_object,
      py::handle g_policy_object,
      py::handle log_low_object,
      py::handle log_high_object,
      py::handle blocks_object,
      py::handle flag_object,
      int64_t stream
  ) const {
    const auto maybe = [&](py::handle object, const char* name) {
      return optional_array(object, name, Access::read, place_);
    };
    const Array logp = reads(logp_object, "logp");
    const Array advantages = reads(advantages_object, "advantages");
    const auto old_logp = maybe(old_logp_object, "old_logp");
    const auto weights = maybe(weights_object, "weights"), mask = maybe(mask_object, "mask");
    const auto entropy = maybe(entropy_object, "entropy");
    const auto kl_logp = maybe(kl_logp_object, "kl_logp");
    const auto penalty_logp = maybe(penalty_logp_object, "penalty_logp");
    const auto selected = maybe(selected_object, "selected");
    const auto log_ratio = maybe(log_ratio_object, "log_ratio");
    const auto factor = maybe(factor_object, "factor");
    const auto precomputed_loss = maybe(precomputed_loss_object, "precomputed_loss");
    const auto precomputed_slope = maybe(precomputed_slope_object, "precomputed_slope");
    const Array g_logp = writes(g_logp_object, "g_logp");
    const auto g_entropy = optional_array(g_entropy_object, "g_entropy", Access::write, place_);
    const auto g_policy = optional_array(g_policy_object, "g_policy", Access::write, place_);
    const Array sums = writes(sums_object, "sums"), blocks = writes(blocks_object, "blocks");
    const Array flag = writes(flag_object, "flag");
    const auto number = [&](py::handle object, const char* name) {
      return ScalarArray<double>(object, name, Dtype::f64, place_);
    };
    const auto weight = number(weight_object, "weight");
    const auto mean_advantage = number(mean_advantage_object, "mean_advantage");
    const auto mean_logp = number(mean_logp_object, "mean_logp");
    const auto entropy_coefficient = number(entropy_coefficient_object, "entropy_coefficient");
    // of None the bounds of params count
    const auto bound = [&](py::handle object, const char* name, double known) {
      const py::float_ otherwise(known);
      return number(object.is_none() ? py::handle(otherwise) : object, name);
    };
    const auto low = bound(log_low_object, "log_low", params.log_low);
    const auto high = bound(log_high_object, "log_high", params.log_high);
    check(weights.has_value() != mask.has_value(), "either weights or mask must be given");
    const int64_t n = logp->size();
    const int64_t room = (n + cuda::kLossTokens - 1) / cuda::kLossTokens * cuda::kLossSums;
    visit_real(logp, [&](auto tag, Dtype dtype) {
      using T = typename decltype(tag)::type;
      cuda::LossArgs<T> args = {};
      args.n = n;
      args.logp = data_of<const T>(logp, dtype, n);
      args.old_logp = data_of<const T>(old_logp, dtype, n);
      args.advantages = data_of<const T>(advantages, dtype, n);
      args.weights = data_of<const double>(weights, Dtype::f64, n);
      args.mask = data_of<const uint8_t>(mask, Dtype::boolean, n);
      args.weight = weight.get();
      args.entropy = data_of<const T>(entropy, dtype, n);
      args.kl_logp = data_of<const T>(kl_logp, dtype, n);
      args.penalty_logp = data_of<const T>(penalty_logp, dtype, n);
      args.selected = data_of<const uint8_t>(selected, Dtype::boolean, n);
      args.log_ratio = data_of<const double>(log_ratio, Dtype::f64, n);
      args.factor = data_of<const double>(factor, Dtype::f64, n);
      args.precomputed_loss = data_of<const double>(precomputed_loss, Dtype::f64, n);
      args.precomputed_slope = data_of<const double>(precomputed_slope, Dtype::f64, n);
      args.g_logp = data_of<T>(g_logp, dtype, n);
      args.g_entropy = data_of<T>(g_entropy, dtype, n);
      args.g_policy = data_of<double>(g_policy, Dtype::f64, n);
      args.means = {mean_advantage.get(), mean_logp.get()};
      args.grad_scale = grad_scale;
      args.params = params;
      args.params.entropy_coefficient = entropy_coefficient.get().value;
      args.entropy_coefficient = entropy_coefficient.get().at;
      args.params.kl.coefficient = kl_coefficient;
      args.log_low = low.get().at;
      args.log_high = high.get().at;
      if (!log_low_object.is_none()) {
        args.params.log_low = low.get().value;
        args.params.ratio_low = std::exp(low.get().value);
      }
      if (!log_high_object.is_none()) {
        args.params.log_high = high.get().value;
        args.params.ratio_high = std::exp(high.get().value);
      }
      args.params.penalty.coefficient = penalty_coefficient;
      args.blocks = data_of<double>(blocks, Dtype::f64, room);
      args.sums = data_of<double>(sums, Dtype::f64, cuda::kLossSums);
      args.flag = data_of<int64_t>(flag, Dtype::i64, 1);
      check_apart(
          logp,
          old_logp,
          advantages,
          weights,
          mask,
          entropy,
          kl_logp,
          penalty_logp,
          selected,
          log_ratio,
          factor,
          precomputed_loss,
          precomputed_slope,
          weight,
          mean_advantage,
          mean_logp,
          entropy_coefficient,
          low,
          high,
          g_logp,
          g_entropy,
          g_policy,
          sums,
          blocks,
          flag
      );
      check(
          params.surrogate != Surrogate::precomputed ||
              (args.precomputed_loss != nullptr && args.precomputed_slope != nullptr),
          "precomputed_loss and precomputed_slope must be given with Surrogate.precomputed"
      );
      check(
          params.control != Control::penalise_selected || args.penalty_logp != nullptr,
          "penalty_logp must be given with Control.penalise_selected"
      );
      const py::gil_scoped_release release;
      cuda::token_loss(args, queue(stream));
    });
  }

 private:
  // The arrays of a search for the k-th largest key.
  class Search {
   public:
    Search(
        const CudaTokens& tokens,
        py::handle scores,
        py::handle ids,
        py::handle k,
        py::handle bins,
        py::handle states
    )
        : scores_(tokens.reads(scores, "scores")),
          ids_(tokens.reads(ids, "ids")),
          bins_(tokens.writes(bins, "bins")),
          states_(tokens.writes(states, "states")),
          k_(k, "k", Dtype::i64, tokens.place_) {}
    cuda::RadixArgs args(bool exact) const {
      const int64_t n = ids_->size();
      constexpr int64_t words = sizeof(cuda::RadixState) / sizeof(int64_t);
      auto* states = data_of<int64_t>(states_, Dtype::i64, words * (kRadixLevels + 1));
      return {
          n,
          data_of<const uint64_t>(scores_, Dtype::i64, n),
          data_of<const int64_t>(ids_, Dtype::i64, n),
          k_.get(),
          data_of<int64_t>(bins_, Dtype::i64, int64_t{kRadixLevels} * kRadixBins),
          reinterpret_cast<cuda::RadixState*>(states),
          exact,
          0
      };
    }
    void collect(Spans& spans) const {
      for (const auto* array : {&scores_, &ids_, &bins_, &states_}) spans.take(*array);
      k_.collect(spans);
    }

   private:
    Array scores_, ids_, bins_, states_;
    ScalarArray<int64_t> k_;
  };

  Array reads(py::handle object, const char* name) const {
    return Array(object, name, Access::read, place_);
  }
  Array writes(py::handle object, const char* name) const {
    return Array(object, name, Access::write, place_);
  }
  cuda::Stream queue(int64_t stream) const { return {device_, reinterpret_cast<void*>(stream)}; }

  int device_;
  Place place_;
};

}  // namespace

void register_cuda_tokens(py::module_& m) {
  m.attr("LOSS_TOKENS") = cuda::kLossTokens;
  m.attr("CUDA_SUM_WORDS") = cuda::kSumWords;
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
          "Which candidates are the k largest, after all levels.",
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
          "tokens.token_loss, whose scalars may be arrays of one.",
          py::kw_only(),
          py::arg("logp"),
          py::arg("old_logp"),
          py::arg("advantages"),
          py::arg("weights"),
          py::arg("entropy"),
          py::arg("kl_logp"),
          py::arg("selected"),
          py::arg("g_logp"),
          py::arg("g_entropy"),
          py::arg("mean_advantage"),
          py::arg("mean_logp"),
          py::arg("grad_scale"),
          py::arg("entropy_coefficient"),
          py::arg("kl_coefficient"),
          py::arg("penalty_coefficient"),
          py::arg("params"),
          py::arg("sums"),
          py::arg("mask"),
          py::arg("weight"),
          py::arg("penalty_logp"),
          py::arg("log_ratio"),
          py::arg("factor"),
          py::arg("precomputed_loss"),
          py::arg("precomputed_slope"),
          py::arg("g_policy"),
          py::arg("log_low"),
          py::arg("log_high"),
          py::arg("blocks"),
          py::arg("flag"),
          py::arg("stream") = 0
      );
}

}  // namespace logitless::bindings
