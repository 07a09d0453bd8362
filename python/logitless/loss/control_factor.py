"""What multiplies the policy term of each token: correction, trust and entropy weights, as data."""

from __future__ import annotations

import numpy as np

from logitless.loss.correction import Importance, importance
from logitless.loss.sequences import Float64s, sequence_means, valid
from logitless.loss.spec import (
    CustomControl,
    EntropyWeights,
    OffPolicyMask,
    PolicyLossSpec,
)
from logitless.loss.tokens import Tokens


def policy_factor(
    tokens: Tokens, spec: PolicyLossSpec, mean_entropy: float, mean_importance: float
) -> tuple[Float64s | None, Importance | None]:
    """(factor [N] or None where it is 1 everywhere, the correction's weights or None)."""
    factor = _control_factor(tokens, spec, mean_entropy)
    if spec.correction is None:
        return factor, None
    weights = importance(tokens, spec.correction)
    # a mean of 0 is that of no valid token, or of weights that all are 0
    scale = mean_importance if spec.correction.normalize and mean_importance > 0 else 1.0
    corrected = np.where(weights.keep, weights.weights / scale, 0.0)
    return (corrected if factor is None else corrected * factor), weights


def _control_factor(tokens: Tokens, spec: PolicyLossSpec, mean_entropy: float) -> Float64s | None:
    control = spec.control
    if isinstance(control, EntropyWeights):
        assert tokens.entropy is not None
        share = control.strength / mean_entropy if mean_entropy > 0 else 0.0
        kept = 1.0 - control.strength if mean_entropy > 0 else 1.0
        return kept + share * valid(tokens, tokens.entropy)
    if isinstance(control, OffPolicyMask):
        reference = tokens.reference(control.against)
        assert reference is not None
        with np.errstate(invalid="ignore"):
            away = valid(tokens, reference.astype(np.float64) - tokens.logp)
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
