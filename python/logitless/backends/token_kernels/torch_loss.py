"""The loss of each token with its derivatives in closed form, and its sums, in torch's operations:
csrc/cuda/tokens/loss.cuh has the same as a kernel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from logitless.backends.token_kernels.protocol import SUMS, LossTerms, LossValues
from logitless.backends.token_kernels.torch_numbers import covariance, exp_of
from logitless.backends.token_kernels.torch_terms import (
    NONE,
    LossParams,
    PolicyTokens,
    Term,
    controlled,
    dual_clipped,
    entropy_term,
    kl_term,
    ratio_clipped,
    surrogate_term,
    where,
)
from logitless.inputs.tokens import Tokens

# Of SUMS, those that are added up: the others name a token to the host.
ADDED = SUMS.index("tokens") + 1
# What float32 rounds to infinity, and all above it.
OVERFLOW = float.fromhex("0x1.ffffffp127")


def token_loss(
    tokens: Tokens, params: LossParams, terms: LossTerms, *, entropy: bool, policy: bool
) -> tuple[LossValues, Tensor]:
    """And which tokens have a value, or a result, that is not finite."""
    t, p, dtype = terms, _bounded(params, terms, tokens.logp), tokens.logp.dtype
    # a share of 0 is that of no token
    each: Any = t.weights if isinstance(t.weights, Tensor) and t.weights.ndim > 0 else None
    valid: Tensor = tokens.mask if each is None else each != 0
    logp, advantage = tokens.logp.double(), tokens.advantages.double()
    zero = torch.zeros_like(logp)
    own = zero if t.old_logp is None else logp - t.old_logp
    u = own if t.log_ratio is None else t.log_ratio
    x = zero if t.kl_logp is None else logp - t.kl_logp
    h = zero if tokens.entropy is None else tokens.entropy.double()
    away = zero
    if p.control == "penalise_selected" and t.selected is not None:
        away = torch.where(t.selected, logp - t.penalty_logp, 0.0)

    given = p.surrogate == "precomputed"
    term = Term(t.precomputed_loss, t.precomputed_slope)
    if not given:
        term = surrogate_term(PolicyTokens(u, exp_of(u), advantage, logp), p)
    term = controlled(term, advantage, t.selected, away, t.penalty_coefficient, p)
    if t.factor is not None:
        term = NONE.where(t.factor == 0, Term(t.factor * term.loss, t.factor * term.slope))
    kl = kl_term(x, own, p.kl_estimator, p.kl_straight_through, p.kl_weight)
    bonus = entropy_term(h, t.entropy_coefficient, p)

    scaled = t.grad_scale * t.weights
    slope = scaled * term.slope
    kl_slope = _times(scaled, t.kl_coefficient, kl.slope)
    rest = scaled * (_times(1.0, t.kl_coefficient, kl.loss) + bonus.loss)
    g_logp = kl_slope if policy else slope + kl_slope
    g_entropy = scaled * bonus.slope
    loss = scaled * term.loss + rest

    read = [logp, advantage, own, u, h, x, away, *([] if t.factor is None else [t.factor])]
    good = torch.stack(read).isfinite().all(0)
    limit = OVERFLOW if dtype == torch.float32 else float("inf")
    held = (torch.stack([g_logp, g_entropy, loss]).abs() < limit).all(0)
    none = where(good, 0.0, float("nan"))
    seen = own if given else u
    sums = _sums(
        valid,
        loss + none,
        t.weights * term.loss,
        t.weights * kl.loss,
        ratio_clipped(seen, advantage, p).double(),
        dual_clipped(seen, advantage, p).double(),
        zero if t.selected is None else t.selected.double(),
        -own,
        h,
        covariance(advantage, logp, (t.mean_advantage, t.mean_logp)),
        valid.double(),
    )

    def written(g: Tensor, of: torch.dtype) -> Tensor:
        return torch.where(valid, g + none, 0.0).to(of)

    values = LossValues(
        sums,
        written(g_logp, dtype),
        written(g_entropy, dtype) if entropy else None,
        written(slope, torch.float64) if policy else None,
    )
    return values, valid & ~(good & held & slope.isfinite())


def _bounded(p: LossParams, t: LossTerms, like: Tensor) -> LossParams:
    """With the clip bounds that the batch chose."""
    chosen: dict[str, Any] = {}
    for side, bound in (("low", t.log_low), ("high", t.log_high)):
        if bound is not None:
            log = like.new_zeros((), dtype=torch.float64) + bound
            chosen |= {f"log_{side}": log, f"ratio_{side}": exp_of(log)}
    return replace(p, **chosen) if chosen else p


def _times(scale: Any, coefficient: float, x: Tensor) -> Tensor:
    """scale * coefficient * x, and 0 where that is 0 times what may be infinite."""
    by = scale * coefficient
    if isinstance(by, float):
        return torch.zeros_like(x) if by == 0 else by * x
    return torch.where(by == 0, 0.0, by * x)


def _sums(valid: Tensor, *rows: Tensor) -> Tensor:
    """Of the rows over the valid tokens; no token is named."""
    assert len(rows) == ADDED
    sums = rows[0].new_full((len(SUMS),), -1.0)
    torch.sum(torch.where(valid, torch.stack(rows), 0.0), 1, out=sums[:ADDED])
    sums[-1:].zero_()
    return sums
