// The keyword arguments that the losses of tokens share, on the CPU and on a device: one list of
// names, read into one record, from which either kernel's is filled.
#pragma once

#include <pybind11/pybind11.h>

#include <cmath>
#include <optional>
#include <string>

#include "../core/token_loss.h"
#include "arrays/overlap.h"
#include "arrays/scalars.h"

namespace logitless::bindings {

// A name as text, and as the key that Python made of it.
struct Name {
  explicit Name(const char* text) : text(text), key(PyUnicode_InternFromString(text)) {}
  const char* text;
  PyObject* key;
};
// Made at the first call: to make 28 of them takes longer than to look them up.
#define LOGITLESS_NAME(text)      \
  ([]() -> const Name& {          \
    static const Name name(text); \
    return name;                  \
  }())

// Arguments given by name, each asked for once. What is left out is None.
class Keywords {
 public:
  Keywords(const pybind11::kwargs& given, const Place& place) : given_(given), place_(place) {}

  const Place& place() const { return place_; }
  pybind11::handle get(const Name& name) {
    PyObject* const value = PyDict_GetItem(given_.ptr(), name.key);
    if (value == nullptr) return Py_None;
    ++found_;
    return value;
  }
  pybind11::handle require(const Name& name) {
    const pybind11::handle value = get(name);
    if (value.is_none())
      throw pybind11::type_error(std::string(name.text) + " must be given, got None");
    return value;
  }
  template <typename T>
  T value(const Name& name) {
    return value_of<T>(pybind11::reinterpret_borrow<pybind11::object>(require(name)), name.text);
  }
  template <typename T>
  T value(const Name& name, T otherwise) {
    const pybind11::handle found = get(name);
    if (found.is_none()) return otherwise;
    return value_of<T>(pybind11::reinterpret_borrow<pybind11::object>(found), name.text);
  }
  Array reads(const Name& name) { return {require(name), name.text, Access::read, place_}; }
  Array writes(const Name& name) { return {require(name), name.text, Access::write, place_}; }
  std::optional<Array> maybe(const Name& name, Access access = Access::read) {
    return optional_array(get(name), name.text, access, place_);
  }
  // Throws where something was given that nobody asked for.
  void check_all_asked_for() const {
    if (found_ == given_.size()) return;
    throw pybind11::type_error(
        "got an unexpected argument among " + std::string(pybind11::str(pybind11::list(given_)))
    );
  }

 private:
  const pybind11::kwargs& given_;
  Place place_;
  size_t found_ = 0;
};

// A number of Python's.
class HostNumber {
 public:
  HostNumber(pybind11::handle object, const char* name, const Place&)
      : value_(value_of<double>(pybind11::reinterpret_borrow<pybind11::object>(object), name)) {}
  double get() const { return value_; }
  double value() const { return value_; }

 private:
  double value_;
};

// Number: HostNumber, or one that may also be an array on the device. Its get() is what the
// kernel's record takes, its value() what the host knows of it.
template <typename Number>
struct LossArguments {
  explicit LossArguments(Keywords& given)
      : logp(given.reads(LOGITLESS_NAME("logp"))),
        advantages(given.reads(LOGITLESS_NAME("advantages"))),
        old_logp(given.maybe(LOGITLESS_NAME("old_logp"))),
        weights(given.maybe(LOGITLESS_NAME("weights"))),
        mask(given.maybe(LOGITLESS_NAME("mask"))),
        entropy(given.maybe(LOGITLESS_NAME("entropy"))),
        kl_logp(given.maybe(LOGITLESS_NAME("kl_logp"))),
        penalty_logp(given.maybe(LOGITLESS_NAME("penalty_logp"))),
        selected(given.maybe(LOGITLESS_NAME("selected"))),
        log_ratio(given.maybe(LOGITLESS_NAME("log_ratio"))),
        factor(given.maybe(LOGITLESS_NAME("factor"))),
        precomputed_loss(given.maybe(LOGITLESS_NAME("precomputed_loss"))),
        precomputed_slope(given.maybe(LOGITLESS_NAME("precomputed_slope"))),
        g_logp(given.writes(LOGITLESS_NAME("g_logp"))),
        g_entropy(given.maybe(LOGITLESS_NAME("g_entropy"), Access::write)),
        g_policy(given.maybe(LOGITLESS_NAME("g_policy"), Access::write)),
        sums(given.writes(LOGITLESS_NAME("sums"))),
        weight(number(given, LOGITLESS_NAME("weight"))),
        mean_advantage(required(given, LOGITLESS_NAME("mean_advantage"))),
        mean_logp(required(given, LOGITLESS_NAME("mean_logp"))),
        entropy_coefficient(required(given, LOGITLESS_NAME("entropy_coefficient"))),
        grad_scale(given.value<double>(LOGITLESS_NAME("grad_scale"))),
        kl_coefficient(given.value<double>(LOGITLESS_NAME("kl_coefficient"))),
        penalty_coefficient(given.value<double>(LOGITLESS_NAME("penalty_coefficient"))),
        log_low(number(given, LOGITLESS_NAME("log_low"))),
        log_high(number(given, LOGITLESS_NAME("log_high"))),
        params(given.value<TokenLossParams>(LOGITLESS_NAME("params"))) {
    check(weights.has_value() != mask.has_value(), "either weights or mask must be given");
    check(
        params.surrogate != Surrogate::precomputed || (precomputed_loss && precomputed_slope),
        "precomputed_loss and precomputed_slope must be given with Surrogate.precomputed"
    );
    check(
        params.control != Control::penalise_selected || penalty_logp,
        "penalty_logp must be given with Control.penalise_selected"
    );
  }

  int64_t tokens() const { return logp->size(); }

  // All but `sums`, of which each kernel makes something else.
  template <typename T, template <typename> class Args>
  void fill(Args<T>& args, Dtype dtype) const {
    const int64_t n = tokens();
    args.logp = data_of<const T>(logp, dtype, n);
    args.old_logp = data_of<const T>(old_logp, dtype, n);
    args.advantages = data_of<const T>(advantages, dtype, n);
    args.weights = data_of<const double>(weights, Dtype::f64, n);
    args.mask = data_of<const uint8_t>(mask, Dtype::boolean, n);
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
    if (weight) args.weight = weight->get();
    args.means = {mean_advantage.get(), mean_logp.get()};
    args.grad_scale = grad_scale;
    args.params = params;
    args.params.entropy_coefficient = entropy_coefficient.value();
    args.params.kl.coefficient = kl_coefficient;
    args.params.penalty.coefficient = penalty_coefficient;
    if (log_low) {
      args.params.log_low = log_low->value();
      args.params.ratio_low = std::exp(log_low->value());
    }
    if (log_high) {
      args.params.log_high = log_high->value();
      args.params.ratio_high = std::exp(log_high->value());
    }
  }

  void collect(Spans& spans) const {
    for (const Array* array : {&logp, &advantages, &g_logp, &sums}) spans.take(*array);
    for (const auto* array :
         {&old_logp,
          &weights,
          &mask,
          &entropy,
          &kl_logp,
          &penalty_logp,
          &selected,
          &log_ratio,
          &factor,
          &precomputed_loss,
          &precomputed_slope,
          &g_entropy,
          &g_policy}) {
      spans.take(*array);
    }
  }

  Array logp, advantages;
  std::optional<Array> old_logp, weights, mask, entropy, kl_logp, penalty_logp, selected;
  std::optional<Array> log_ratio, factor, precomputed_loss, precomputed_slope;
  Array g_logp;
  std::optional<Array> g_entropy, g_policy;
  Array sums;
  std::optional<Number> weight;
  Number mean_advantage, mean_logp, entropy_coefficient;
  double grad_scale, kl_coefficient, penalty_coefficient;
  // Where they are not given, those of params count.
  std::optional<Number> log_low, log_high;
  TokenLossParams params;

 private:
  static Number required(Keywords& given, const Name& name) {
    return {given.require(name), name.text, given.place()};
  }
  static std::optional<Number> number(Keywords& given, const Name& name) {
    const pybind11::handle value = given.get(name);
    if (value.is_none()) return std::nullopt;
    return Number(value, name.text, given.place());
  }
};

}  // namespace logitless::bindings
