// _core.tokens: the policy loss of tokens; selection.cpp has the rest.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "../cpu/tokens/selection.h"
#include "../cpu/tokens/token_loss.h"
#include "arrays/overlap.h"
#include "arrays/scalars.h"
#include "loss_arguments.h"

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

void token_loss(const py::kwargs& keywords) {
  Keywords names(keywords, {});
  const LossArguments<HostNumber> given(names);
  const int threads = threads_of(names.value<int>(LOGITLESS_NAME("threads"), 0));
  names.check_all_asked_for();
  auto* out = data_of<double>(given.sums, Dtype::f64, kLossSums);
  visit_real(given.logp, [&](auto tag, Dtype dtype) {
    using T = typename decltype(tag)::type;
    cpu::TokenLossArgs<T> args;
    args.tokens = given.tokens();
    args.threads = threads;
    given.fill(args, dtype);
    check_apart(given);
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
