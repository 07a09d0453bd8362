"""PPO's clip with bounds that the tokens of the whole batch choose, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from logitless.inputs.checks import choice, not_negative, plain_fields, positive, require
from logitless.loss.spec.surrogates import Dual, Surrogate
from logitless.loss.spec.terms import Scope


class BatchClip(Surrogate):
    """Base of the clips whose bounds come from the whole optimizer batch on all ranks, or with
    scope="micro" from each call, as their authors have it. The bounds are data to the gradient.

    They look at how far the policy has moved: `batch_stats` wants log-probs under the current
    weights as `logp`, and `old_logp` beside them. With old_logp alone every ratio is 1.
    """

    kind = "clip"
    through_ratio = True
    token_only = True
    scope: Scope


@dataclass(frozen=True)
class M2po(BatchClip):
    """Bounds from a budget on the second moment of harmful log ratios (M2PO, arXiv:2510.01161).

        d = logp - old_logp
        harm = (d.abs())[mask & ((A > 0) & (d > 0) | (A < 0) & (d < 0))]
        t = inf if (harm**2).mean() <= budget else max(
            (x for x in harm if harm.clamp(max=x).square().mean() <= budget), default=0)
        lowest, highest = min(exp(-t), 1 - low), max(exp(t), 1 + high)
        loss = -torch.min(A * r, A * r.clamp(lowest, highest))

    A token counts as harmful where its ratio has already moved to the side that A pushes to. Within
    the budget nothing is clipped, and the bounds are never tighter than 1 - low and 1 + high. The
    token whose log ratio is t stands on a bound, and keeps its gradient.
    """

    budget: float = 0.04
    low: float = 0.3
    high: float = 0.5
    scope: Scope = "batch"

    def __post_init__(self) -> None:
        plain_fields(self)
        positive("M2po.budget", self.budget)
        require("M2po.low", self.low, lambda x: 0.0 <= x <= 1.0, "in [0, 1]")
        not_negative("M2po.high", self.high)
        choice("M2po.scope", self.scope, get_args(Scope))


@dataclass(frozen=True)
class Bapo(Dual, BatchClip):
    """Bounds that widen upwards until positive tokens weigh enough (BAPO, arXiv:2510.18927).

        low, high = low_start, high_start
        while (A * r.clamp(max=high))[A > 0].sum() < target * (-A * r.clamp(min=low))[A < 0].sum():
            if low < low_end:
                low = min(low + low_step, low_end)
            elif high < high_end:
                high = min(high + high_step, high_end)
            else:
                break
        loss = -torch.min(A * r, A * r.clamp(low, high))

    The bounds are ratios. In the search log(r) counts as at most 20 in size. `dual`: as of `Clip`.
    """

    low_start: float = 0.6
    low_end: float = 0.8
    low_step: float = 0.05
    high_start: float = 1.2
    high_end: float = 2.0
    high_step: float = 0.05
    target: float = 1.0
    dual: float | None = 3.0
    scope: Scope = "batch"

    def __post_init__(self) -> None:
        plain_fields(self)
        require("Bapo.low_end", self.low_end, lambda x: 0.0 <= x <= 1.0, "in [0, 1]")
        require(
            "Bapo.low_start", self.low_start, lambda x: 0.0 <= x <= self.low_end, "in [0, low_end]"
        )
        require("Bapo.high_start", self.high_start, lambda x: x >= 1.0, ">= 1")
        require("Bapo.high_end", self.high_end, lambda x: x >= self.high_start, ">= high_start")
        for name in ("low_step", "high_step"):
            require(f"Bapo.{name}", getattr(self, name), lambda x: x >= 1e-3, ">= 0.001")
        not_negative("Bapo.target", self.target)
        if self.dual is not None:
            require("Bapo.dual", self.dual, lambda x: x > 1.0, "None or > 1")
        choice("Bapo.scope", self.scope, get_args(Scope))

    @property
    def path(self) -> list[tuple[float, float]]:
        """The bounds in the order in which the search tries them."""
        low, high = self.low_start, self.high_start
        steps = [(low, high)]
        while low < self.low_end:
            low = min(low + self.low_step, self.low_end)
            steps.append((low, high))
        while high < self.high_end:
            high = min(high + self.high_step, self.high_end)
            steps.append((low, high))
        return steps
