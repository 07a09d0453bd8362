"""The weights of a rollout correction: data of the tokens as generated, no gradient."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from logitless.inputs.tokens import Bools, Float64s, Tokens
from logitless.loss.evaluate.sequences import kernels_of, log_ratio_of, per_token, sequence_means
from logitless.loss.spec.corrections import Correction, Reject


class Importance(NamedTuple):
    """Flat [N]: w of each token, before any normalisation, and whether it is kept."""

    weights: Float64s
    keep: Bools
    # log ratio that w is the exponential of, None without a level
    log_ratio: Float64s | None
    # old_logp - rollout_logp of the token
    mismatch: Float64s


def importance(tokens: Tokens, correction: Correction) -> Importance:
    """w = exp(q) cut to its bounds, and the rules of rejection; 1 and True outside the mask."""
    xp, kernels = tokens.xp, kernels_of(tokens)
    q = log_ratio_of(tokens, "old_logp", "rollout_logp")
    keep = xp.true(q)
    for rule in correction.reject:
        keep = keep & _accepted(tokens, q, rule)
    if correction.veto is not None:
        low = tokens.mask & (q < math.log(correction.veto))
        keep = keep & (per_token(tokens, kernels.sums(tokens, xp.cast(low, xp.float64))) == 0)
    if correction.level is None:
        return Importance(xp.full(q, 1.0), keep, None, q)
    u = _at_level(tokens, q, correction.level)
    w = kernels.exp(tokens, u)
    if correction.outside == "truncate":
        weights = xp.clip(w, correction.low, correction.high)
    else:
        below, above = beyond(u, correction.low, correction.high)
        weights = xp.where(below | above, 0.0, w)
    return Importance(weights, keep, u, q)


def beyond(log_ratio: Float64s, low: float, high: float) -> tuple[Bools, Bools]:
    """Whether it lies below and above the bounds of a ratio, both included."""
    log_low = math.log(low) if low > 0 else -math.inf
    return log_ratio < log_low, log_ratio > math.log(high)


def correction_sums(tokens: Tokens, correction: Correction, found: Importance) -> tuple[Any, ...]:
    """Over the valid tokens, in the order of `metrics.CORRECTION_SUMS`."""
    kernels, q = kernels_of(tokens), found.mismatch
    sums = (
        kernels.count(tokens, ~found.keep),
        -kernels.total(tokens, q),
        kernels.total(tokens, kernels.exp(tokens, q) - 1.0 - q),
    )
    if found.log_ratio is None:
        return sums
    below, above = beyond(found.log_ratio, correction.low, correction.high)
    counts = (kernels.count(tokens, above), kernels.count(tokens, below))
    return (*sums, kernels.total(tokens, found.weights), *counts)


def _at_level(tokens: Tokens, q: Float64s, level: str) -> Float64s:
    if level == "token":
        return q
    means = level == "geometric"
    reduced = sequence_means(tokens, q) if means else kernels_of(tokens).sums(tokens, q)
    return per_token(tokens, reduced)


def _accepted(tokens: Tokens, q: Float64s, rule: Reject) -> Bools:
    level, _, kind = rule.measure.rpartition("_")
    low, high = rule.bounds
    if kind == "k1":
        below, above = beyond(q if level == "token" else _at_level(tokens, q, _LEVELS[level]),
                              low, high)  # fmt: skip
        return ~(below | above)
    kernels = kernels_of(tokens)
    value = 0.5 * q * q if kind == "k2" else kernels.exp(tokens, q) - 1.0 - q
    if level == "seq_max":
        value = per_token(tokens, kernels.largest(tokens, value))
    elif level != "token":
        value = _at_level(tokens, value, _LEVELS[level])
    return value <= high


_LEVELS = {"seq_sum": "sequence", "seq_mean": "geometric"}
