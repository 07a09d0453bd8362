"""Controls that change the advantage of each token by its log-prob or its entropy, as data."""

from __future__ import annotations

from dataclasses import dataclass

from logitless.inputs.checks import finite, plain_fields, positive, require
from logitless.loss.spec.controls import (
    ClipB,
    ClipCov,
    ClipV,
    Control,
    CustomControl,
    Entropic,
    EntropyRatioClip,
    EntropyWeights,
    KLCov,
    OffPolicyMask,
    SignWeights,
    Steer,
    TopEntropy,
)


class AdvantageControl(Control):
    """Base of the controls after which the whole policy term, its clip and the metrics included,
    sees another advantage. No gradient flows through the change."""


@dataclass(frozen=True)
class EntropyAdvantage(AdvantageControl):
    """A bonus for tokens of high entropy, within the advantage's own size (arXiv:2506.14758).

        A = A + torch.minimum(alpha * entropy.detach(), A.abs() / kappa)

    With kappa >= 1 no advantage changes its sign, and one that is 0 stays 0.
    """

    alpha: float = 0.4
    kappa: float = 1.0

    def __post_init__(self) -> None:
        plain_fields(self)
        positive("EntropyAdvantage.alpha", self.alpha)
        require("EntropyAdvantage.kappa", self.kappa, lambda x: x >= 1.0, ">= 1")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropy"})


@dataclass(frozen=True)
class RepoR(AdvantageControl):
    """REPO-R (arXiv:2603.11682): rare tokens count more where A > 0, less where A < 0.

        A = torch.where(A > 0, (A * (1 - zeta * logp.detach())).clamp(min=0),
                        (A * (1 + zeta * logp.detach())).clamp(max=0))

    A zeta > 0 raises the entropy, one < 0 lowers it. The authors let it follow the entropy
    (`RepoController`); it is data of the call, as the coefficient of EntropyBonus is.
    """

    moves = "zeta"
    zeta: float = 1e-3

    def __post_init__(self) -> None:
        plain_fields(self)
        finite("RepoR.zeta", self.zeta)


@dataclass(frozen=True)
class RepoD(AdvantageControl):
    """REPO-D (arXiv:2603.11682): the advantage less what makes the entropy fall.

        A = A - beta * (logp.detach() + entropy.detach())

    -entropy is the exact mean of logp over the vocabulary, so that the change is centred at each
    token. A beta > 0 raises the entropy. It may turn the sign of an advantage, and tokens with an
    advantage of 0 get one. beta is data of the call, as the coefficient of EntropyBonus is, and may
    come from a `RepoController`.
    """

    moves = "beta"
    beta: float = 1e-3

    def __post_init__(self) -> None:
        plain_fields(self)
        finite("RepoD.beta", self.beta)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropy"})


AnyControl = (
    ClipCov
    | KLCov
    | TopEntropy
    | ClipB
    | ClipV
    | SignWeights
    | EntropyRatioClip
    | EntropyWeights
    | OffPolicyMask
    | Steer
    | Entropic
    | EntropyAdvantage
    | RepoR
    | RepoD
    | CustomControl
)
