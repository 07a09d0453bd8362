"""Rollout correction as data: what the mismatch between trainer and inference engine does.

q = old_logp - rollout_logp of a token, as both engines scored the tokens that were generated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from logitless.inputs.checks import (
    choice,
    flag,
    not_negative,
    plain_fields,
    positive,
    require,
    shown,
)

Level = Literal["token", "sequence", "geometric"]
Outside = Literal["truncate", "zero"]
Measure = Literal[
    "token_k1", "token_k2", "token_k3",
    "seq_sum_k1", "seq_sum_k2", "seq_sum_k3",
    "seq_mean_k1", "seq_mean_k2", "seq_mean_k3",
    "seq_max_k2", "seq_max_k3",
]  # fmt: skip


@dataclass(frozen=True)
class Reject:
    """Tokens or sequences outside the bounds lose their policy term.

    k2 = q^2 / 2 and k3 = exp(q) - 1 - q have the upper bound `high` alone. k1 is the ratio
    exp(q), of a token or, by sum or mean of q, of a sequence, and stays inside [low, high]: a ratio
    bound, read the way round it is written. (verl compares -q with the logs of the bounds, so its
    asymmetric bounds are swapped: verl#6377.)
    """

    measure: Measure = "seq_mean_k1"
    high: float = 1.002
    low: float | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        choice("Reject.measure", self.measure, get_args(Measure))
        positive("Reject.high", self.high)
        if not self.measure.endswith("k1"):
            if self.low is not None:
                raise ValueError(
                    f"Reject.low={self.low} makes no sense with Reject.measure={self.measure!r}: "
                    "k2 and k3 are never negative"
                )
        elif self.low is not None:
            not_negative("Reject.low", self.low)
            require("Reject.low", self.low, lambda x: x < self.high, f"below high = {self.high}")

    @property
    def bounds(self) -> tuple[float, float]:
        """(low, high); k1 with one number x is 1 / x to x."""
        if not self.measure.endswith("k1"):
            return 0.0, self.high
        return (1.0 / self.high if self.low is None else self.low), self.high


@dataclass(frozen=True)
class Correction:
    """The policy term times w, w = exp(q) cut to [low, high]; and who is rejected altogether.

    level: q of the token, summed over its sequence, or averaged over it ("geometric"); None: w = 1
    and only the rejection acts. outside: "truncate" clamps w (TIS), "zero" drops what lies outside
    (IcePop, MIS). `veto`: a sequence with any token of ratio exp(q) below it is rejected.
    `normalize`: w is divided by its mean over the valid tokens of the whole batch. w is data: no
    gradient flows through it. The normaliser does not change: rejected tokens count in it. To leave
    them out as well, pass `mask & keep` from `rollout_weights` to batch_stats and policy_loss.
    """

    level: Level | None = "token"
    low: float = 0.0
    high: float = 2.0
    outside: Outside = "truncate"
    reject: tuple[Reject, ...] = ()
    veto: float | None = None
    normalize: bool = False

    def __post_init__(self) -> None:
        plain_fields(self)
        if self.level is not None:
            choice("Correction.level", self.level, get_args(Level))
        not_negative("Correction.low", self.low)
        require("Correction.high", self.high, lambda x: x > self.low, f"above low = {self.low}")
        choice("Correction.outside", self.outside, get_args(Outside))
        rules = (self.reject,) if isinstance(self.reject, Reject) else self.reject
        if not isinstance(rules, (tuple, list)) or not all(isinstance(r, Reject) for r in rules):
            raise TypeError(f"Correction.reject must hold Reject rules, got {shown(self.reject)}")
        object.__setattr__(self, "reject", tuple(rules))
        if self.veto is not None:
            positive("Correction.veto", self.veto)
        flag("Correction.normalize", self.normalize)
        if self.level is None and not self.reject and self.veto is None:
            raise ValueError(
                "Correction.level=None makes no sense with Correction.reject=() and "
                "Correction.veto=None: nothing is corrected"
            )
        if self.normalize and self.level is None:
            raise ValueError(
                "Correction.normalize=True makes no sense with Correction.level=None: "
                "there are no weights"
            )

    @property
    def per_sequence(self) -> bool:
        """Whether it looks at whole sequences."""
        rules = any(rule.measure.startswith("seq") for rule in self.reject)
        return self.level in ("sequence", "geometric") or rules or self.veto is not None


# Names for the combinations in use; a spec takes one as `correction=corrections["tis"]`.
corrections: dict[str, Correction] = {
    "tis": Correction("token", high=2.0),
    "seq_tis": Correction("sequence", high=2.0),
    "icepop": Correction("token", low=0.5, high=5.0, outside="zero"),
    "mis": Correction("sequence", high=3.0, outside="zero"),
    "geometric": Correction("geometric", high=2.0),
    "geo_mask": Correction(None, reject=(Reject("seq_mean_k1", 1.001, 0.999),)),
    "geo_mask_tis": Correction("token", high=2.0, reject=(Reject("seq_mean_k1", 1.001, 0.999),)),
    "seq_tis_mask": Correction("sequence", high=2.0, reject=(Reject("seq_sum_k1", 2.0, 0.5),)),
    "veto": Correction("token", high=2.0, veto=1e-4),
}
