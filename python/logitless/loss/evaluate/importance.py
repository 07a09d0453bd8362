"""The weights of a rollout correction: data of the tokens as generated, no gradient."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from logitless.inputs.sequences import Float64s, exp, log_ratio_of, sequence_means, sequence_sums
from logitless.inputs.tokens import Bools, Tokens
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
    q = log_ratio_of(tokens, "old_logp", "rollout_logp")
    keep = np.ones(q.size, np.bool_)
    for rule in correction.reject:
        keep &= _accepted(tokens, q, rule)
    if correction.veto is not None:
        low = tokens.mask & (q < math.log(correction.veto))
        keep &= sequence_sums(tokens, low.astype(np.float64))[tokens.whole().of_token] == 0
    if correction.level is None:
        return Importance(np.ones(q.size), keep, None, q)
    u = _at_level(tokens, q, correction.level)
    if correction.outside == "truncate":
        weights = np.clip(exp(tokens, u), correction.low, correction.high)
    else:
        weights = np.where(outside(u, correction.low, correction.high) == 0, exp(tokens, u), 0.0)
    return Importance(weights, keep, u, q)


def outside(log_ratio: Float64s, low: float, high: float) -> Any:
    """-1, 0 or 1: below, within or above the bounds of a ratio, both included."""
    log_low = math.log(low) if low > 0 else -math.inf
    above, below = log_ratio > math.log(high), log_ratio < log_low
    return above.astype(np.int8) - below.astype(np.int8)


def correction_metrics(
    tokens: Tokens, correction: Correction, weights: Importance, total_tokens: int
) -> dict[str, float]:
    """Per valid token of the batch: these sum over micro-batches and ranks."""
    mask, q = tokens.mask, weights.mismatch[tokens.mask]
    sums = {
        "rollout_rs_masked_fraction": np.count_nonzero(~weights.keep[mask]),
        "kl": -q.sum(),
        "k3_kl": (exp(tokens, q) - 1.0 - q).sum(),
    }
    if weights.log_ratio is not None:
        side = outside(weights.log_ratio[mask], correction.low, correction.high)
        sums |= {
            "rollout_is_mean": weights.weights[mask].sum(),
            "rollout_is_ratio_fraction_high": np.count_nonzero(side > 0),
            "rollout_is_ratio_fraction_low": np.count_nonzero(side < 0),
        }
    return {f"rollout_corr/{k}": float(x) / max(total_tokens, 1) for k, x in sums.items()}


def _at_level(tokens: Tokens, q: Float64s, level: str) -> Float64s:
    if level == "token":
        return q
    per_sequence = (sequence_sums if level == "sequence" else sequence_means)(tokens, q)
    return per_sequence[tokens.whole().of_token]


def _accepted(tokens: Tokens, q: Float64s, rule: Reject) -> Bools:
    level, _, kind = rule.measure.rpartition("_")
    low, high = rule.bounds
    if kind == "k1":
        u = q if level == "token" else _at_level(tokens, q, _LEVELS[level])
        return np.asarray(outside(u, low, high) == 0)
    value = 0.5 * q * q if kind == "k2" else exp(tokens, q) - 1.0 - q
    if level == "seq_max":
        sequences, mask = tokens.whole(), tokens.mask
        largest = np.zeros(sequences.number)
        np.maximum.at(largest, sequences.of_token[mask], value[mask])
        value = largest[sequences.of_token]
    elif level != "token":
        value = _at_level(tokens, value, _LEVELS[level])
    return np.asarray(value <= high)


_LEVELS = {"seq_sum": "sequence", "seq_mean": "geometric"}
