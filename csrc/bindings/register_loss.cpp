#include <pybind11/pybind11.h>

#include <algorithm>

#include "../core/philox.h"
#include "../cpu/selection.h"
#include "../cpu/token_loss.h"
#include "dlpack.h"

namespace py = pybind11;

namespace logitless::bindings {
namespace {

// float32 or float64: the dtype of logp, which all numbers of a call share.
template <typename Fn>
auto visit_real(const Array& logp, Fn&& fn) {
  if (logp->dtype == Dtype::f64) return fn(type_tag<double>{}, Dtype::f64);
  return fn(type_tag<float>{}, Dtype::f32);
}

KlParams kl_params(const py::dict& fields) {
  KlParams params;
  params.estimator = fields["estimator"].cast<KlEstimator>();
  params.straight_through = fields["straight_through"].cast<bool>();
  params.weight = fields["weight"].cast<KlWeight>();
  params.coefficient = fields["coefficient"].cast<double>();
  return params;
}

TokenLossParams token_loss_params(const py::dict& fields) {
  const auto number = [&](const char* name) { return fields[name].cast<double>(); };
  TokenLossParams params;
  params.surrogate = fields["surrogate"].cast<Surrogate>();
  int place = 0;
  for (py::handle value : fields["numbers"]) {
    check(place < 4, "numbers must hold up to 4 values");
    params.numbers[place++] = value.cast<double>();
  }
  params.ratio_low = number("ratio_low");
  params.ratio_high = number("ratio_high");
  params.log_low = number("log_low");
  params.log_high = number("log_high");
  params.ratio_dual = number("ratio_dual");
  params.log_dual = number("log_dual");
  params.positive = number("positive");
  params.negative = number("negative");
  params.control = fields["control"].cast<Control>();
  params.penalty = kl_params(fields["penalty"]);
  params.kl = kl_params(fields["kl"]);
  params.entropy_coefficient = number("entropy_coefficient");
  params.entropy_target = number("entropy_target");
  return params;
}

py::dict sums_dict(const cpu::TokenLossSums& sums) {
  py::dict out;
  out["loss"] = sums.loss;
  out["policy"] = sums.policy;
  out["kl"] = sums.kl;
  out["clipped"] = sums.clipped;
  out["clipped_lower"] = sums.clipped_lower;
  out["selected"] = sums.selected;
  out["old_minus_new"] = sums.old_minus_new;
  out["entropy"] = sums.entropy;
  out["covariance"] = sums.covariance;
  out["bad_token"] = sums.bad_token;
  return out;
}

py::dict token_loss(
    py::handle logp_object,
    py::handle old_logp_object,
    py::handle advantages_object,
    py::handle weights_object,
    py::handle entropy_object,
    py::handle kl_logp_object,
    py::handle selected_object,
    py::handle g_logp_object,
    py::handle g_entropy_object,
    double mean_advantage,
    double mean_logp,
    double grad_scale,
    const py::dict& params,
    py::handle mask_object,
    double weight,
    py::handle penalty_logp_object,
    py::handle log_ratio_object,
    py::handle factor_object,
    py::handle given_loss_object,
    py::handle given_slope_object,
    py::handle g_policy_object,
    int threads
) {
  const Array logp(logp_object, "logp");
  const auto old_logp = optional_array(old_logp_object, "old_logp");
  const Array advantages(advantages_object, "advantages");
  const auto weights = optional_array(weights_object, "weights");
  const auto mask = optional_array(mask_object, "mask");
  const auto entropy = optional_array(entropy_object, "entropy");
  const auto kl_logp = optional_array(kl_logp_object, "kl_logp");
  const auto penalty_logp = optional_array(penalty_logp_object, "penalty_logp");
  const auto selected = optional_array(selected_object, "selected");
  const auto log_ratio = optional_array(log_ratio_object, "log_ratio");
  const auto factor = optional_array(factor_object, "factor");
  const auto given_loss = optional_array(given_loss_object, "given_loss");
  const auto given_slope = optional_array(given_slope_object, "given_slope");
  const Array g_logp(g_logp_object, "g_logp");
  const auto g_entropy = optional_array(g_entropy_object, "g_entropy");
  const auto g_policy = optional_array(g_policy_object, "g_policy");
  check(weights.has_value() != mask.has_value(), "either weights or mask must be given");
  const int64_t n = logp->size();
  return visit_real(logp, [&](auto tag, Dtype dtype) {
    using T = typename decltype(tag)::type;
    cpu::TokenLossArgs<T> args;
    args.tokens = n;
    args.logp = data_of<const T>(logp, dtype, n, "logp");
    args.old_logp = data_of<const T>(old_logp, dtype, n, "old_logp");
    args.advantages = data_of<const T>(advantages, dtype, n, "advantages");
    args.weights = data_of<const double>(weights, Dtype::f64, n, "weights");
    args.mask = data_of<const bool>(mask, Dtype::boolean, n, "mask");
    args.weight = weight;
    args.entropy = data_of<const T>(entropy, dtype, n, "entropy");
    args.kl_logp = data_of<const T>(kl_logp, dtype, n, "kl_logp");
    args.penalty_logp = data_of<const T>(penalty_logp, dtype, n, "penalty_logp");
    args.selected = data_of<const bool>(selected, Dtype::boolean, n, "selected");
    args.log_ratio = data_of<const double>(log_ratio, Dtype::f64, n, "log_ratio");
    args.factor = data_of<const double>(factor, Dtype::f64, n, "factor");
    args.given_loss = data_of<const double>(given_loss, Dtype::f64, n, "given_loss");
    args.given_slope = data_of<const double>(given_slope, Dtype::f64, n, "given_slope");
    args.g_logp = data_of<T>(g_logp, dtype, n, "g_logp");
    args.g_entropy = data_of<T>(g_entropy, dtype, n, "g_entropy");
    args.g_policy = data_of<double>(g_policy, Dtype::f64, n, "g_policy");
    args.means = {mean_advantage, mean_logp};
    args.grad_scale = grad_scale;
    args.params = token_loss_params(params);
    args.threads = threads;
    check(
        args.params.surrogate != Surrogate::given ||
            (args.given_loss != nullptr && args.given_slope != nullptr),
        "given_loss and given_slope must be given with Surrogate.given"
    );
    check(
        args.params.control != Control::penalise_selected || args.penalty_logp != nullptr,
        "penalty_logp must be given with Control.penalise_selected"
    );
    cpu::TokenLossSums sums;
    {
      py::gil_scoped_release release;
      sums = cpu::token_loss(args);
    }
    return sums_dict(sums);
  });
}

template <typename T>
cpu::SelectionTokens<T> selection_tokens(
    const Array& logp,
    const Array& advantages,
    const Array& mask,
    const std::optional<Array>& old_logp,
    Dtype dtype,
    int threads
) {
  const int64_t n = logp->size();
  cpu::SelectionTokens<T> tokens;
  tokens.count = n;
  tokens.logp = data_of<const T>(logp, dtype, n, "logp");
  tokens.advantages = data_of<const T>(advantages, dtype, n, "advantages");
  tokens.mask = data_of<const bool>(mask, Dtype::boolean, n, "mask");
  tokens.old_logp = data_of<const T>(old_logp, dtype, n, "old_logp");
  tokens.threads = threads;
  return tokens;
}

// Fills sums[9]: the limbs of the advantages, those of logp, the count. Returns the first bad
// token.
int64_t value_sums(
    py::handle logp_object,
    py::handle advantages_object,
    py::handle mask_object,
    py::handle sums_object,
    int threads
) {
  const Array logp(logp_object, "logp");
  const Array advantages(advantages_object, "advantages");
  const Array mask(mask_object, "mask");
  const Array sums(sums_object, "sums");
  auto* out = data_of<int64_t>(sums, Dtype::i64, 9, "sums");
  return visit_real(logp, [&](auto tag, Dtype dtype) {
    using T = typename decltype(tag)::type;
    const auto tokens = selection_tokens<T>(logp, advantages, mask, std::nullopt, dtype, threads);
    const cpu::ValueSums result = cpu::value_sums(tokens);
    result.advantage.limbs(out);
    result.logp.limbs(out + 4);
    out[8] = result.count;
    return result.bad_token;
  });
}

void covariance_scores(
    py::handle logp_object,
    py::handle advantages_object,
    py::handle mask_object,
    py::handle old_logp_object,
    py::handle scores_object,
    py::handle candidate_object,
    const py::dict& band_fields,
    int threads
) {
  const Array logp(logp_object, "logp");
  const Array advantages(advantages_object, "advantages");
  const Array mask(mask_object, "mask");
  const auto old_logp = optional_array(old_logp_object, "old_logp");
  const auto scores = optional_array(scores_object, "scores");
  const Array candidate(candidate_object, "candidate");
  const int64_t n = logp->size();
  const auto number = [&](const char* name) { return band_fields[name].cast<double>(); };
  cpu::CovarianceBand band;
  band.means = {number("mean_advantage"), number("mean_logp")};
  band.low = number("low");
  band.high = number("high");
  band.log_low = number("log_low");
  band.log_high = number("log_high");
  visit_real(logp, [&](auto tag, Dtype dtype) {
    using T = typename decltype(tag)::type;
    cpu::covariance_scores(
        selection_tokens<T>(logp, advantages, mask, old_logp, dtype, threads),
        band,
        data_of<uint64_t>(scores, Dtype::i64, n, "scores"),
        data_of<bool>(candidate, Dtype::boolean, n, "candidate")
    );
  });
}

void ordered_scores(py::handle values_object, py::handle scores_object, int threads) {
  const Array values(values_object, "values");
  const Array scores(scores_object, "scores");
  const int64_t n = values->size();
  cpu::ordered_scores(
      data_of<const double>(values, Dtype::f64, n, "values"),
      n,
      data_of<uint64_t>(scores, Dtype::i64, n, "scores"),
      threads
  );
}

void exp_values(py::handle values_object, py::handle out_object, int threads) {
  const Array values(values_object, "x");
  const Array out(out_object, "out");
  const int64_t n = values->size();
  cpu::exp_values(
      data_of<const double>(values, Dtype::f64, n, "x"),
      n,
      data_of<double>(out, Dtype::f64, n, "out"),
      threads
  );
}

void random_scores(
    py::handle ids_object, uint64_t seed, uint64_t step, py::handle scores_object, int threads
) {
  const Array ids(ids_object, "ids");
  const Array scores(scores_object, "scores");
  const int64_t n = ids->size();
  cpu::random_scores(
      data_of<const int64_t>(ids, Dtype::i64, n, "ids"),
      n,
      seed,
      step,
      data_of<uint64_t>(scores, Dtype::i64, n, "scores"),
      threads
  );
}

void radix_histogram(
    py::handle scores_object,
    py::handle ids_object,
    uint64_t prefix_score,
    uint64_t prefix_inverted_id,
    int level,
    py::handle bins_object
) {
  const Array scores(scores_object, "scores");
  const Array ids(ids_object, "ids");
  const Array bins(bins_object, "bins");
  const int64_t n = ids->size();
  check(
      0 <= level && level < kRadixLevels, "level must be in [0, ", kRadixLevels, "), got ", level
  );
  const auto counts = cpu::radix_histogram(
      data_of<const uint64_t>(scores, Dtype::i64, n, "scores"),
      data_of<const int64_t>(ids, Dtype::i64, n, "ids"),
      n,
      {prefix_score, prefix_inverted_id},
      level,
      0
  );
  auto* out = data_of<int64_t>(bins, Dtype::i64, kRadixBins, "bins");
  for (int i = 0; i < kRadixBins; ++i) out[i] = counts[static_cast<size_t>(i)];
}

void compact(
    py::handle flags_object,
    py::handle scores_object,
    py::handle ids_object,
    py::handle out_scores_object,
    py::handle out_ids_object
) {
  const Array flags(flags_object, "flags");
  const auto scores = optional_array(scores_object, "scores");
  const Array ids(ids_object, "ids");
  const auto out_scores = optional_array(out_scores_object, "out_scores");
  const Array out_ids(out_ids_object, "out_ids");
  const int64_t n = flags->size();
  const bool* flag = data_of<const bool>(flags, Dtype::boolean, n, "flags");
  const int64_t kept = std::count(flag, flag + n, true);
  cpu::compact(
      flag,
      n,
      data_of<const uint64_t>(scores, Dtype::i64, n, "scores"),
      data_of<const int64_t>(ids, Dtype::i64, n, "ids"),
      data_of<uint64_t>(out_scores, Dtype::i64, kept, "out_scores"),
      data_of<int64_t>(out_ids, Dtype::i64, kept, "out_ids"),
      0
  );
}

int64_t repeated_id(py::handle ids_object, py::handle mask_object) {
  const Array ids(ids_object, "ids");
  const Array mask(mask_object, "mask");
  const int64_t n = ids->size();
  const int64_t found = cpu::repeated_id(
      data_of<const int64_t>(ids, Dtype::i64, n, "ids"),
      data_of<const bool>(mask, Dtype::boolean, n, "mask"),
      n
  );
  return found;
}

void members(py::handle ids_object, py::handle sorted_object, py::handle out_object) {
  const Array ids(ids_object, "ids");
  const Array sorted(sorted_object, "sorted");
  const Array out(out_object, "out");
  const int64_t n = ids->size();
  cpu::members(
      data_of<const int64_t>(ids, Dtype::i64, n, "ids"),
      n,
      data_of<const int64_t>(sorted, Dtype::i64, sorted->size(), "sorted"),
      sorted->size(),
      data_of<bool>(out, Dtype::boolean, n, "out"),
      0
  );
}

py::tuple philox(uint64_t x, uint64_t y, uint64_t seed) {
  const PhiloxWords words = philox_words(seed, x, y);
  return py::make_tuple(words.word[0], words.word[1], words.word[2], words.word[3]);
}

}  // namespace

void register_loss(py::module_& m) {
  py::enum_<Control>(m, "Control", "What being selected does to a token's policy term.")
      .value("none", Control::none)
      .value("drop_selected", Control::drop_selected)
      .value("penalise_selected", Control::penalise_selected)
      .value("keep_selected", Control::keep_selected);
  py::enum_<KlEstimator>(m, "KlEstimator", "One-sample estimator of KL(policy || reference).")
      .value("none", KlEstimator::none)
      .value("k1", KlEstimator::k1)
      .value("k2", KlEstimator::k2)
      .value("k3", KlEstimator::k3)
      .value("abs", KlEstimator::abs)
      .value("low_var", KlEstimator::low_var);
  py::enum_<KlWeight>(m, "KlWeight", "What multiplies a KL estimate.")
      .value("none", KlWeight::none)
      .value("ratio", KlWeight::ratio)
      .value("score", KlWeight::score);
  py::enum_<Surrogate>(m, "Surrogate", "The policy terms of csrc/core/token_loss.h.")
      .value("clip", Surrogate::clip)
      .value("reinforce", Surrogate::reinforce)
      .value("nothing", Surrogate::nothing)
      .value("cispo", Surrogate::cispo)
      .value("sapo", Surrogate::sapo)
      .value("trust_mask", Surrogate::trust_mask)
      .value("dro", Surrogate::dro)
      .value("vespo", Surrogate::vespo)
      .value("given", Surrogate::given);

  m.def(
      "token_loss",
      &token_loss,
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
      py::arg("params"),
      py::arg("mask") = py::none(),
      py::arg("weight") = 0.0,
      py::arg("penalty_logp") = py::none(),
      py::arg("log_ratio") = py::none(),
      py::arg("factor") = py::none(),
      py::arg("given_loss") = py::none(),
      py::arg("given_slope") = py::none(),
      py::arg("g_policy") = py::none(),
      py::arg("threads") = 0,
      "Writes g_logp and g_entropy; returns the numerators of the loss and of the metrics."
  );
  m.def(
      "value_sums",
      &value_sums,
      py::arg("logp"),
      py::arg("advantages"),
      py::arg("mask"),
      py::arg("sums"),
      py::arg("threads") = 0,
      "Order-free sums of advantages and logp as four limbs each, and the number of valid tokens."
  );
  m.def(
      "covariance_scores",
      &covariance_scores,
      py::arg("logp"),
      py::arg("advantages"),
      py::arg("mask"),
      py::arg("old_logp"),
      py::arg("scores"),
      py::arg("candidate"),
      py::arg("band"),
      py::arg("threads") = 0,
      "Ordered bits of each valid token's covariance, and whether it lies in the band unclipped."
  );
  m.def(
      "exp",
      &exp_values,
      py::arg("x"),
      py::arg("out"),
      py::arg("threads") = 0,
      "exp of float64 values, the same bits on every machine."
  );
  m.def(
      "ordered_scores",
      &ordered_scores,
      py::arg("values"),
      py::arg("scores"),
      py::arg("threads") = 0,
      "Ordered bits of float64 values."
  );
  m.def(
      "random_scores",
      &random_scores,
      py::arg("ids"),
      py::arg("seed"),
      py::arg("step"),
      py::arg("scores"),
      py::arg("threads") = 0,
      "The 64-bit Philox key of each token id."
  );
  m.def(
      "radix_histogram",
      &radix_histogram,
      py::arg("scores"),
      py::arg("ids"),
      py::arg("prefix_score"),
      py::arg("prefix_inverted_id"),
      py::arg("level"),
      py::arg("bins"),
      "How many keys with this prefix have each value of one digit."
  );
  m.attr("NO_ID") = cpu::kNoId;
  m.def(
      "compact",
      &compact,
      py::arg("flags"),
      py::arg("scores"),
      py::arg("ids"),
      py::arg("out_scores"),
      py::arg("out_ids"),
      "The scores and ids of the flagged tokens, in their order."
  );
  m.def(
      "repeated_id",
      &repeated_id,
      py::arg("ids"),
      py::arg("mask"),
      "A negative id where the mask is true, else one that is there twice, else NO_ID."
  );
  m.def(
      "members",
      &members,
      py::arg("ids"),
      py::arg("sorted"),
      py::arg("out"),
      "Which ids are among the sorted ones."
  );
  m.def(
      "philox",
      &philox,
      py::arg("x"),
      py::arg("y"),
      py::arg("seed"),
      "Four words of Philox 4x32-10 with the seed as the key and (x, y) as the counter."
  );
}

}  // namespace logitless::bindings
