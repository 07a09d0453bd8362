"""Surrogates: the policy term of a token as a function of its ratio r and advantage A.

Each is a row of data: the fields of the formula in its docstring. The formula's value and slope
are in csrc/core/token_loss.h under the same name; `CORE` lists what the core is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy.typing as npt

from logitless.inputs.checks import choice, flag, not_negative, plain_fields, positive, require

Divergence = Literal["tv", "kl"]
Numbers = npt.NDArray[Any]


class Surrogate:
    """Base of the surrogates. One of your own is a `CustomSurrogate`."""

    # The name in the core's enum.
    kind: ClassVar[str]
    # Whether it is a function of the ratio at all.
    uses_ratio: ClassVar[bool] = True
    # Whether its slope flows through the ratio, hence to all tokens of a sequence's ratio; else the
    # ratio is a constant weight and the slope is that of the token's own logp.
    through_ratio: ClassVar[bool] = False
    # Whether the ratio has to be the token's own.
    token_only: ClassVar[bool] = False

    @property
    def constants(self) -> tuple[float, ...]:
        """Up to four constants of the formula, in the core's order."""
        return ()

    @property
    def ratio_range(self) -> tuple[float, float]:
        """The ratios beyond which the token counts as clipped, on the side A pushes to."""
        return -math.inf, math.inf

    @property
    def ratio_dual(self) -> float:
        """Where A < 0, the ratio beyond which the token counts as clipped by the dual bound."""
        return math.inf


class _Range(Surrogate):
    """A surrogate that clips at 1 - low and 1 + high."""

    low: float
    high: float

    @property
    def ratio_range(self) -> tuple[float, float]:
        return 1.0 - self.low, 1.0 + self.high


class Dual(Surrogate):
    """A surrogate that may have a bound where A < 0."""

    dual: float | None

    @property
    def ratio_dual(self) -> float:
        return math.inf if self.dual is None else self.dual


@dataclass(frozen=True)
class Clip(_Range, Dual):
    """PPO's surrogate: -min(A r, A clip(r, 1 - low, 1 + high)).

    `dual` (> 1): where A < 0 the loss is at most -A * dual (dual clip, arXiv:1912.09729; TRL and
    INTELLECT-2 call the same bound delta).
    """

    kind = "clip"
    through_ratio = True
    low: float = 0.2
    high: float = 0.2
    dual: float | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        require("Clip.low", self.low, lambda x: 0.0 <= x <= 1.0, "in [0, 1]")
        not_negative("Clip.high", self.high)
        if self.dual is not None:
            require("Clip.dual", self.dual, lambda x: x > 1.0, "None or > 1")


@dataclass(frozen=True)
class BoundedClip(_Range, Dual):
    """PPO's clip whose clipped tokens keep a bounded gradient (CE-GPPO, arXiv:2509.20712).

        bound = r.clamp(1 - low, 1 + high)
        clipped = torch.where(A > 0, r > 1 + high, r < 1 - low)
        factor = torch.where(A > 0, beta_high, beta_low)
        loss = -A * torch.where(clipped, factor * bound * r / r.detach(), r)

    The slope of a clipped token is that of a ratio at the bound, times `beta_low` where A < 0 and
    `beta_high` where A > 0. Both 1 is GPPO; both 0 cuts the gradient as `Clip` does. `dual`: as of
    `Clip`, with no gradient beyond it.
    """

    kind = "bounded"
    through_ratio = True
    low: float = 0.2
    high: float = 0.2
    beta_low: float = 0.25
    beta_high: float = 1.0
    dual: float | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        require("BoundedClip.low", self.low, lambda x: 0.0 <= x <= 1.0, "in [0, 1]")
        for name in ("high", "beta_low", "beta_high"):
            not_negative(f"BoundedClip.{name}", getattr(self, name))
        if self.dual is not None:
            require("BoundedClip.dual", self.dual, lambda x: x > 1.0, "None or > 1")
            most = self.dual / (1.0 - self.low) if self.low < 1.0 else math.inf
            require(
                "BoundedClip.beta_low",
                self.beta_low,
                lambda x: x <= most,
                f"at most dual / (1 - low) for dual = {self.dual}",
            )

    @property
    def constants(self) -> tuple[float, ...]:
        return self.beta_low, self.beta_high


@dataclass(frozen=True)
class Unclipped(Surrogate):
    """The importance-weighted policy gradient without a clip: -A r."""

    kind = "clip"
    through_ratio = True


@dataclass(frozen=True)
class Reinforce(Surrogate):
    """The score function: -A logp. It has no ratio: ratio="none"."""

    kind = "reinforce"
    uses_ratio = False


@dataclass(frozen=True)
class NoPolicy(Surrogate):
    """No policy term: what remains is the entropy or KL term."""

    kind = "none"
    uses_ratio = False


@dataclass(frozen=True)
class Cispo(_Range):
    """-sg(clip(r, 1 - low, 1 + high)) A logp: the weight is clipped, every token keeps a gradient.

    low = 1 bounds r from above alone; TRL's absolute cap c is high = c - 1 (arXiv:2506.13585).
    """

    kind = "cispo"
    low: float = 0.2
    high: float = 0.2

    def __post_init__(self) -> None:
        plain_fields(self)
        require("Cispo.low", self.low, lambda x: 0.0 <= x <= 1.0, "in [0, 1]")
        not_negative("Cispo.high", self.high)

    @property
    def constants(self) -> tuple[float, ...]:
        return 1.0 - self.low, 1.0 + self.high


@dataclass(frozen=True)
class Sapo(Surrogate):
    """-A sigmoid(tau (r - 1)) 4 / tau, tau by the sign of A: a soft gate (arXiv:2511.20347)."""

    kind = "sapo"
    through_ratio = True
    tau_positive: float = 1.0
    tau_negative: float = 1.05

    def __post_init__(self) -> None:
        plain_fields(self)
        positive("Sapo.tau_positive", self.tau_positive)
        positive("Sapo.tau_negative", self.tau_negative)

    @property
    def constants(self) -> tuple[float, ...]:
        return self.tau_positive, self.tau_negative


@dataclass(frozen=True)
class TrustMask(Surrogate):
    """Tokens whose probability moved too far in the direction of A give no gradient.

    divergence "tv" is p - p_old (for A > 0 at most `high`, else at least -low); "kl" is the
    divergence of the two Bernoulli distributions (at most high or low, unless the move is
    against A). two_sided: |.| is bounded whatever A. The kept ones: -A r, or with `cap`
    -A sg(min(r, cap)) logp (arXiv:2602.04879).
    """

    kind = "trust_mask"
    token_only = True
    divergence: Divergence = "tv"
    low: float = 0.2
    high: float = 0.2
    cap: float | None = None
    two_sided: bool = False

    def __post_init__(self) -> None:
        plain_fields(self)
        choice("TrustMask.divergence", self.divergence, get_args(Divergence))
        not_negative("TrustMask.low", self.low)
        not_negative("TrustMask.high", self.high)
        if self.cap is not None:
            positive("TrustMask.cap", self.cap)
        flag("TrustMask.two_sided", self.two_sided)

    @property
    def constants(self) -> tuple[float, ...]:
        mode = 2.0 * (self.divergence == "kl") + float(self.two_sided)
        return self.low, self.high, 0.0 if self.cap is None else self.cap, mode


@dataclass(frozen=True)
class Dcpo(Dual):
    """PPO's clip with bounds that the token's old probability widens (DCPO, arXiv:2509.02333).

        p = old_logp.exp()
        lowest = (1 + (1 - 4 * low / p).clamp(min=0).sqrt()) / 2
        highest = ((1 + (1 + 4 * high / p).sqrt()) / 2).clamp(max=most)
        loss = -torch.min(A * r, A * torch.minimum(r.clamp(min=lowest), highest))

    A rare token may grow by a larger factor than a likely one: r (r - 1) p <= high. `dual`: as of
    `Clip`. The metric actor/pg_clipfrac counts no token here, for it knows one pair of bounds.
    """

    kind = "dcpo"
    through_ratio = True
    token_only = True
    low: float = 0.2
    high: float = 0.28
    most: float = 10.0
    dual: float | None = 10.0

    def __post_init__(self) -> None:
        plain_fields(self)
        not_negative("Dcpo.low", self.low)
        not_negative("Dcpo.high", self.high)
        require("Dcpo.most", self.most, lambda x: x >= 1.0, ">= 1")
        if self.dual is not None:
            require("Dcpo.dual", self.dual, lambda x: x > 1.0, "None or > 1")

    @property
    def constants(self) -> tuple[float, ...]:
        return self.low, self.high, self.most


@dataclass(frozen=True)
class Aspo(_Range):
    """PPO's clip with the ratio turned over where A > 0 (ASPO, arXiv:2510.06062).

        up = r.clamp(max=1 + high)
        positive = -A * (up / up.detach()) / up.detach()
        positive = torch.where(1 / up > cap, -A * cap * logp, positive)
        down = r.clamp(min=1 - low)
        negative = torch.where(down > cap, -A * cap * logp, -A * down)
        loss = torch.where(A < 0, negative, positive)

    Where A > 0 a token whose probability fell is pushed more than one whose probability rose. A
    weight that `cap` bounds keeps the gradient of -A logp.
    """

    kind = "aspo"
    through_ratio = True
    token_only = True
    low: float = 0.2
    high: float = 0.2
    cap: float = 3.0

    def __post_init__(self) -> None:
        plain_fields(self)
        require("Aspo.low", self.low, lambda x: 0.0 <= x <= 1.0, "in [0, 1]")
        not_negative("Aspo.high", self.high)
        require("Aspo.cap", self.cap, lambda x: x > 1.0, "> 1")

    @property
    def ratio_dual(self) -> float:
        return self.cap


@dataclass(frozen=True)
class Dro(Surrogate):
    """-(A logp - beta / 2 * log(r)^2): an off-policy quadratic penalty (arXiv:2405.19107)."""

    kind = "dro"
    token_only = True
    beta: float = 0.1

    def __post_init__(self) -> None:
        plain_fields(self)
        positive("Dro.beta", self.beta)

    @property
    def constants(self) -> tuple[float, ...]:
        return (self.beta,)


@dataclass(frozen=True)
class Gmpo(Surrogate):
    """-mean(A) exp(mean over the sequence of the clipped log ratio): a geometric mean.

    log r is clipped to [-low, high] on the side A pushes to; a clipped token gets no gradient.
    Needs ratio="sequence" (arXiv:2507.20673).
    """

    # computed with its sequence's ratio in ratio.py
    kind = "precomputed"
    through_ratio = True
    low: float = 0.4
    high: float = 0.4

    def __post_init__(self) -> None:
        plain_fields(self)
        not_negative("Gmpo.low", self.low)
        not_negative("Gmpo.high", self.high)

    @property
    def ratio_range(self) -> tuple[float, float]:
        return math.exp(-self.low), math.exp(self.high)


@dataclass(frozen=True)
class Vespo(Surrogate):
    """-sg(W^k exp(lambda (1 - W))) A logp, W the sequence's likelihood ratio (arXiv:2602.10693).

    k and lambda by the sign of A. Needs ratio="sequence_sum".
    """

    kind = "vespo"
    k_positive: float = 2.0
    lambda_positive: float = 3.0
    k_negative: float = 3.0
    lambda_negative: float = 2.0

    def __post_init__(self) -> None:
        plain_fields(self)
        for name, value in vars(self).items():
            positive(f"Vespo.{name}", value)

    @property
    def constants(self) -> tuple[float, ...]:
        return self.k_positive, self.lambda_positive, self.k_negative, self.lambda_negative


class SurrogateInputs(NamedTuple):
    """What a custom surrogate may use: flat arrays of the valid tokens, float64."""

    # the log ratio the spec asks for, of the token or of its sequence
    log_ratio: Any
    advantages: Any
    logp: Any


class CustomSurrogate(Surrogate):
    """A surrogate of your own: a frozen dataclass with `loss`, or with `term`.

    In plain code, the library's PPO as a custom surrogate:

        @dataclass(frozen=True)
        class MyClip(CustomSurrogate):
            low: float = 0.2

            def loss(self, t):
                r = t.log_ratio.exp()
                return -torch.min(t.advantages * r, t.advantages * r.clamp(1 - self.low, 1.2))

    `loss` works on torch tensors and its slope comes from autograd, through log_ratio and through
    logp (d log_ratio / d logp is 1 for a token's ratio). `term` works on NumPy arrays and returns
    (loss, slope) of each token itself. Everything else (controls, KL, entropy, correction,
    weights, micro-batches) is the library's.
    """

    kind = "precomputed"

    def loss(self, tokens: SurrogateInputs) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must define loss or term")

    def term(self, tokens: SurrogateInputs) -> tuple[Numbers, Numbers]:
        """(value, d value / d logp) per token; by default from `loss` and autograd."""
        # a thread of its own: inside an op of torch.library autograd is off for the whole thread
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(_by_autograd, self.loss, tokens).result()


def _by_autograd(
    loss: Callable[[SurrogateInputs], Any], tokens: SurrogateInputs
) -> tuple[Numbers, Numbers]:
    import torch

    log_ratio, logp = (torch.tensor(x).requires_grad_() for x in (tokens.log_ratio, tokens.logp))
    value = loss(SurrogateInputs(log_ratio, torch.tensor(tokens.advantages), logp))
    slope = torch.zeros_like(value)
    if value.requires_grad:
        slopes = torch.autograd.grad(value.sum(), (log_ratio, logp), allow_unused=True)
        slope = sum((x for x in slopes if x is not None), slope)
    return value.detach().numpy(), slope.detach().numpy()
