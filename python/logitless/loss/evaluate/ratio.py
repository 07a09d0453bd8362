"""The ratio a surrogate sees where it is not the token's own, and how its slope flows back."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from logitless.inputs.sequences import (
    Float64s,
    exp,
    log_ratio_of,
    sequence_means,
    sequence_sums,
    valid,
    valid_lengths,
)
from logitless.inputs.tokens import Floats, Tokens
from logitless.loss.spec import CustomSurrogate, Gmpo, PolicyLossSpec, SurrogateInputs


class PolicyTerm(NamedTuple):
    """What the core is given of the policy term, flat [N] or None: then it computes it itself."""

    log_ratio: Float64s | None = None
    loss: Float64s | None = None
    slope: Float64s | None = None
    # 0 for tokens that a sequence's slope does not reach
    flow: Float64s | None = None


def old_policy(tokens: Tokens, spec: PolicyLossSpec) -> Floats | None:
    """The log-probs under the policy that r divides by."""
    return tokens.rollout_logp if spec.ratio == "inference" else tokens.old_logp


def own_log_ratio(tokens: Tokens, spec: PolicyLossSpec) -> Float64s:
    """d = logp - old_logp of each token, 0 outside the mask and without an old policy."""
    if old_policy(tokens, spec) is None or spec.ratio == "none":
        return np.zeros(tokens.logp.size)
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
    per_sequence = (sequence_sums if spec.ratio == "sequence_sum" else sequence_means)(tokens, d)
    return per_sequence[tokens.whole().of_token]


def _geometric(tokens: Tokens, spec: PolicyLossSpec, surrogate: Gmpo) -> PolicyTerm:
    """GMPO: the clip of each token's log ratio comes before the mean over the sequence."""
    d, a = own_log_ratio(tokens, spec), valid(tokens, tokens.advantages)
    clipped = np.where(a > 0, np.minimum(d, surrogate.high), np.maximum(d, -surrogate.low))
    clipped = np.where(a == 0, 0.0, clipped)
    of_token = tokens.whole().of_token
    log_ratio = sequence_means(tokens, clipped)[of_token]
    mean = sequence_means(tokens, a)[of_token]
    # a zero advantage is zero loss even where the ratio overflows
    loss = -mean * np.where(mean == 0, 1.0, exp(tokens, log_ratio))
    flow = ((clipped == d) & (a != 0)).astype(np.float64)
    return PolicyTerm(log_ratio, loss, loss, flow)


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


def spreads(spec: PolicyLossSpec) -> bool:
    """Whether a token's slope is that of its sequence's ratio, shared by all of its tokens."""
    return spec.ratio in ("sequence", "sequence_sum") and spec.surrogate.through_ratio


def spread(tokens: Tokens, spec: PolicyLossSpec, term: PolicyTerm, g_policy: Float64s) -> Float64s:
    """Slopes with respect to a sequence's log ratio, as slopes of its tokens' log-probs."""
    total = sequence_sums(tokens, g_policy)
    if spec.ratio == "sequence":
        total = total / np.maximum(valid_lengths(tokens), 1)
    slopes = np.where(tokens.mask, total[tokens.whole().of_token], 0.0)
    return slopes if term.flow is None else slopes * term.flow
