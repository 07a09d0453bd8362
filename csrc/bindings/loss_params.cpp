// _core.tokens.LossParams and the choices in it, for the loss on the CPU and on a device.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <vector>

#include "../core/check.h"
#include "../core/token_loss.h"

namespace py = pybind11;

namespace logitless::bindings {
namespace {

// An enumeration's value, of which Python makes others, too.
template <typename Enum>
Enum checked(Enum value, Enum last, const char* name) {
  const auto number = static_cast<int64_t>(value);
  check(0 <= number && number <= static_cast<int64_t>(last), name, " has no value ", number);
  return value;
}

TokenLossParams loss_params(
    Surrogate surrogate,
    const std::vector<double>& constants,
    double ratio_low,
    double ratio_high,
    double log_low,
    double log_high,
    double ratio_dual,
    double log_dual,
    double positive,
    double negative,
    Control control,
    KlEstimator penalty_estimator,
    bool penalty_straight_through,
    KlEstimator kl_estimator,
    bool kl_straight_through,
    KlWeight kl_weight,
    double entropy_target
) {
  TokenLossParams params;
  params.surrogate = checked(surrogate, Surrogate::precomputed, "surrogate");
  check(constants.size() <= 4, "constants must hold up to 4 values");
  std::copy(constants.begin(), constants.end(), params.constants);
  params.ratio_low = ratio_low;
  params.ratio_high = ratio_high;
  params.log_low = log_low;
  params.log_high = log_high;
  params.ratio_dual = ratio_dual;
  params.log_dual = log_dual;
  params.positive = positive;
  params.negative = negative;
  params.control = checked(control, Control::keep_selected, "control");
  const KlEstimator last = KlEstimator::low_var;
  params.penalty.estimator = checked(penalty_estimator, last, "penalty_estimator");
  params.penalty.straight_through = penalty_straight_through;
  params.kl.estimator = checked(kl_estimator, last, "kl_estimator");
  params.kl.straight_through = kl_straight_through;
  params.kl.weight = checked(kl_weight, KlWeight::score, "kl_weight");
  params.entropy_target = entropy_target;
  return params;
}

}  // namespace

void register_loss_params(py::module_& m) {
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
  py::enum_<Surrogate> surrogates(m, "Surrogate", "The policy terms of csrc/core/token_loss.h.");
  for (size_t i = 0; i < std::size(kSurrogates); ++i) {
    surrogates.value(kSurrogates[i], static_cast<Surrogate>(i));
  }
  py::class_<TokenLossParams>(m, "LossParams", "What never changes about a loss.")
      .def(
          py::init(&loss_params),
          py::kw_only(),
          py::arg("surrogate"),
          py::arg("constants"),
          py::arg("ratio_low"),
          py::arg("ratio_high"),
          py::arg("log_low"),
          py::arg("log_high"),
          py::arg("ratio_dual"),
          py::arg("log_dual"),
          py::arg("positive"),
          py::arg("negative"),
          py::arg("control"),
          py::arg("penalty_estimator"),
          py::arg("penalty_straight_through"),
          py::arg("kl_estimator"),
          py::arg("kl_straight_through"),
          py::arg("kl_weight"),
          py::arg("entropy_target")
      );
}

}  // namespace logitless::bindings
