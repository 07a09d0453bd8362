"""Which tokens a control acts on: exactly k of the optimizer batch, the same on any split of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from logitless.backends.token_kernels.protocol import Band, Candidates, Reduce
from logitless.inputs.tokens import Bools, Float64s, Floats, Int64s, Tokens
from logitless.loss.evaluate.inputs import Means
from logitless.loss.evaluate.means import finite_values, moments, one_rank, ordinary, scaled_by
from logitless.loss.evaluate.params import log_range
from logitless.loss.evaluate.policy_term.ratio import own_log_ratio, policy_term
from logitless.loss.evaluate.sequences import kernels_of, log_ratio_of, valid
from logitless.loss.spec import (
    ClipB,
    ClipCov,
    ClipV,
    KLCov,
    PolicyLossSpec,
    TopEntropy,
)


def covariance_candidates(tokens: Tokens, means: Means) -> Candidates:
    """All valid tokens in the order of their covariance, see `ordinary`."""
    tokens, means = ordinary(tokens, means)
    return _covariance_candidates(tokens, _band(means), None)


def candidates(
    tokens: Tokens, spec: PolicyLossSpec, means: Means, reduce: Reduce = one_rank
) -> Candidates:
    """The tokens `spec.control` may select, in the order of what it selects by; of KL-Cov only
    those that may be among the k largest. Clip-Cov's order is random: its scores are still to be
    written."""
    control, kernels = spec.control, kernels_of(tokens)
    if isinstance(control, ClipCov):
        return _clip_cov_candidates(tokens, spec, control, means)
    if isinstance(control, KLCov):
        k = tokens.xp.part(control.fraction, means.tokens) if tokens.kernels.on_host else None
        tokens, means = ordinary(tokens, means)
        # of each rank: the k largest of all are among them
        return _covariance_candidates(tokens, _band(means), None, k)
    if isinstance(control, TopEntropy):
        entropy = finite_values(tokens, "entropy", tokens.entropy)
        return kernels.ordered(tokens, tokens.mask, entropy)
    pushed_down = tokens.mask & (valid(tokens, tokens.advantages) < 0)
    if isinstance(control, ClipB):
        s = _surprise(tokens)
        mean, deviation = moments(tokens, s, "p (entropy + logp)", reduce)
        return kernels.ordered(tokens, pushed_down & (s - mean < -control.mu * deviation), -s)
    assert isinstance(control, ClipV)
    d = finite_values(tokens, "entropy_change", tokens.entropy_change)
    _, deviation = moments(tokens, d, "entropy_change", reduce)
    return kernels.ordered(tokens, pushed_down & (d > control.mu * deviation), d)


def select(
    tokens: Tokens,
    spec: PolicyLossSpec,
    means: Means,
    *,
    seed: int,
    step: int,
    reduce: Reduce = one_rank,
) -> Int64s:
    """The sorted ids of this rank's tokens among the selected ones of all ranks."""
    running, k = _running(tokens, spec, means, seed, step, reduce)
    ids = running.ids if k is None else kernels_of(tokens).take_largest(running, k, reduce)
    return tokens.xp.sort(ids)


def selected_of_call(tokens: Tokens, spec: PolicyLossSpec, means: Means) -> Bools:
    """Which tokens are, where the call is the whole batch."""
    running, k = _running(tokens, spec, means, 0, 0, one_rank)
    return kernels_of(tokens).chosen(tokens, running, k)


def _running(
    tokens: Tokens, spec: PolicyLossSpec, means: Means, seed: int, step: int, reduce: Reduce
) -> tuple[Candidates, Any]:
    """The candidates in their final order, and how many of them are selected."""
    running = candidates(tokens, spec, means, reduce)
    if isinstance(spec.control, ClipCov):
        running = kernels_of(tokens).shuffled(running, seed, step)
    return running, most_selected(tokens, spec, means.tokens)


def select_in_call(
    tokens: Tokens, spec: PolicyLossSpec, means: Means, permute: Callable[[int], Int64s]
) -> Bools:
    """verl's selection: statistics and k of this call; Clip-Cov takes the first k of `permute`."""
    place, kernels = dataclasses.replace(tokens, given_ids=None), kernels_of(tokens)
    running, k = candidates(place, spec, means), most_selected(tokens, spec, means.tokens)
    assert k is not None
    if isinstance(spec.control, ClipCov):
        return kernels.members(place, tokens.xp.sort(kernels.drawn(running, permute, k)))
    return kernels.chosen(place, running, k)


def most_selected(tokens: Tokens, spec: PolicyLossSpec, number: Any) -> Any:
    """How many of the batch's valid tokens are selected at most; None: all candidates."""
    control = spec.control
    if isinstance(control, ClipV):
        return tokens.xp.part(control.max_fraction, number)
    if isinstance(control, (ClipCov, KLCov, TopEntropy)):
        return tokens.xp.part(control.fraction, number)
    return None


def check_ids(tokens: Tokens) -> None:
    """Ids of valid tokens are their own and not negative."""
    repeated = kernels_of(tokens).repeated_id(tokens)
    if repeated is not None:
        raise ValueError(
            "token_ids must be unique and not negative where the mask is true, got "
            + (f"{repeated} twice" if repeated >= 0 else str(repeated))
        )


def _band(means: Means) -> Band:
    return Band(means.advantage, means.logp)


def _covariance_candidates(
    tokens: Tokens, band: Band, old_logp: Floats | None, most: int | None = None
) -> Candidates:
    """Those inside the band; `most`: with so many of the largest among them, others may lack."""
    most = len(tokens.logp) if most is None else most
    found, bad = kernels_of(tokens).covariances(tokens, band, old_logp, most)
    if tokens.kernels.on_host and bad >= 0:
        assert old_logp is not None
        raise ValueError(
            f"old_logp must be finite where the mask is true, got {old_logp[bad]} at "
            f"{tokens.place(bad)}"
        )
    return found


def _clip_cov_candidates(
    tokens: Tokens, spec: PolicyLossSpec, control: ClipCov, means: Means
) -> Candidates:
    old_logp = tokens.old_logp
    if old_logp is not None and (spec.sequence_ratio or any(means.exponents)):
        unclipped = tokens.mask & ~_clipped(tokens, spec)
        tokens, old_logp = dataclasses.replace(tokens, mask=unclipped), None
    low, high = scaled_by(np.array([control.low, control.high]), -sum(means.exponents)).tolist()
    tokens, means = ordinary(tokens, means)
    band = Band(means.advantage, means.logp, low, high, *log_range(spec.surrogate))
    return _covariance_candidates(tokens, band, old_logp)


def _clipped(tokens: Tokens, spec: PolicyLossSpec) -> Bools:
    if spec.sequence_ratio:
        log_ratio = policy_term(tokens, spec).log_ratio
        u = own_log_ratio(tokens, spec) if log_ratio is None else log_ratio
    else:
        u = log_ratio_of(tokens, "logp", "old_logp")
    log_low, log_high = log_range(spec.surrogate)
    a = valid(tokens, tokens.advantages)
    return ((a > 0) & (u > log_high)) | ((a < 0) & (u < log_low))


def _surprise(tokens: Tokens) -> Float64s:
    """S = p (entropy + logp) of each valid token, 0 elsewhere."""
    entropy = finite_values(tokens, "entropy", tokens.entropy)
    logp = valid(tokens, tokens.logp)
    p = kernels_of(tokens).exp(tokens, logp)
    return tokens.xp.where(tokens.mask, p * (entropy + logp), 0.0)
