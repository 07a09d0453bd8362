"""Coefficients that follow the entropy: plain state, one update per optimizer step.

`entropy` is the token mean over the whole optimizer batch: the sum of `actor/entropy` over its
micro-batches and ranks. All ranks that update with the same number stay in step.
"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass
from typing import Any

from logitless.inputs.checks import (
    finite,
    instance,
    is_tensor,
    not_negative,
    plain_fields,
    positive,
    require,
    shown,
)

# Of a coefficient that is positive always: its logarithm stays a number.
LEAST = sys.float_info.min
MOST = sys.float_info.max


def _observed(entropy: Any) -> float:
    # metrics are tensors where the losses are, and this number is needed now
    if is_tensor(entropy) and entropy.ndim == 0 and not entropy.is_meta:
        entropy = entropy.detach().cpu()
    return float(require("entropy", entropy, lambda x: x >= 0.0, "finite and >= 0"))


def _bounded(x: float) -> float:
    """A finite number: sums of two are a number."""
    return min(max(x, -MOST), MOST)


@dataclass
class _Controller:
    """Its fields are all of its state."""

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        fields, name = vars(self), type(self).__name__
        instance(f"state of {name}", state, (dict,))
        if set(state) != set(fields):
            raise ValueError(
                f"state of {name} must have {sorted(fields)}, got {shown(list(state))}"
            )
        # the checks of a new one, before anything changes
        fields.update(vars(type(self)(**state)))


@dataclass
class StepController(_Controller):
    """TRL's rule (Skywork-OR1, arXiv:2505.22312). In plain code, after each step:

        value += delta if entropy <= target else -delta
        coefficient = value if entropy <= target else 0

    value stays in [low, high], and the first step has coefficient 0.
    """

    target: float
    delta: float = 0.005
    low: float = 0.0
    high: float = 1.0
    value: float = 0.0
    coefficient: float = 0.0

    def __post_init__(self) -> None:
        plain_fields(self)
        not_negative("StepController.target", self.target)
        positive("StepController.delta", self.delta)
        finite("StepController.high", self.high)
        require("StepController.low", self.low, lambda x: x <= self.high, "<= high")
        require(
            "StepController.value",
            self.value,
            lambda x: self.low <= x <= self.high,
            f"in [low, high] = [{self.low}, {self.high}]",
        )
        finite("StepController.coefficient", self.coefficient)

    def update(self, entropy: float) -> float:
        """Takes the entropy of the step that ended; returns the coefficient of the next."""
        below = _observed(entropy) <= self.target
        moved = self.value + (self.delta if below else -self.delta)
        self.value = min(max(moved, self.low), self.high)
        self.coefficient = self.value if below else 0.0
        return self.coefficient


@dataclass
class LogController(_Controller):
    """SAC's temperature (arXiv:1812.05905). In plain code, after each step:

        log_coefficient -= rate * (entropy - target)      # the gradient of log a * (H - target)

    Positive always, and as strong as it takes: bound it with `high` where that may be too much. It
    does not fall below the smallest normal float, 2.2e-308.
    """

    target: float
    coefficient: float = 1e-3
    rate: float = 0.01
    high: float = 1.0

    def __post_init__(self) -> None:
        plain_fields(self)
        not_negative("LogController.target", self.target)
        positive("LogController.rate", self.rate)
        positive("LogController.high", self.high)
        require(
            "LogController.coefficient",
            self.coefficient,
            lambda x: 0.0 < x <= self.high,
            f"in (0, high] = (0, {self.high}]",
        )

    def update(self, entropy: float) -> float:
        """Takes the entropy of the step that ended; returns the coefficient of the next."""
        step = -self.rate * (_observed(entropy) - self.target)
        moved = math.log(self.coefficient) + step
        # exp overflows where `high` holds anyway
        below = moved < math.log(self.high)
        self.coefficient = min(max(math.exp(moved), LEAST), self.high) if below else self.high
        return self.coefficient


@dataclass
class PIController(_Controller):
    """EntroPIC's alpha (arXiv:2511.15248), for `Entropic`. In plain code, after each step:

        error = entropy - target
        coefficient = min(max(kp * error + ki * total, low), high)
        total += error

    Above 0 it lowers the entropy. The authors take it from the entropy of the micro-batch that it
    then weighs; an update with the entropy of a scoring, before the step, is the nearest to that.
    """

    target: float
    kp: float = 1.0
    ki: float = 0.01
    low: float = -1.0
    high: float = 1.0
    # the errors of all steps
    total: float = 0.0
    coefficient: float = 0.0

    def __post_init__(self) -> None:
        plain_fields(self)
        not_negative("PIController.target", self.target)
        not_negative("PIController.kp", self.kp)
        not_negative("PIController.ki", self.ki)
        finite("PIController.high", self.high)
        require("PIController.low", self.low, lambda x: x <= self.high, "<= high")
        finite("PIController.total", self.total)
        finite("PIController.coefficient", self.coefficient)

    def update(self, entropy: float) -> float:
        """Takes the entropy of the step that ended; returns the coefficient of the next."""
        error = _observed(entropy) - self.target
        moved = _bounded(self.kp * error) + _bounded(self.ki * self.total)
        self.coefficient = min(max(moved, self.low), self.high)
        self.total = _bounded(self.total + error)
        return self.coefficient


@dataclass
class EntropyAnchor(_Controller):
    """SIREN's anchor (arXiv:2509.25133), for `Siren`: the first entropy that it is shown, kept.

    That is `BatchStats.selected_entropy` of the first step:
    `replace(spec, entropy=Siren(anchor=anchor.update(float(batch.selected_entropy))))`.
    """

    anchor: float | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        if self.anchor is not None:
            not_negative("EntropyAnchor.anchor", self.anchor)

    def update(self, entropy: float) -> float:
        """Takes the entropy of a step; returns that of the first."""
        seen = _observed(entropy)
        self.anchor = seen if self.anchor is None else self.anchor
        return self.anchor


@dataclass
class RepoController(_Controller):
    """REPO's zeta (arXiv:2603.11682), for `RepoR` and `RepoD`. In plain code, after each step:

        side = 1 if entropy < target else -1    # at the target nothing moves
        now = side * coefficient                # above 0 it pushes toward the target already
        halved = now / 2 if now / 2 <= -low else low
        coefficient = side * (min(2 * now, high) if now > 0 else halved)

    Its size doubles or halves within [low, high]; one that would become smaller than low changes
    its sign, and one of 0 starts at low. The defaults are those of REPO-R. The authors hold the
    beta of REPO-D within low=1e-3 and high=10.
    """

    target: float
    coefficient: float = 1e-3
    low: float = 1e-4
    high: float = 0.05

    def __post_init__(self) -> None:
        plain_fields(self)
        not_negative("RepoController.target", self.target)
        positive("RepoController.low", self.low)
        require("RepoController.high", self.high, lambda x: x >= self.low, f">= low = {self.low}")
        require(
            "RepoController.coefficient",
            self.coefficient,
            lambda x: abs(x) <= self.high,
            f"in [-high, high] = [{-self.high}, {self.high}]",
        )

    def update(self, entropy: float) -> float:
        """Takes the entropy of the step that ended; returns the coefficient of the next."""
        away = self.target - _observed(entropy)
        if away:
            side = math.copysign(1.0, away)
            now = side * self.coefficient
            halved = 0.5 * now if 0.5 * now <= -self.low else self.low
            self.coefficient = side * (min(2.0 * now, self.high) if now > 0 else halved)
        return self.coefficient
