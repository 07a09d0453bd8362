"""A spec as the plain numbers that a kernel takes, made once for each spec."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from logitless.loss.spec import (
    EntropyFloor,
    KLCov,
    PolicyLossSpec,
    SignWeights,
    Surrogate,
)

# Losses whose numbers are kept. Coefficients that move are not among them.
KNOWN = 256


def log_range(surrogate: Surrogate) -> tuple[float, float]:
    """The log ratios beyond which the surrogate counts as clipped."""
    low, high = surrogate.ratio_range
    return _log(low), _log(high)


@lru_cache(maxsize=KNOWN)
def loss_params(spec: PolicyLossSpec, kernels: Any) -> Any:
    """What never changes about a loss, as these kernels take it."""
    return kernels.params(loss_fields(spec))


def loss_fields(spec: PolicyLossSpec) -> dict[str, Any]:
    """A part that is None has no effect. Choices are the names of the core's enums."""
    surrogate, control = spec.surrogate, spec.control
    low, high = surrogate.ratio_range
    signs = control if isinstance(control, SignWeights) else SignWeights()
    floor = spec.entropy if isinstance(spec.entropy, EntropyFloor) else None
    penalty = control.estimator if isinstance(control, KLCov) else "none"
    kl = spec.kl.estimator if spec.kl else "none"
    return {
        "surrogate": surrogate.kind,
        "constants": surrogate.constants,
        "ratio_low": low,
        "ratio_high": high,
        "log_low": _log(low),
        "log_high": _log(high),
        "ratio_dual": surrogate.ratio_dual,
        "log_dual": _log(surrogate.ratio_dual),
        "positive": signs.positive,
        "negative": signs.negative,
        "control": "none" if control is None else control.action,
        "penalty_estimator": penalty.removesuffix("+"),
        "penalty_straight_through": penalty.endswith("+"),
        "kl_estimator": kl.removesuffix("+"),
        "kl_straight_through": kl.endswith("+"),
        "kl_weight": spec.kl.weight if spec.kl else "none",
        "entropy_target": floor.target if floor else 0.0,
    }


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf
