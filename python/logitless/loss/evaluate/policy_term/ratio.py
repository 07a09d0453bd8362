"""The ratio a surrogate sees where it is not the token's own, and how its slope flows back."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from logitless.inputs.tokens import Float64s, Floats, Tokens
from logitless.loss.evaluate.sequences import (
    kernels_of,
    log_ratio_of,
    per_token,
    sequence_means,
    valid,
)
from logitless.loss.spec import CustomSurrogate, Gmpo, PolicyLossSpec, SurrogateInputs


class PolicyTerm(NamedTuple):
    """What the kernel gets of the policy term, flat [N] or None: then it computes it itself."""

    log_ratio: Float64s | None = None
    loss: Float64s | None = None
    slope: Float64s | None = None
    # 0 for tokens that a sequence's slope does not reach
    gradient_mask: Float64s | None = None


def old_policy(tokens: Tokens, spec: PolicyLossSpec) -> Floats | None:
    """The log-probs under the policy that r divides by."""
    return tokens.rollout_logp if spec.ratio == "inference" else tokens.old_logp


def own_log_ratio(tokens: Tokens, spec: PolicyLossSpec) -> Float64s:
    """d = logp - old_logp of each token, 0 outside the mask and without an old policy."""
    if old_policy(tokens, spec) is None or spec.ratio == "none":
        return tokens.xp.full(tokens.logp, 0.0)
    return log_ratio_of(tokens, "logp", "rollout_logp" if spec.ratio == "inference" else "old_logp")


def policy_term(tokens: Tokens, spec: PolicyLossSpec) -> PolicyTerm:
    """The sequence's ratio, and the policy term where it is not the core's own."""
    surrogate = spec.surrogate
    if isinstance(surrogate, Gmpo):
        return _geometric(tokens, spec, surrogate)
    log_ratio = _sequence_log_ratio(tokens, spec) if spec.sequence_ratio else None
    if isinstance(surrogate, CustomSurrogate):
        return _custom(tokens, spec, surrogate, log_ratio)
    return PolicyTerm(log_ratio)


def _sequence_log_ratio(tokens: Tokens, spec: PolicyLossSpec) -> Float64s:
    d = own_log_ratio(tokens, spec)
    sums = spec.ratio == "sequence_sum"
    return per_token(
        tokens, kernels_of(tokens).sums(tokens, d) if sums else sequence_means(tokens, d)
    )


def _geometric(tokens: Tokens, spec: PolicyLossSpec, surrogate: Gmpo) -> PolicyTerm:
    """GMPO: the clip of each token's log ratio comes before the mean over the sequence."""
    xp, kernels = tokens.xp, kernels_of(tokens)
    d, a = own_log_ratio(tokens, spec), valid(tokens, tokens.advantages)
    clipped = xp.where(a > 0, xp.minimum(d, surrogate.high), xp.maximum(d, -surrogate.low))
    clipped = xp.where(a == 0, 0.0, clipped)
    log_ratio = per_token(tokens, sequence_means(tokens, clipped))
    mean = per_token(tokens, sequence_means(tokens, a))
    # a zero advantage is zero loss even where the ratio overflows
    loss = -mean * xp.where(mean == 0, 1.0, kernels.exp(tokens, log_ratio))
    gradient_mask = xp.cast((clipped == d) & (a != 0), xp.float64)
    return PolicyTerm(log_ratio, loss, loss, gradient_mask)


def _custom(
    tokens: Tokens, spec: PolicyLossSpec, surrogate: CustomSurrogate, log_ratio: Float64s | None
) -> PolicyTerm:
    seen = own_log_ratio(tokens, spec) if log_ratio is None else log_ratio
    mask = tokens.mask
    inputs = (x[mask].astype(np.float64) for x in (seen, tokens.advantages, tokens.logp))
    name = type(surrogate).__name__
    parts = []
    for what, value in zip(
        ("loss", "slope"), surrogate.term(SurrogateInputs(*inputs)), strict=True
    ):
        value = np.asarray(value, np.float64)
        if value.shape != (np.count_nonzero(mask),):
            raise ValueError(
                f"{name}: {what} must be [{np.count_nonzero(mask)}], one per valid token, "
                f"got {list(value.shape)}"
            )
        if np.isnan(value).any():
            token = int(np.flatnonzero(mask)[np.isnan(value)][0])
            raise ValueError(f"{name}: {what} is NaN at {tokens.place(token)}")
        parts.append(np.zeros(mask.size))
        parts[-1][mask] = value
    return PolicyTerm(log_ratio, *parts)


def shares_sequence_gradient(spec: PolicyLossSpec) -> bool:
    """Whether a token's slope is that of its sequence's ratio, shared by all of its tokens."""
    return spec.ratio in ("sequence", "sequence_sum") and spec.surrogate.through_ratio


def sequence_gradient(
    tokens: Tokens, spec: PolicyLossSpec, term: PolicyTerm, g_policy: Float64s
) -> Float64s:
    """Slopes with respect to a sequence's log ratio, as slopes of its tokens' log-probs."""
    mean = spec.ratio == "sequence"
    total = sequence_means(tokens, g_policy) if mean else kernels_of(tokens).sums(tokens, g_policy)
    slopes = tokens.xp.where(tokens.mask, per_token(tokens, total), 0.0)
    return slopes if term.gradient_mask is None else slopes * term.gradient_mask
