"""The terms beside the policy term: KL to a reference, and entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from logitless.inputs.checks import choice, finite, not_negative, plain_fields, positive, require

KLEstimator = Literal[
    "k1", "k2", "k3", "abs", "low_var", "k1+", "k2+", "k3+", "abs+", "low_var+"
]  # fmt: skip
Reference = Literal["ref", "old", "rollout"]
KLWeight = Literal["none", "ratio", "score"]
# Which tokens a part looks at: those of the whole optimizer batch on all ranks, or of each call.
Scope = Literal["batch", "micro"]
# How tokens become the loss of a batch, see `PolicyLossSpec`.
Aggregation = Literal[
    "token-mean",
    "token-sum",
    "seq-mean-token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum-norm",
]


def check_aggregation(name: str, value: str | None) -> None:
    """Of a term; None is that of the loss."""
    if value is not None:
        choice(name, value, get_args(Aggregation))


@dataclass(frozen=True)
class KL:
    """coefficient * estimate of KL(policy || reference); x = logp - reference's logp.

    k1: x; k2: x^2 / 2; k3: exp(-x) - 1 + x (http://joschu.net/blog/kl-approx.html); abs: |x|;
    low_var: k3 with -x clamped to +-20 and the value to +-10 (verl's low_var_kl), gradient 0 where
    a clamp bites. Nothing else is clamped. A "+" keeps the value and takes the gradient of k2.
    The gradient of k1 has mean 0 and that of k3 is not the gradient of the KL: a loss wants k2, a
    "+" or a weight.

    `weight`: "none"; "ratio" multiplies by exp(logp - old_logp), gradient included (TRL's bias
    correction; rollout_logp where the loss's own ratio is of "inference"); "score" by
    exp(logp - sg(logp)), which is 1 and adds the score-function gradient (NeMo RL). `against` says
    whose logp x is measured from. `aggregation`: the term's own; None is that of the loss.
    """

    # the field that is data of a call, see `Coefficients`
    moves = "coefficient"
    estimator: KLEstimator = "k3"
    coefficient: float = 1e-3
    weight: KLWeight = "none"
    against: Reference = "ref"
    aggregation: Aggregation | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        choice("KL.estimator", self.estimator, get_args(KLEstimator))
        not_negative("KL.coefficient", self.coefficient)
        choice("KL.weight", self.weight, get_args(KLWeight))
        choice("KL.against", self.against, get_args(Reference))
        check_aggregation("KL.aggregation", self.aggregation)


@dataclass(frozen=True)
class EntropyBonus:
    """- coefficient * entropy, with the exact entropy gradient; aggregated like the loss, or by an
    `aggregation` of its own (TRL's bonus is a "token-mean" under every loss).

    For a coefficient that follows the entropy, make a new spec each step from a controller:
    `replace(spec, entropy=EntropyBonus(controller.coefficient))` (`StepController`,
    `LogController`). The number is data of the call: nothing is compiled or kept for it.
    """

    moves = "coefficient"
    coefficient: float
    aggregation: Aggregation | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        finite("EntropyBonus.coefficient", self.coefficient)
        check_aggregation("EntropyBonus.aggregation", self.aggregation)


@dataclass(frozen=True)
class EntropyFloor:
    """+ strength / (2 target) * max(target - entropy, 0)^2: a bonus that adapts to each token.

    A token at entropy 0 is pushed up like by EntropyBonus(strength), one above `target` (nats)
    not at all. `aggregation` as there.
    """

    moves = "strength"
    strength: float
    target: float
    aggregation: Aggregation | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        not_negative("EntropyFloor.strength", self.strength)
        positive("EntropyFloor.target", self.target)
        check_aggregation("EntropyFloor.aggregation", self.aggregation)


@dataclass(frozen=True)
class Siren:
    """SIREN (arXiv:2509.25133): the mean entropy of each answer's least certain tokens stays where
    it was at the start.

        h = entropy.masked_fill(~mask, nan)                                     # [B, T]
        chosen = h > h.detach().nanquantile(quantile, -1, keepdim=True)
        mean = ((h * chosen).nansum(-1) / chosen.sum(-1).clamp(min=1))[mask.any(-1)].mean()
        loss += coefficient * (mean - anchor) ** 2

    `entropy` is the paper's where it is of the likeliest tokens alone: entropy_top_p=0.8 of
    `linear_policy_loss` and `linear_token_stats`, docs/sampling.md. The square is of the mean over
    the whole optimizer batch on all ranks, which `batch_stats(..., entropy=)` finds
    (`.selected_entropy`), best under the current weights: the loss is the square's tangent there,
    whose sum over micro-batches is the square. With scope="micro" each call has a square of its
    own, as the authors have it. anchor=None is the batch's own mean, as in the first step: no loss
    and no gradient. `EntropyAnchor` keeps it.
    """

    moves = "coefficient"
    aggregation: ClassVar[Aggregation] = "seq-mean-token-mean"
    coefficient: float = 0.005
    anchor: float | None = None
    quantile: float = 0.8
    scope: Scope = "batch"

    def __post_init__(self) -> None:
        plain_fields(self)
        not_negative("Siren.coefficient", self.coefficient)
        if self.anchor is not None:
            not_negative("Siren.anchor", self.anchor)
        require("Siren.quantile", self.quantile, lambda x: 0.0 <= x < 1.0, "in [0, 1)")
        choice("Siren.scope", self.scope, get_args(Scope))


AnyEntropy = EntropyBonus | EntropyFloor | Siren
