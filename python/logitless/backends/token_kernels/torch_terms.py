"""The terms of a token's loss with their slopes, of float64 tensors: csrc/core/token_loss.h says
what each is, and in which order its operations come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from logitless.backends.token_kernels.protocol import Band
from logitless.backends.token_kernels.torch_arrays import TorchArrays
from logitless.backends.token_kernels.torch_numbers import exp_of, expm1_of

where, divided = TorchArrays.where, TorchArrays.divided


@dataclass(frozen=True)
class LossParams:
    """TokenLossParams of the core; choices by name. Bounds that a batch chose are tensors without
    dimensions."""

    surrogate: str
    constants: tuple[float, ...]
    ratio_low: Any
    ratio_high: Any
    log_low: Any
    log_high: Any
    ratio_dual: float
    log_dual: float
    positive: float
    negative: float
    control: str
    penalty_estimator: str
    penalty_straight_through: bool
    kl_estimator: str
    kl_straight_through: bool
    kl_weight: str
    entropy_target: float


class PolicyTokens(NamedTuple):
    """What a surrogate may use, [N]."""

    log_ratio: Tensor
    ratio: Tensor
    advantage: Tensor
    logp: Tensor


class Term(NamedTuple):
    """A term and its derivative in logp (or in the entropy)."""

    loss: Any
    slope: Any

    def where(self, condition: Tensor, other: Term) -> Term:
        """By select: a term may be infinite."""
        return Term(*(where(condition, *pair) for pair in zip(self, other, strict=True)))


NONE = Term(0.0, 0.0)


def ratio_clipped(log_ratio: Tensor, advantage: Tensor, p: LossParams | Band) -> Tensor:
    """The ratio left the clip range on the side to which the advantage pushes."""
    return ((advantage > 0) & (log_ratio > p.log_high)) | (
        (advantage < 0) & (log_ratio < p.log_low)
    )


def dual_clipped(log_ratio: Tensor, advantage: Tensor, p: LossParams) -> Tensor:
    return (advantage < 0) & (log_ratio > p.log_dual)


# ---- surrogates


def _clip(t: PolicyTokens, p: LossParams) -> Term:
    bound = where(t.advantage > 0, p.ratio_high, p.ratio_low)
    return _bounded_term(t, p, ratio_clipped(t.log_ratio, t.advantage, p), bound)


def _bounded_term(t: PolicyTokens, p: LossParams, clipped: Tensor, bound: Tensor) -> Term:
    """-A r, or -A bound without a slope; and the dual clip."""
    loss = -t.advantage * t.ratio
    dual = dual_clipped(t.log_ratio, t.advantage, p)
    cut = where(clipped, -t.advantage * bound, -t.advantage * p.ratio_dual)
    return Term(cut, 0.0).where(clipped | dual, Term(loss, loss))


def _score(t: PolicyTokens, weight: Any) -> Term:
    slope = -t.advantage * weight
    return Term(slope * t.logp, slope)


def _cispo(t: PolicyTokens, p: LossParams) -> Term:
    return _score(t, t.ratio.clamp(min=p.constants[0]).clamp(max=p.constants[1]))


def _sapo(t: PolicyTokens, p: LossParams) -> Term:
    tau = where(t.advantage > 0, *p.constants[:2])
    e = exp_of(-tau * (t.ratio - 1).abs())
    gate = where(t.ratio > 1, 1.0, e) / (1 + e)
    bell = e / ((1 + e) * (1 + e))
    slope = where(bell > 0, -t.advantage * 4 * bell * t.ratio, 0.0)
    return Term(-t.advantage * 4 / tau * gate, slope)


def _bernoulli_kl(old_logp: Tensor, logp: Tensor) -> Tensor:
    tiny = 1e-8
    old_p, p = exp_of(old_logp), exp_of(logp)
    return old_p * (old_logp - logp) + (1 - old_p) * torch.log((1 - old_p + tiny) / (1 - p + tiny))


def _trust_mask(t: PolicyTokens, p: LossParams) -> Term:
    low, high, cap, kind = p.constants
    two_sided, up = kind in (1, 3), t.advantage > 0
    old_logp = t.logp - t.log_ratio
    move = exp_of(t.logp) - exp_of(old_logp)
    if kind >= 2:
        kept = _bernoulli_kl(old_logp, t.logp) <= where(up, high, low)
        if not two_sided:
            kept = kept | torch.where(up, move <= 0, move >= 0)
    else:
        inside_high, inside_low = move <= high, move >= -low
        kept = inside_high & inside_low if two_sided else torch.where(up, inside_high, inside_low)
    loss = -t.advantage * t.ratio
    term = _score(t, t.ratio.clamp(max=cap)) if cap > 0 else Term(loss, loss)
    return term.where(kept, NONE)


def _dro(t: PolicyTokens, p: LossParams) -> Term:
    pull = p.constants[0] * t.log_ratio
    return Term(-t.advantage * t.logp + 0.5 * pull * t.log_ratio, -t.advantage + pull)


def _vespo(t: PolicyTokens, p: LossParams) -> Term:
    down = t.advantage < 0
    k, rate = (where(down, p.constants[2 + i], p.constants[i]) for i in range(2))
    return _score(t, exp_of(rate + k * t.log_ratio - rate * t.ratio))


def _bounded(t: PolicyTokens, p: LossParams) -> Term:
    term = _clip(t, p)
    held = term.loss * where(t.advantage > 0, p.constants[1], p.constants[0])
    return Term(held, held).where(ratio_clipped(t.log_ratio, t.advantage, p), term)


def _dcpo(t: PolicyTokens, p: LossParams) -> Term:
    old_p = exp_of(t.logp - t.log_ratio).clamp(min=1e-300)
    low = 0.5 + 0.5 * (1 - divided(4 * p.constants[0], old_p)).clamp(min=0).sqrt()
    high = (0.5 + 0.5 * (1 + divided(4 * p.constants[1], old_p)).sqrt()).clamp(max=p.constants[2])
    up = t.advantage > 0
    clipped = torch.where(up, t.ratio > high, (t.advantage < 0) & (t.ratio < low))
    return _bounded_term(t, p, clipped, torch.where(up, high, low))


def _aspo(t: PolicyTokens, p: LossParams) -> Term:
    up = t.advantage > 0
    clipped = ratio_clipped(t.log_ratio, t.advantage, p)
    ratio = where(clipped, where(up, p.ratio_high, p.ratio_low), t.ratio)
    loss = -t.advantage * torch.where(up, 1 / ratio, ratio)
    capped = torch.where(up, -t.log_ratio, t.log_ratio) > p.log_dual
    return _score(t, p.ratio_dual).where(capped, Term(loss, where(clipped, 0.0, loss)))


_SURROGATES: dict[str, Callable[[PolicyTokens, LossParams], Term]] = {
    "clip": _clip,
    "reinforce": lambda t, p: _score(t, 1.0),
    "cispo": _cispo,
    "sapo": _sapo,
    "trust_mask": _trust_mask,
    "dro": _dro,
    "vespo": _vespo,
    "bounded": _bounded,
    "dcpo": _dcpo,
    "aspo": _aspo,
}


def surrogate_term(t: PolicyTokens, p: LossParams) -> Term:
    """A zero advantage is zero loss even where the ratio overflows."""
    zero = torch.zeros_like(t.advantage)
    if p.surrogate == "none":
        return Term(zero, zero)
    term = _SURROGATES[p.surrogate](t, p)
    return term if p.surrogate == "dro" else Term(zero, zero).where(t.advantage == 0, term)


# ---- the terms beside it


def kl_term(x: Tensor, d: Tensor, estimator: str, straight_through: bool, weight: str) -> Term:
    """Of x = logp - reference and d = logp - old, without its coefficient."""
    loss, slope = _plain_kl(x, estimator)
    if straight_through:
        slope = x
    if weight == "score":
        slope = slope + loss
    if weight == "ratio":
        ratio = exp_of(d)
        return Term(ratio * loss, ratio * (slope + loss))
    return Term(loss, slope)


def _plain_kl(x: Tensor, estimator: str) -> Term:
    if estimator == "none":
        return Term(torch.zeros_like(x), torch.zeros_like(x))
    if estimator == "k1":
        return Term(x, torch.ones_like(x))
    if estimator == "k2":
        return Term(0.5 * x * x, x)
    if estimator == "abs":
        return Term(x.abs(), x.sign())
    surplus = expm1_of(-x)
    term = Term(surplus + x, -surplus)
    if estimator == "k3":
        return term
    assert estimator == "low_var", estimator
    return Term(10.0, 0.0).where((x.abs() > 20) | (term.loss > 10), term)


def controlled(
    term: Term, advantage: Tensor, selected: Tensor | None, away: Tensor, penalty: float,
    p: LossParams,
) -> Term:  # fmt: skip
    """What the control makes of the policy term; `away`: as x of `kl_term`."""
    if (p.positive, p.negative) != (1, 1):
        sign = where(advantage > 0, p.positive, where(advantage < 0, p.negative, 1.0))
        term = NONE.where(sign == 0, Term(sign * term.loss, sign * term.slope))
    if p.control == "none" or (selected is None and p.control != "keep_selected"):
        return term
    if selected is None:
        return Term(torch.zeros_like(advantage), torch.zeros_like(advantage))
    if p.control == "drop_selected":
        return NONE.where(selected, term)
    if p.control == "keep_selected":
        return term.where(selected, NONE)
    assert p.control == "penalise_selected", p.control
    if penalty == 0:
        return term
    extra = kl_term(away, away, p.penalty_estimator, p.penalty_straight_through, "none")
    more = Term(term.loss + penalty * extra.loss, term.slope + penalty * extra.slope)
    return more.where(selected, term)


def entropy_term(entropy: Tensor, coefficient: Any, p: LossParams) -> Term:
    if p.entropy_target == 0:
        return Term(-coefficient * entropy, torch.zeros_like(entropy) - coefficient)
    gap = (p.entropy_target - entropy).clamp(min=0)
    slope = divided(-coefficient * gap, p.entropy_target)
    return Term(-0.5 * slope * gap, slope)
