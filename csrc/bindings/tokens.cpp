// _core.tokens: the policy loss of tokens; selection.cpp has the rest.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "../cpu/tokens/selection.h"
#include "../cpu/tokens/token_loss.h"
#include "arrays/overlap.h"
#include "arrays/scalars.h"

namespace py = pybind11;

namespace logitless::bindings {
namespace {

constexpr int64_t kLossSums = 13;

void write(const cpu::TokenLossSums& sums, double* out) {
  const double values[kLossSums] = {
      sums.loss,
      sums.policy,
      sums.kl,
      sums.clipped,
      sums.clipped_lower,
      sums.selected,
      sums.old_minus_new,
      sums.entropy,
      sums.covariance,
      sums.tokens,
      static_cast<double>(sums.bad_token),
      static_cast<double>(sums.overflow_token),
      sums.overflow_loss
  };
  std::copy(values, values + kLossSums, out);
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
    double mean_advantage,
    double mean_logp,
    double grad_scale,
    double entropy_coefficient,
    double kl_coefficient,
    double penalty_coefficient,
    const TokenLossParams& params,
    py::handle sums_object,
    py::handle mask_object,
    double weight,
    py::handle penalty_logp_object,
    py::handle log_ratio_object,
    py::handle factor_object,
    py::handle precomputed_loss_object,
    py::handle precomputed_slope_object,
    py::handle g_policy_object,
    std::optional<double> log_low,
    std::optional<double> log_high,
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
  const auto precomputed_loss =
      optional_array(precomputed_loss_object, "precomputed_loss", Access::read);
  const auto precomputed_slope =
      optional_array(precomputed_slope_object, "precomputed_slope", Access::read);
  const Array g_logp(g_logp_object, "g_logp", Access::write);
  const auto g_entropy = optional_array(g_entropy_object, "g_entropy", Access::write);
  const auto g_policy = optional_array(g_policy_object, "g_policy", Access::write);
  const Array sums_array(sums_object, "sums", Access::write);
  auto* out = data_of<double>(sums_array, Dtype::f64, kLossSums);
  check(weights.has_value() != mask.has_value(), "either weights or mask must be given");
  const int64_t n = logp->size();
  visit_real(logp, [&](auto tag, Dtype dtype) {
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
    args.precomputed_loss = data_of<const double>(precomputed_loss, Dtype::f64, n);
    args.precomputed_slope = data_of<const double>(precomputed_slope, Dtype::f64, n);
    args.g_logp = data_of<T>(g_logp, dtype, n);
    args.g_entropy = data_of<T>(g_entropy, dtype, n);
    args.g_policy = data_of<double>(g_policy, Dtype::f64, n);
    args.means = {mean_advantage, mean_logp};
    args.grad_scale = grad_scale;
    args.params = params;
    args.params.entropy_coefficient = entropy_coefficient;
    args.params.kl.coefficient = kl_coefficient;
    args.params.penalty.coefficient = penalty_coefficient;
    if (log_low.has_value()) {
      args.params.log_low = *log_low;
      args.params.ratio_low = std::exp(*log_low);
    }
    if (log_high.has_value()) {
      args.params.log_high = *log_high;
      args.params.ratio_high = std::exp(*log_high);
    }
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
        precomputed_loss,
        precomputed_slope,
        g_logp,
        g_entropy,
        g_policy,
        sums_array
    );
    check(
        args.params.surrogate != Surrogate::precomputed ||
            (args.precomputed_loss != nullptr && args.precomputed_slope != nullptr),
        "precomputed_loss and precomputed_slope must be given with Surrogate.precomputed"
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
    write(sums, out);
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
  m.attr("LOSS_SUMS") = kLossSums;
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
      py::arg("entropy_coefficient"),
      py::arg("kl_coefficient"),
      py::arg("penalty_coefficient"),
      py::arg("params"),
      py::arg("sums"),
      py::arg("mask") = py::none(),
      py::arg("weight") = 0.0,
      py::arg("penalty_logp") = py::none(),
      py::arg("log_ratio") = py::none(),
      py::arg("factor") = py::none(),
      py::arg("precomputed_loss") = py::none(),
      py::arg("precomputed_slope") = py::none(),
      py::arg("g_policy") = py::none(),
      py::arg("log_low") = py::none(),
      py::arg("log_high") = py::none(),
      py::arg("threads") = 0,
      "Writes the coefficients, and the numerators of the loss and of the metrics into sums."
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
