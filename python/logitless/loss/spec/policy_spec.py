"""The axes of a policy loss: a frozen dataclass; a paper is one choice on each axis.

loss_t = w_t * surrogate(r_t, A_t)               w_t by `correction`; changed by `control`
         + kl.coefficient * KL(logp, ref_logp) - entropy.coefficient * H
loss   = sum_t weight_t * loss_t                 weight_t by `aggregation`
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from typing import Any, Literal, NamedTuple, get_args

from logitless.inputs.checks import choice, instance, nonsense, plain_fields, whole
from logitless.loss.spec.advantage_controls import AnyControl, RepoD, RepoR
from logitless.loss.spec.batch_clips import Bapo, BatchClip
from logitless.loss.spec.controls import (
    ClipCov,
    Control,
    CustomControl,
    Entropic,
    EntropyWeights,
    KLCov,
    OffPolicyMask,
    Steer,
    TopEntropy,
)
from logitless.loss.spec.corrections import Correction
from logitless.loss.spec.surrogates import (
    BoundedClip,
    Clip,
    CustomSurrogate,
    Gmpo,
    NoPolicy,
    Surrogate,
    Vespo,
)
from logitless.loss.spec.terms import KL, Aggregation, AnyEntropy, EntropyBonus, Siren

Ratio = Literal["token", "sequence", "sequence_sum", "sequence_token", "inference", "none"]


class Coefficients(NamedTuple):
    """The numbers of a loss that may move from step to step: data of a call, as grad_scale is."""

    # of the entropy term, the KL term and the control (KL-Cov's penalty, REPO's factor, EntroPIC's
    # push); 0 where there is none
    entropy: float = 0.0
    kl: float = 0.0
    penalty: float = 0.0


def coefficients_of(spec: PolicyLossSpec) -> Coefficients:
    return Coefficients(*(0.0 if part is None else getattr(part, part.moves)
                          for part in _moving_parts(spec)))  # fmt: skip


def _moving_parts(spec: PolicyLossSpec) -> tuple[Any, Any, Any]:
    moving = isinstance(spec.control, (KLCov, RepoR, RepoD, Entropic))
    return spec.entropy, spec.kl, spec.control if moving else None


@dataclass(frozen=True)
class PolicyLossSpec:
    """One policy loss; `replace(presets["dapo"], entropy=EntropyBonus(0.01))` adapts one.

    `ratio`, whose r the surrogate sees (d = logp - old_logp):

        token           exp(d) of the token
        sequence        exp(mean of d over its sequence), gradient through the mean
        sequence_sum    exp(sum of d over its sequence), gradient through the sum
        sequence_token  exp(mean of d): the value of "sequence", the gradient of the token's own d
        inference       exp(logp - rollout_logp) of the token: no old policy in between
        none            no ratio: the score function, or r = 1

    `aggregation`, over the whole optimizer batch on all ranks (B: its sequences with at least one
    valid token):

        token-mean               sum of valid tokens / their number
        token-sum                sum of valid tokens
        seq-mean-token-sum       sum / B
        seq-mean-token-mean      mean over sequences of each one's token mean
        seq-mean-token-sum-norm  sum / (B * max_length)

    `control` and `correction` change the policy term only, never the KL or entropy terms.
    The KL and entropy terms may have an aggregation of their own, in which "token-mean" divides by
    all valid tokens whatever the control's normaliser.
    `max_length`: the generation limit in tokens, for the last aggregation; without it the width T
    of a padded call that is the whole batch.
    """

    ratio: Ratio = "token"
    surrogate: Surrogate = Clip()  # noqa: RUF009 - it is frozen
    control: AnyControl | None = None
    kl: KL | None = None
    entropy: AnyEntropy | None = None
    correction: Correction | None = None
    aggregation: Aggregation = "token-mean"
    max_length: int | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        choice("ratio", self.ratio, get_args(Ratio))
        choice("aggregation", self.aggregation, get_args(Aggregation))
        instance("surrogate", self.surrogate, (Surrogate,))
        instance("control", self.control, (Control, type(None)))
        instance("kl", self.kl, (KL, type(None)))
        instance("entropy", self.entropy, (*get_args(AnyEntropy), type(None)))
        instance("correction", self.correction, (Correction, type(None)))
        self._check_max_length()
        self._check_ratio()
        self._check_control()

    def _check_max_length(self) -> None:
        if self.max_length is None:
            return
        if "seq-mean-token-sum-norm" not in self.aggregations:
            raise self._nonsense(
                "max_length",
                "aggregation",
                "only 'seq-mean-token-sum-norm' uses it",
            )
        whole("max_length", self.max_length, least=1)

    def _check_ratio(self) -> None:
        if self.ratio == "none" and self.surrogate.uses_ratio:
            raise self._nonsense(
                "ratio", "surrogate", "it is a function of the ratio; use Reinforce()"
            )
        if self.ratio != "none" and not self.surrogate.uses_ratio:
            raise self._nonsense("ratio", "surrogate", "it has no ratio; use ratio='none'")
        if isinstance(self.surrogate, Gmpo) and self.ratio != "sequence":
            raise self._nonsense("ratio", "surrogate", "a geometric mean needs ratio='sequence'")
        if isinstance(self.surrogate, Vespo) and self.ratio != "sequence_sum":
            raise self._nonsense(
                "ratio", "surrogate", "it weighs whole sequences: ratio='sequence_sum'"
            )
        if self.surrogate.token_only and self.sequence_ratio:
            raise self._nonsense("ratio", "surrogate", "it is a function of one token's ratio")
        if isinstance(self.surrogate, CustomSurrogate) and self.ratio in (
            "sequence",
            "sequence_sum",
        ):
            raise self._nonsense(
                "ratio", "surrogate", "its slope is per token: use 'sequence_token'"
            )
        if self.correction is None:
            return
        if self.ratio == "inference":
            raise self._nonsense(
                "ratio", "correction", "the ratio already is against the rollout's policy"
            )
        if isinstance(self.surrogate, Vespo) and self.correction.level is not None:
            raise self._nonsense(
                "surrogate",
                "correction",
                "its own weight is of the sequence; pass rollout_logp as old",
            )

    def _check_control(self) -> None:
        if isinstance(self.surrogate, NoPolicy):
            for part in ("control", "correction"):
                if getattr(self, part) is not None:
                    why = "there is no policy term to change"
                    raise self._nonsense(part, "surrogate", why)
            if self.entropy is None and self.kl is None:
                raise self._nonsense("surrogate", "entropy", "the loss would be 0")
        if (
            isinstance(self.control, KLCov)
            and isinstance(self.surrogate, (Clip, BoundedClip, Bapo))
            and self.surrogate.dual
        ):
            raise self._nonsense(
                "control",
                "surrogate",
                "the dual clip cuts the gradient that the penalty is to counter; use Unclipped()",
            )
        if (
            isinstance(self.control, KLCov)
            and self.ratio in ("sequence", "sequence_sum")
            and self.surrogate.through_ratio
        ):
            raise self._nonsense(
                "control",
                "ratio",
                "the penalty is of single tokens; use 'sequence_token'",
            )
        if isinstance(self.control, Entropic) and self.aggregation != "token-mean":
            raise self._nonsense("control", "aggregation", "its own term is a mean over tokens")
        if isinstance(self.control, ClipCov) and isinstance(self.surrogate, BatchClip):
            raise self._nonsense(
                "control",
                "surrogate",
                "which tokens the ratio clips is not known where the control selects",
            )
        if (
            isinstance(self.control, TopEntropy)
            and self.control.normaliser == "selected"
            and self.aggregation != "token-mean"
        ):
            raise self._nonsense(
                "control.normaliser",
                "aggregation",
                "only a token mean divides by tokens alone",
            )

    def _nonsense(self, a: str, b: str, why: str) -> ValueError:
        """Two fields that contradict each other. Their text is not made before they do."""
        first, second = (f"{name}={attrgetter(name)(self)!r}" for name in (a, b))
        return nonsense(first, second, why)

    @cached_property
    def identity(self) -> PolicyLossSpec:
        """The loss but for its coefficients, which are 0: what is kept of it, or compiled for it,
        serves every value of a controller."""
        return self.with_coefficients(Coefficients())

    def with_coefficients(self, coefficients: Coefficients) -> PolicyLossSpec:
        changes = {
            name: replace(part, **{part.moves: value})
            for name, part, value in zip(
                ("entropy", "kl", "control"), _moving_parts(self), coefficients, strict=True
            )
            if part is not None and getattr(part, part.moves) != value
        }
        return replace(self, **changes) if changes else self

    @cached_property
    def aggregations(self) -> tuple[str, ...]:
        """Of the loss, and those that its terms have of their own."""
        terms = (self.kl, self.entropy)
        own = [x.aggregation for x in terms if x is not None and x.aggregation is not None]
        return (self.aggregation, *own)

    @cached_property
    def per_sequence(self) -> bool:
        """Whether weights or ratios of tokens depend on the sequences they belong to."""
        by_sequence = [x for x in self.aggregations if x.startswith("seq-")]
        return len(by_sequence) > 0 or self.whole_sequences

    @property
    def parts(self) -> tuple[PolicyLossSpec, ...]:
        """The loss in parts of one aggregation each: itself where there is but one, else without
        the terms that have their own, which follow."""
        return (self,) if len(self.aggregations) == 1 else self._parts

    @cached_property
    def _parts(self) -> tuple[PolicyLossSpec, ...]:
        named = {name: getattr(self, name) for name in ("kl", "entropy")}
        terms = {name: x for name, x in named.items() if x is not None}
        apart = {name: x for name, x in terms.items() if x.aggregation is not None}
        changes: list[tuple[PolicyLossSpec, Aggregation, dict[str, Any]]] = [
            (_TERM, x.aggregation, {"kl": None, "entropy": None, k: _like_the_loss(x)})
            for k, x in apart.items()
        ]
        if len(apart) < len(terms) or not isinstance(self.surrogate, NoPolicy):
            changes.insert(0, (self, self.aggregation, dict.fromkeys(apart)))
        elif isinstance(self.entropy, Siren):
            # it looks at some tokens, the metrics at all
            changes.insert(0, (_TERM, self.aggregation, {}))
        return tuple(
            replace(of, **change, aggregation=how, max_length=self._length_of(how))
            for of, how, change in changes
        )

    def _length_of(self, aggregation: str) -> int | None:
        return self.max_length if aggregation == "seq-mean-token-sum-norm" else None

    @property
    def sequence_ratio(self) -> bool:
        return self.ratio.startswith("sequence")

    @property
    def whole_sequences(self) -> bool:
        """Whether a token's coefficients depend on the other tokens of its sequence in this call.

        If not, rows can be evaluated in any chunks once the aggregation's weights are known.
        """
        return (
            self.sequence_ratio
            or isinstance(self.control, OffPolicyMask)
            or isinstance(self.entropy, Siren)
            or (self.correction is not None and self.correction.per_sequence)
        )

    @property
    def custom(self) -> bool:
        """Whether a part is the user's own, which is NumPy code."""
        return isinstance(self.surrogate, CustomSurrogate) or isinstance(
            self.control, CustomControl
        )

    @property
    def selects(self) -> bool:
        """Whether tokens are selected over the whole optimizer batch."""
        return self.control is not None and self.control.selects and self.control.scope == "batch"

    @property
    def selects_in_call(self) -> bool:
        """Whether tokens are selected within the call, so that no batch knows them."""
        return self.control is not None and self.control.selects and self.control.scope == "micro"

    @property
    def needs_means(self) -> bool:
        """Whether the loss uses a number that is of the whole optimizer batch."""
        normalised = self.correction is not None and self.correction.normalize
        credits = isinstance(self.control, EntropyWeights)
        return credits or normalised or any(x.scope == "batch" for x in self.surveying)

    @property
    def surveying(self) -> tuple[BatchClip | Steer | Entropic | Siren, ...]:
        """The parts that look at all tokens as they are now: old_logp cannot stand in for logp."""
        parts = (self.surrogate, self.control, self.entropy)
        return tuple([x for x in parts if isinstance(x, (BatchClip, Steer, Entropic, Siren))])

    @property
    def surveys_call(self) -> bool:
        """Whether one of them looks at each call alone."""
        return any(x.scope == "micro" for x in self.surveying)

    @property
    def batch_clip(self) -> BatchClip | None:
        """The clip whose bounds the batch chooses."""
        clip = self.surrogate
        return clip if isinstance(clip, BatchClip) and clip.scope == "batch" else None

    @cached_property
    def needs(self) -> frozenset[str]:
        """Per-token inputs the loss is made of, beside logp, advantages and mask.

        Of "old_logp", "ref_logp", "rollout_logp", "entropy", "old_entropy" and "entropy_change". A
        call must give them, but for old_logp: without it the call is on-policy.
        """
        names = set(self.control.needs) if self.control is not None else set()
        if self.ratio == "inference":
            names.add("rollout_logp")
        elif self.ratio != "none":
            names.add("old_logp")
        if self.kl is not None:
            names.add(f"{self.kl.against}_logp")
            by_old = self.kl.weight == "ratio" and self.ratio != "inference"
            names |= {"old_logp"} if by_old else set()
        if self.entropy is not None:
            names.add("entropy")
        if self.correction is not None:
            names |= {"old_logp", "rollout_logp"}
        return frozenset(names)


def _like_the_loss(term: KL | AnyEntropy) -> KL | AnyEntropy:
    """Without an aggregation of its own; Siren has but one."""
    return term if isinstance(term, Siren) else replace(term, aggregation=None)


# Of a term that is aggregated on its own.
_TERM = PolicyLossSpec("none", NoPolicy(), entropy=EntropyBonus(0.0))
