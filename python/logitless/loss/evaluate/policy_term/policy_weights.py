"""What multiplies the policy term of each token: correction, trust and entropy weights, and the
caller's, as data."""

from __future__ import annotations

import math

import numpy as np

from logitless.backends.token_kernels.arrays import at_least, positive_or_one
from logitless.inputs.tokens import Float64s, Floats, Tokens
from logitless.loss.evaluate.inputs import Means
from logitless.loss.evaluate.policy_term.importance import Importance, importance
from logitless.loss.evaluate.sequences import (
    kernels_of,
    log_ratio_of,
    per_token,
    refuse,
    sequence_means,
    valid,
)
from logitless.loss.spec import (
    CustomControl,
    EntropyRatioClip,
    EntropyWeights,
    OffPolicyMask,
    PolicyLossSpec,
    Steer,
)

# Probabilities of STEER lie within these.
LOG_LEAST, LOG_MOST = math.log(1e-8), math.log1p(-1e-8)


def policy_weights(
    tokens: Tokens,
    spec: PolicyLossSpec,
    means: Means,
) -> tuple[Float64s | None, Importance | None]:
    """(weights [N] or None where they are 1 everywhere, the correction's or None)."""
    weights, found = _control_weights(tokens, spec, means), None
    if spec.correction is not None:
        found = importance(tokens, spec.correction)
        # a mean of 0 is that of no valid token, or of weights that all are 0
        scale = positive_or_one(means.importance) if spec.correction.normalize else 1.0
        xp = tokens.xp
        corrected = xp.where(found.keep, xp.divided(found.weights, scale), 0.0)
        weights = corrected if weights is None else corrected * weights
    if tokens.weights is not None:
        given = _given_weights(tokens, tokens.weights)
        weights = given if weights is None else weights * given
    return weights, found


def entropy_credit(tokens: Tokens, control: EntropyWeights) -> Float64s:
    """H where A > 0, 1 / H where A < 0, 0 elsewhere: what EntropyWeights shares out."""
    assert tokens.entropy is not None
    xp, h, a = tokens.xp, valid(tokens, tokens.entropy), valid(tokens, tokens.advantages)
    return xp.where(a > 0, h, xp.where(a < 0, xp.divided(1.0, xp.maximum(h, control.floor)), 0.0))


def entropy_change(tokens: Tokens) -> Float64s:
    """|Omega| of STEER: to first order in the step, how much a token changes the entropy of its
    row."""
    assert tokens.entropy is not None and tokens.old_logp is not None
    xp, kernels = tokens.xp, kernels_of(tokens)
    logp = xp.clip(valid(tokens, tokens.logp), LOG_LEAST, LOG_MOST)
    p = kernels.exp(tokens, logp)
    old = kernels.exp(tokens, xp.clip(valid(tokens, tokens.old_logp), LOG_LEAST, 0.0))
    away = p * (1.0 - p) * (logp + valid(tokens, tokens.entropy))
    return abs(valid(tokens, tokens.advantages) / old * away)


def _steered(tokens: Tokens, control: Steer, least: float, most: float) -> Float64s:
    xp, x, low, high = tokens.xp, entropy_change(tokens), control.low, control.high
    if control.linear:
        span = most - least
        falls = high - xp.divided((high - low) * (x - least), positive_or_one(span))
        weights = xp.where(x * 0.0 + span > 0, falls, 0.5 * (low + high))
    else:
        k = xp.divided(math.log(high / low), at_least(most, control.floor))
        weights = high * kernels_of(tokens).exp(tokens, -k * x)
    # what has moved since the batch was looked at may lie outside of its range
    return xp.clip(weights, low, high)


def _given_weights(tokens: Tokens, weights: Floats) -> Float64s:
    """The caller's. One that is negative or not finite is no number on a device, whose kernel
    flags it."""
    given, xp = valid(tokens, weights), tokens.xp
    good = xp.isfinite(given) & (given >= 0)
    refuse(
        tokens,
        good,
        lambda i: (
            f"weights must be finite and >= 0 where the mask is true, got {given[i]} at "
            f"{tokens.place(i)}"
        ),
    )
    return xp.where(good, given, float("nan"))


def _control_weights(tokens: Tokens, spec: PolicyLossSpec, means: Means) -> Float64s | None:
    control, xp = spec.control, tokens.xp
    if isinstance(control, EntropyWeights):
        a = valid(tokens, tokens.advantages)
        mean = xp.where(a > 0, *means.credit)
        # a mean of 0 is that of no token of this sign, or of none with any entropy
        shared = (a != 0) & (mean > 0)
        credit = entropy_credit(tokens, control) / xp.where(shared, mean, 1.0)
        return 1.0 - control.strength + control.strength * xp.where(shared, credit, 1.0)
    if isinstance(control, EntropyRatioClip):
        return _entropy_kept(tokens, control)
    if isinstance(control, Steer):
        return _steered(tokens, control, *means.change_range)
    if isinstance(control, OffPolicyMask):
        away = log_ratio_of(tokens, f"{control.against}_logp", "logp")
        far = per_token(tokens, sequence_means(tokens, away) > control.delta)
        return xp.where(far & (valid(tokens, tokens.advantages) < 0), 0.0, 1.0)
    if isinstance(control, CustomControl):
        return _custom(tokens, control)
    return None


def _entropy_kept(tokens: Tokens, control: EntropyRatioClip) -> Float64s:
    xp, h, old = tokens.xp, tokens.entropy, tokens.old_entropy
    assert h is not None and old is not None
    now, before = valid(tokens, h), valid(tokens, old)
    good = xp.isfinite(now) & xp.isfinite(before)
    refuse(
        tokens,
        good,
        lambda i: (
            f"entropy and old_entropy must be finite where the mask is true, got {h[i]} and "
            f"{old[i]} at {tokens.place(i)}"
        ),
    )
    ratio = (now + 1e-8) / (before + 1e-8)
    kept = xp.where((ratio > control.low) & (ratio < control.high), 1.0, 0.0)
    # no number on a device, whose kernel flags it
    return xp.where(good, kept, float("nan"))


def _custom(tokens: Tokens, control: CustomControl) -> Float64s:
    name = type(control).__name__
    factor = np.asarray(control.factor(tokens), np.float64)
    if factor.shape != tokens.mask.shape:
        raise ValueError(f"{name}.factor must be [{tokens.mask.size}], got {list(factor.shape)}")
    bad = np.flatnonzero(tokens.mask & ~(np.isfinite(factor) & (factor >= 0)))
    if bad.size:
        i = int(bad[0])
        raise ValueError(
            f"{name}.factor must be finite and >= 0 where the mask is true, got {factor[i]} "
            f"at {tokens.place(i)}"
        )
    return np.ascontiguousarray(factor)
