// _core.tokens: the policy loss of tokens; selection.cpp has the rest.
#include <pybind11/pybind11.h>

#include "../cpu/tokens/selection.h"
#include "../cpu/tokens/token_loss.h"
#include "arrays/overlap.h"
#include "arrays/scalars.h"

namespace py = pybind11;

namespace logitless::bindings {
namespace {

KlParams kl_params(const py::dict& fields) {
  KlParams params;
  params.estimator = choice_of(fields, "estimator", KlEstimator::low_var);
  params.straight_through = field_of<bool>(fields, "straight_through");
  params.weight = choice_of(fields, "weight", KlWeight::score);
  params.coefficient = field_of<double>(fields, "coefficient");
  return params;
}

TokenLossParams token_loss_params(const py::dict& fields) {
  const auto number = [&](const char* name) { return field_of<double>(fields, name); };
  TokenLossParams params;
  params.surrogate = choice_of(fields, "surrogate", Surrogate::given);
  const auto numbers = field_of<py::sequence>(fields, "numbers");
  check(numbers.size() <= 4, "the field 'numbers' must hold up to 4 values");
  for (size_t i = 0; i < numbers.size(); ++i)
    params.numbers[i] = value_of<double>(numbers[i], "numbers");
  params.ratio_low = number("ratio_low");
  params.ratio_high = number("ratio_high");
  params.log_low = number("log_low");
  params.log_high = number("log_high");
  params.ratio_dual = number("ratio_dual");
  params.log_dual = number("log_dual");
  params.positive = number("positive");
  params.negative = number("negative");
  params.control = choice_of(fields, "control", Control::keep_selected);
  params.penalty = kl_params(field_of<py::dict>(fields, "penalty"));
  params.kl = kl_params(field_of<py::dict>(fields, "kl"));
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
  out["overflow_token"] = sums.overflow_token;
  out["overflow_loss"] = sums.overflow_loss;
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
  const Array logp(logp_object, "logp", Access::read);
  const auto old_logp = optional_array(old_logp_object, "old_logp", Access::read);
  const Array advantages(advantages_object, "advantages", Access::read);
  const auto weights = optional_array(weights_object, "weights", Access::read);
  const auto mask = optional_array(mask_object, "mask", Access::read);
  const auto entropy = optional_array(entropy_object, "entropy", Access::read);
  const auto kl_logp = optional_array(kl_logp_object, "kl_logp", Access::read);
  const auto penalty_logp = optional_array(penalty_logp_object, "penalty_logp", Access::read);
  const auto selected = optional_array(selected_object, "selected", Access::read);
  const auto log_ratio = optional_array(log_ratio_object, "log_ratio", Access::read);
  const auto factor = optional_array(factor_object, "factor", Access::read);
  const auto given_loss = optional_array(given_loss_object, "given_loss", Access::read);
  const auto given_slope = optional_array(given_slope_object, "given_slope", Access::read);
  const Array g_logp(g_logp_object, "g_logp", Access::write);
  const auto g_entropy = optional_array(g_entropy_object, "g_entropy", Access::write);
  const auto g_policy = optional_array(g_policy_object, "g_policy", Access::write);
  check(weights.has_value() != mask.has_value(), "either weights or mask must be given");
  const int64_t n = logp->size();
  return visit_real(logp, [&](auto tag, Dtype dtype) {
    using T = typename decltype(tag)::type;
    cpu::TokenLossArgs<T> args;
    args.tokens = n;
    args.logp = data_of<const T>(logp, dtype, n);
    args.old_logp = data_of<const T>(old_logp, dtype, n);
    args.advantages = data_of<const T>(advantages, dtype, n);
    args.weights = data_of<const double>(weights, Dtype::f64, n);
    args.mask = data_of<const uint8_t>(mask, Dtype::boolean, n);
    args.weight = weight;
    args.entropy = data_of<const T>(entropy, dtype, n);
    args.kl_logp = data_of<const T>(kl_logp, dtype, n);
    args.penalty_logp = data_of<const T>(penalty_logp, dtype, n);
    args.selected = data_of<const uint8_t>(selected, Dtype::boolean, n);
    args.log_ratio = data_of<const double>(log_ratio, Dtype::f64, n);
    args.factor = data_of<const double>(factor, Dtype::f64, n);
    args.given_loss = data_of<const double>(given_loss, Dtype::f64, n);
    args.given_slope = data_of<const double>(given_slope, Dtype::f64, n);
    args.g_logp = data_of<T>(g_logp, dtype, n);
    args.g_entropy = data_of<T>(g_entropy, dtype, n);
    args.g_policy = data_of<double>(g_policy, Dtype::f64, n);
    args.means = {mean_advantage, mean_logp};
    args.grad_scale = grad_scale;
    args.params = token_loss_params(params);
    args.threads = threads_of(threads);
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
        given_loss,
        given_slope,
        g_logp,
        g_entropy,
        g_policy
    );
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

void exp_values(py::handle values_object, py::handle out_object, int threads) {
  const Array values(values_object, "x", Access::read);
  const Array out(out_object, "out", Access::write);
  const int64_t n = values->size();
  const auto* x = data_of<const double>(values, Dtype::f64, n);
  auto* y = data_of<double>(out, Dtype::f64, n);
  check_apart(values, out);
  const int team = threads_of(threads);
  const py::gil_scoped_release release;
  cpu::exp_values(x, n, y, team);
}

}  // namespace

void register_tokens(py::module_& m) {
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
      "exp",
      &exp_values,
      py::arg("x"),
      py::arg("out"),
      py::arg("threads") = 0,
      "exp of float64 values, the same bits on every machine."
  );
}

}  // namespace logitless::bindings
