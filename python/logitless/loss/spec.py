"""The axes of a policy loss: a frozen dataclass; a paper is one choice on each axis.

loss_t = surrogate(exp(logp - old_logp), A)      changed by `control` where a token is selected
         + kl.coefficient * KL(logp, ref_logp) - entropy.coefficient * H
loss   = sum_t weight_t * loss_t                 weight_t by `aggregation`
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

Scope = Literal["batch", "micro"]
KLEstimator = Literal["k1", "k2", "k3"]
Ratio = Literal["token", "sequence", "sequence_token", "inference", "none"]
Aggregation = Literal[
    "token-mean",
    "token-sum",
    "seq-mean-token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum-norm",
]


def _require(name: str, value: float, ok: Callable[[float], bool], expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (math.isfinite(value) and ok(value)):
        raise ValueError(f"{name} must be {expected}, got {value}")


def _choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _instance(name: str, value: object, kinds: tuple[type, ...]) -> None:
    if not isinstance(value, kinds):
        names = ", ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise TypeError(f"{name} must be one of {names}, got {value!r}")


def _check_selection(control: ClipCov | KLCov | TopEntropy) -> None:
    name = type(control).__name__
    _require(f"{name}.fraction", control.fraction, lambda x: 0.0 < x <= 1.0, "in (0, 1]")
    _choice(f"{name}.scope", control.scope, get_args(Scope))


@dataclass(frozen=True)
class Clip:
    """PPO's surrogate: -min(A r, A clip(r, 1 - low, 1 + high)).

    `dual` (> 1): where A < 0 the loss is at most -A * dual (dual clip, arXiv:1912.09729).
    """

    low: float = 0.2
    high: float = 0.2
    dual: float | None = None

    def __post_init__(self) -> None:
        _require("Clip.low", self.low, lambda x: 0.0 <= x <= 1.0, "in [0, 1]")
        _require("Clip.high", self.high, lambda x: x >= 0.0, ">= 0")
        if self.dual is not None:
            _require("Clip.dual", self.dual, lambda x: x > 1.0, "None or > 1")


@dataclass(frozen=True)
class Unclipped:
    """The importance-weighted policy gradient without a clip: -A r."""


@dataclass(frozen=True)
class ClipCov:
    """Clip-Cov (arXiv:2505.22617): k random tokens with low < cov < high lose their policy term.

    k = max(int(fraction * valid tokens), 1); cov = (A - mean A) * (logp - mean logp), means over
    the scope. Tokens that the ratio clips already are not candidates. `scope`: "batch" selects over
    the whole optimizer batch on all ranks; "micro" within one call, as verl does, so that the
    result depends on how the batch is cut.
    """

    fraction: float = 2e-4
    low: float = 1.0
    high: float = 5.0
    scope: Scope = "batch"

    def __post_init__(self) -> None:
        _check_selection(self)
        _require("ClipCov.high", self.high, lambda _: True, "finite")
        _require("ClipCov.low", self.low, lambda x: x < self.high, f"below high = {self.high}")


@dataclass(frozen=True)
class KLCov:
    """KL-Cov (arXiv:2505.22617): the k tokens of largest cov pay coefficient * |logp - old_logp|.

    k and cov as for ClipCov. |d| has slope 0 at d = 0: nothing happens on the first, on-policy
    update after a rollout.
    """

    fraction: float = 2e-3
    coefficient: float = 1.0
    scope: Scope = "batch"

    def __post_init__(self) -> None:
        _check_selection(self)
        _require("KLCov.coefficient", self.coefficient, lambda x: x >= 0.0, ">= 0")


@dataclass(frozen=True)
class TopEntropy:
    """Only the k tokens of largest entropy keep their policy term (arXiv:2506.01939).

    The normaliser does not change.
    """

    fraction: float = 0.2
    scope: Scope = "batch"

    def __post_init__(self) -> None:
        _check_selection(self)


@dataclass(frozen=True)
class KL:
    """coefficient * estimate of KL(policy || reference); x = logp - ref_logp.

    k1: x; k2: x^2 / 2; k3: exp(-x) - 1 + x (http://joschu.net/blog/kl-approx.html). Nothing is
    clamped.
    """

    estimator: KLEstimator = "k3"
    coefficient: float = 1e-3

    def __post_init__(self) -> None:
        _choice("KL.estimator", self.estimator, get_args(KLEstimator))
        _require("KL.coefficient", self.coefficient, lambda x: x >= 0.0, ">= 0")


@dataclass(frozen=True)
class EntropyBonus:
    """- coefficient * entropy, aggregated like the loss, with the exact entropy gradient."""

    coefficient: float

    def __post_init__(self) -> None:
        _require("EntropyBonus.coefficient", self.coefficient, lambda _: True, "finite")


Control = ClipCov | KLCov | TopEntropy


@dataclass(frozen=True)
class PolicyLossSpec:
    """One policy loss; `replace(presets["dapo"], entropy=EntropyBonus(0.01))` adapts one.

    `aggregation`, over the whole optimizer batch on all ranks (B: its sequences with at least one
    valid token):

        token-mean               sum of valid tokens / their number
        token-sum                sum of valid tokens
        seq-mean-token-sum       sum / B
        seq-mean-token-mean      mean over sequences of each one's token mean
        seq-mean-token-sum-norm  sum / (B * max_length)

    `control` changes the policy term only, never the KL or entropy terms. `max_length`: the
    generation limit in tokens, for the last aggregation; without it the width T of a padded call
    that is the whole batch.
    """

    ratio: Ratio = "token"
    surrogate: Clip | Unclipped = Clip()
    control: Control | None = None
    kl: KL | None = None
    entropy: EntropyBonus | None = None
    correction: None = None
    aggregation: Aggregation = "token-mean"
    max_length: int | None = None

    def __post_init__(self) -> None:
        _choice("ratio", self.ratio, get_args(Ratio))
        _choice("aggregation", self.aggregation, get_args(Aggregation))
        _instance("surrogate", self.surrogate, (Clip, Unclipped))
        _instance("control", self.control, (ClipCov, KLCov, TopEntropy, type(None)))
        _instance("kl", self.kl, (KL, type(None)))
        _instance("entropy", self.entropy, (EntropyBonus, type(None)))
        if self.ratio != "token":
            raise NotImplementedError(f"ratio={self.ratio!r}: only ratio='token' is built yet")
        if self.correction is not None:
            raise NotImplementedError(
                f"correction={self.correction!r}: only correction=None is built yet"
            )
        if self.max_length is not None:
            if self.aggregation != "seq-mean-token-sum-norm":
                raise ValueError(
                    f"max_length={self.max_length} makes no sense with "
                    f"aggregation={self.aggregation!r}; only 'seq-mean-token-sum-norm' uses it"
                )
            if not isinstance(self.max_length, int) or isinstance(self.max_length, bool):
                raise TypeError(f"max_length must be an int, got {self.max_length!r}")
            _require("max_length", self.max_length, lambda x: x >= 1, ">= 1")
        if (
            isinstance(self.control, KLCov)
            and isinstance(self.surrogate, Clip)
            and self.surrogate.dual
        ):
            raise ValueError(
                f"control={self.control} makes no sense with surrogate={self.surrogate}: the dual "
                "clip cuts the gradient that the penalty is to counter; use Unclipped()"
            )

    @property
    def per_sequence(self) -> bool:
        """Whether the weights of tokens depend on the sequences they belong to."""
        return self.aggregation.startswith("seq-")

    @property
    def selects(self) -> bool:
        """Whether tokens are selected over the whole optimizer batch."""
        return self.control is not None and self.control.scope == "batch"
