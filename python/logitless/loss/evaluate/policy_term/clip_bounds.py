"""The bounds of the ratio that a batch chooses for its clip, from sums that are exact: neither the
order of the tokens nor their split over calls and ranks changes a bit of them."""

from __future__ import annotations

import math
from typing import Any

from logitless.backends.token_kernels.arrays import at_least, at_most, or_infinite, quotient
from logitless.backends.token_kernels.protocol import Reduce
from logitless.inputs.records import changed
from logitless.inputs.tokens import Float64s, Tokens
from logitless.loss.evaluate.means import exact_means
from logitless.loss.evaluate.policy_term.ratio import own_log_ratio
from logitless.loss.evaluate.sequences import kernels_of, valid
from logitless.loss.spec import Bapo, M2po, PolicyLossSpec

# Each step of the search for a cap multiplies (tokens above it) * (what the budget has left) by at
# most 1/4: 2^31 tokens and the 53 bits of a float64 take 42.
STEPS = 64
# Log ratios beyond it weigh no more in BAPO's search.
MOST = 20.0


def batch_bounds(tokens: Tokens, spec: PolicyLossSpec, reduce: Reduce) -> tuple[Any, Any]:
    """Logarithms of the lowest and of the highest ratio that the clip leaves as it is."""
    surrogate = spec.surrogate
    d, a = own_log_ratio(tokens, spec), valid(tokens, tokens.advantages)
    if isinstance(surrogate, M2po):
        return _within_budget(tokens, surrogate, d, a, reduce)
    assert isinstance(surrogate, Bapo)
    return _balanced(tokens, surrogate, d, a, reduce)


def _within_budget(
    tokens: Tokens, surrogate: M2po, d: Float64s, a: Float64s, reduce: Reduce
) -> tuple[Any, Any]:
    harmful = tokens.mask & (((a > 0) & (d > 0)) | ((a < 0) & (d < 0)))
    own = changed(tokens, mask=harmful)
    cap = _cap(own, d * d, surrogate.budget, reduce)
    inside = harmful & (d * d <= cap)
    _, most = kernels_of(tokens).extremes(own, inside, abs(d), reduce)
    # nothing is to be clipped where the cap is infinite
    most = or_infinite(most, cap)
    low, high = _log(1.0 - surrogate.low), math.log1p(surrogate.high)
    return at_most(-most, low), at_least(most, high)


def _cap(own: Tokens, squares: Float64s, budget: float, reduce: Reduce) -> Any:
    """The largest c with mean(min(squares, c)) <= budget over the valid tokens of all ranks, by
    Newton's steps from below; inf where none is too large."""
    xp, cap, before = own.xp, budget, None
    names = ("squares of log ratios", "1")
    for _ in range(STEPS):
        above = squares > cap
        inside = xp.where(above, 0.0, squares)
        found = exact_means(own, inside, xp.cast(above, xp.float64), names, reduce)
        if own.kernels.on_host and found.logp == before:
            break
        before = found.logp
        cap = quotient(budget - found.advantage, before)
    return cap


def _balanced(
    tokens: Tokens, surrogate: Bapo, d: Float64s, a: Float64s, reduce: Reduce
) -> tuple[Any, Any]:
    xp = tokens.xp
    r = kernels_of(tokens).exp(tokens, xp.clip(d, -MOST, MOST))
    names = ("advantages times ratios", "advantages times ratios")
    chosen, *rest = [(low, high, _log(low), _log(high)) for low, high in surrogate.path]
    for wider in rest:
        low, high, *_ = chosen
        up = xp.where(a > 0, a * xp.minimum(r, high), 0.0)
        down = xp.where(a < 0, -a * xp.maximum(r, low), 0.0)
        found = exact_means(tokens, up, down, names, reduce)
        short = found.advantage < surrogate.target * found.logp
        if not tokens.kernels.on_host:
            chosen = tuple(xp.where(short, *pair) for pair in zip(wider, chosen, strict=True))
        elif short:
            chosen = wider
        else:
            break
    return chosen[2], chosen[3]


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf
