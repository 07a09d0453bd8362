"""What multiplies the policy term of each token: correction, trust and entropy weights, as data."""

from __future__ import annotations

import numpy as np

from logitless.inputs.sequences import Float64s, log_ratio_of, sequence_means, valid
from logitless.inputs.tokens import Tokens
from logitless.loss.evaluate.importance import Importance, importance
from logitless.loss.spec import (
    CustomControl,
    EntropyWeights,
    OffPolicyMask,
    PolicyLossSpec,
)


def policy_factor(
    tokens: Tokens,
    spec: PolicyLossSpec,
    mean_credit: tuple[float, float],  # of `entropy_credit` where A > 0 and where A < 0
    mean_importance: float,
) -> tuple[Float64s | None, Importance | None]:
    """(factor [N] or None where it is 1 everywhere, the correction's weights or None)."""
    factor = _control_factor(tokens, spec, mean_credit)
    if spec.correction is None:
        return factor, None
    weights = importance(tokens, spec.correction)
    # a mean of 0 is that of no valid token, or of weights that all are 0
    scale = mean_importance if spec.correction.normalize and mean_importance > 0 else 1.0
    corrected = np.where(weights.keep, weights.weights / scale, 0.0)
    return (corrected if factor is None else corrected * factor), weights


def entropy_credit(tokens: Tokens, control: EntropyWeights) -> Float64s:
    """H where A > 0, 1 / H where A < 0, 0 elsewhere: what EntropyWeights shares out."""
    assert tokens.entropy is not None
    h, a = valid(tokens, tokens.entropy), valid(tokens, tokens.advantages)
    return np.where(a > 0, h, np.where(a < 0, 1.0 / np.maximum(h, control.floor), 0.0))


def _control_factor(
    tokens: Tokens, spec: PolicyLossSpec, mean_credit: tuple[float, float]
) -> Float64s | None:
    control = spec.control
    if isinstance(control, EntropyWeights):
        a, share = valid(tokens, tokens.advantages), np.ones(tokens.mask.size)
        mean = np.where(a > 0, *mean_credit)
        # a mean of 0 is that of no token of this sign, or of none with any entropy
        shared = (a != 0) & (mean > 0)
        np.divide(entropy_credit(tokens, control), mean, out=share, where=shared)
        return 1.0 - control.strength + control.strength * share
    if isinstance(control, OffPolicyMask):
        away = log_ratio_of(tokens, f"{control.against}_logp", "logp")
        far = (sequence_means(tokens, away) > control.delta)[tokens.whole().of_token]
        return np.where(far & (valid(tokens, tokens.advantages) < 0), 0.0, 1.0)
    if isinstance(control, CustomControl):
        return _custom(tokens, control)
    return None


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
