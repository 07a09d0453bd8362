"""Controls: what changes the policy term of some tokens, for the sake of entropy or of trust."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from logitless.inputs.checks import (
    choice,
    finite,
    flag,
    not_negative,
    plain_fields,
    positive,
    require,
)
from logitless.loss.spec.terms import KLEstimator, Reference, Scope

Normaliser = Literal["all", "selected"]


class Control:
    """Base of the controls. One of your own is a `CustomControl`."""

    # What being selected does, in the core's words.
    action: ClassVar[str] = "none"
    scope: Scope = "batch"

    @property
    def selects(self) -> bool:
        """Whether it acts on tokens selected over the batch or the call."""
        return self.action != "none"

    @property
    def needs(self) -> frozenset[str]:
        """Per-token inputs beside logp, old_logp and advantages."""
        return frozenset()


def _check_selection(control: ClipCov | KLCov | TopEntropy) -> None:
    name = type(control).__name__
    require(f"{name}.fraction", control.fraction, lambda x: 0.0 < x <= 1.0, "in (0, 1]")
    choice(f"{name}.scope", control.scope, get_args(Scope))


@dataclass(frozen=True)
class ClipCov(Control):
    """Clip-Cov (arXiv:2505.22617): k random tokens with low < cov < high lose their policy term.

    k = max(int(fraction * valid tokens), 1); cov = (A - mean A) * (logp - mean logp), means over
    the scope. Tokens that the ratio clips already are not candidates. `scope`: "batch" selects over
    the whole optimizer batch on all ranks; "micro" within one call, as verl does, so that the
    result depends on how the batch is cut.
    """

    action = "drop_selected"
    fraction: float = 2e-4
    low: float = 1.0
    high: float = 5.0
    scope: Scope = "batch"

    def __post_init__(self) -> None:
        plain_fields(self)
        _check_selection(self)
        finite("ClipCov.high", self.high)
        require("ClipCov.low", self.low, lambda x: x < self.high, f"below high = {self.high}")


@dataclass(frozen=True)
class KLCov(Control):
    """KL-Cov (arXiv:2505.22617): the k tokens of largest cov pay a penalty for leaving a policy.

    The penalty is coefficient * estimator(logp - reference); the paper's is |logp - old_logp|. k
    and cov as for ClipCov. |d| has slope 0 at d = 0: against="old" does nothing on the first,
    on-policy update after a rollout, however large the covariance. What acts there is a policy
    that differs: against="ref" (a frozen or lagging one), or an older one passed as ref_logp.
    """

    action = "penalise_selected"
    moves = "coefficient"
    fraction: float = 2e-3
    coefficient: float = 1.0
    scope: Scope = "batch"
    estimator: KLEstimator = "abs"
    against: Reference = "old"

    def __post_init__(self) -> None:
        plain_fields(self)
        _check_selection(self)
        not_negative("KLCov.coefficient", self.coefficient)
        choice("KLCov.estimator", self.estimator, get_args(KLEstimator))
        choice("KLCov.against", self.against, get_args(Reference))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({f"{self.against}_logp"})


@dataclass(frozen=True)
class TopEntropy(Control):
    """Only the k tokens of largest entropy keep their policy term (arXiv:2506.01939).

    `normaliser`: "all" divides by all valid tokens, which shrinks the step by `fraction` or so;
    "selected" (token-mean only) by the k selected ones.
    """

    action = "keep_selected"
    fraction: float = 0.2
    scope: Scope = "batch"
    normaliser: Normaliser = "all"

    def __post_init__(self) -> None:
        plain_fields(self)
        _check_selection(self)
        choice("TopEntropy.normaliser", self.normaliser, get_args(Normaliser))
        if self.normaliser == "selected" and self.scope == "micro":
            raise ValueError(
                "TopEntropy.normaliser='selected' makes no sense with TopEntropy.scope='micro': "
                "the number selected in each micro-batch would be a local normaliser"
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropy"})


@dataclass(frozen=True)
class ClipB(Control):
    """Clip_B (arXiv:2602.03392): tokens with A < 0 and unusually low S lose their policy term.

    S = p (entropy + logp); dropped are those with S - mean S < -mu * sd S, mean and population
    standard deviation over the valid tokens of the whole batch.
    """

    action = "drop_selected"
    mu: float = 2.5

    def __post_init__(self) -> None:
        plain_fields(self)
        not_negative("ClipB.mu", self.mu)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropy"})


@dataclass(frozen=True)
class ClipV(Control):
    """Clip_V (arXiv:2602.03392): tokens with A < 0 and D > mu * sd D lose their policy term.

    D is the token's `entropy_change` (an extra of the statistics ops): E_v[S_v] - S. At most
    max(int(max_fraction * valid tokens), 1) tokens are dropped, those of largest D; sd is the
    population standard deviation over the whole batch.
    """

    action = "drop_selected"
    mu: float = 8.5
    max_fraction: float = 1e-4

    def __post_init__(self) -> None:
        plain_fields(self)
        not_negative("ClipV.mu", self.mu)
        require("ClipV.max_fraction", self.max_fraction, lambda x: 0.0 < x <= 1.0, "in (0, 1]")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropy_change"})


@dataclass(frozen=True)
class SignWeights(Control):
    """The policy term times `positive` where A > 0, `negative` where A < 0 (arXiv:2506.01347)."""

    positive: float = 1.0
    negative: float = 1.0

    def __post_init__(self) -> None:
        plain_fields(self)
        not_negative("SignWeights.positive", self.positive)
        not_negative("SignWeights.negative", self.negative)


@dataclass(frozen=True)
class EntropyWeights(Control):
    """The policy term times 1 - strength + strength * share: credit by entropy (arXiv:2508.04349).

    share = H / mean H where A > 0, (1 / H) / mean (1 / H) where A < 0: a right answer is credited
    where the policy hesitated, a wrong one blamed where it was sure. Each mean is over the valid
    tokens of that sign in the whole batch, so that a share averages 1; the paper's is over the
    answers of one group at one position. An entropy below `floor` (nats) counts as `floor` in
    1 / H, else the surest token would take all the blame. The entropy is data here: no gradient
    flows through the weight.
    """

    strength: float = 0.1
    floor: float = 0.01

    def __post_init__(self) -> None:
        plain_fields(self)
        require("EntropyWeights.strength", self.strength, lambda x: 0.0 <= x <= 1.0, "in [0, 1]")
        require("EntropyWeights.floor", self.floor, lambda x: x >= 1e-6, ">= 1e-6")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropy"})


@dataclass(frozen=True)
class EntropyRatioClip(Control):
    """ERC (arXiv:2512.05591): tokens whose entropy has moved too far lose their policy term.

        ratio = (entropy.detach() + 1e-8) / (old_entropy + 1e-8)
        loss = torch.where((low < ratio) & (ratio < high), loss, 0)

    `old_entropy` is the old policy's entropy at the same token, an argument of the losses. The
    authors detach the term of the other tokens: the same gradient, and a loss of other value.
    """

    low: float = 0.95
    high: float = 1.05

    def __post_init__(self) -> None:
        plain_fields(self)
        require("EntropyRatioClip.low", self.low, lambda x: 0.0 <= x < 1.0, "in [0, 1)")
        require("EntropyRatioClip.high", self.high, lambda x: x > 1.0, "> 1")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropy", "old_entropy"})


@dataclass(frozen=True)
class Steer(Control):
    """STEER (arXiv:2510.10150): less weight where a step would change the entropy much.

        p, old_p = logp.exp().clamp(1e-8, 1 - 1e-8), old_logp.exp().clamp(1e-8, 1)
        x = (A / old_p * p * (1 - p) * (p.log() + entropy)).abs().detach()
        loss *= high * (low / high) ** (x / x[mask].max().clamp(min=floor))
        loss *= high - (high - low) * (x - x[mask].min()) / (x[mask].max() - x[mask].min())

    The last line is that of linear=True, (low + high) / 2 where all x are equal. The weights stay
    in [low, high]. The range of x is that of the whole optimizer batch on all ranks; with
    scope="micro" that of each call, as the authors have it. Where the policy has moved,
    `batch_stats` wants logp and entropy under the current weights, and old_logp beside them.
    """

    low: float = 0.8
    high: float = 1.0
    linear: bool = False
    floor: float = 0.02
    scope: Scope = "batch"

    def __post_init__(self) -> None:
        plain_fields(self)
        positive("Steer.low", self.low)
        require("Steer.high", self.high, lambda x: x >= self.low, f">= low = {self.low}")
        flag("Steer.linear", self.linear)
        positive("Steer.floor", self.floor)
        choice("Steer.scope", self.scope, get_args(Scope))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropy", "old_logp"})


@dataclass(frozen=True)
class Entropic(Control):
    """EntroPIC (arXiv:2511.15248): likely tokens are pushed up or down, to hold the entropy.

        likely = logp.detach() > math.log(threshold)
        loss = loss[mask].mean() - coefficient * (A.abs() * ratio)[mask & likely].mean()

    A coefficient > 0 lowers the entropy, one < 0 raises it. It follows the entropy
    (`PIController`) and is data of the call, as that of EntropyBonus is. `ratio` is that of the
    token itself, unclipped, whatever the ratio of the loss is; a loss without a ratio has logp in
    its place. What multiplies the policy term (a correction, `weights`) multiplies this term too.

    The likely tokens are counted over the whole optimizer batch on all ranks: where the policy has
    moved, `batch_stats` wants logp under the current weights. With scope="micro" each call has a
    mean of its own, as the authors have it.
    """

    moves = "coefficient"
    coefficient: float = 0.0
    threshold: float = 0.95
    scope: Scope = "batch"

    def __post_init__(self) -> None:
        plain_fields(self)
        finite("Entropic.coefficient", self.coefficient)
        require("Entropic.threshold", self.threshold, lambda x: 0.0 < x < 1.0, "in (0, 1)")
        choice("Entropic.scope", self.scope, get_args(Scope))


@dataclass(frozen=True)
class OffPolicyMask(Control):
    """A sequence with A < 0 loses its policy term when mean(reference - logp) > delta.

    DeepSeek-V3.2's off-policy sequence mask (arXiv:2512.02556): `against` is the policy that made
    the sequence, "old" or "rollout".
    """

    delta: float = 0.1
    against: Reference = "old"

    def __post_init__(self) -> None:
        plain_fields(self)
        not_negative("OffPolicyMask.delta", self.delta)
        choice("OffPolicyMask.against", self.against, get_args(Reference))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({f"{self.against}_logp"})


class CustomControl(Control):
    """A control of your own: a frozen dataclass with `factor`.

        @dataclass(frozen=True)
        class FirstHalf(CustomControl):
            def factor(self, tokens):
                return (tokens.ids % 2 == 0) * 1.0

    `factor` returns a number >= 0 per token [N], finite where `tokens.mask`, that multiplies its
    policy term and is constant to the gradient. `tokens` is `logitless.inputs.tokens.Tokens`: what
    lies outside its mask may be anything. It may use nothing beyond the token itself, or
    micro-batches change the result.
    """

    def factor(self, tokens: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must define factor")
