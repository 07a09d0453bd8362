"""From what a caller gave to the inputs of `evaluate`: checks, shares, means and selection."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from logitless.backends.threads import thread_count
from logitless.backends.token_kernels.protocol import TokenKernels
from logitless.inputs.checks import choice, finite, instance
from logitless.inputs.records import changed
from logitless.inputs.tokens import Array, Bools, Float64s, Int64s, Tokens
from logitless.loss.evaluate.aggregation import mean_scales, part_weights
from logitless.loss.evaluate.inputs import BatchFacts, BatchStats, LossData, Means, Totals
from logitless.loss.evaluate.make_tokens import make_tokens, name_bad_rows
from logitless.loss.evaluate.metrics import Given, MetricTable, metric_table
from logitless.loss.evaluate.selection import check_ids, select_in_call, selected_of_call
from logitless.loss.evaluate.sequences import check_whole, kernels_of
from logitless.loss.evaluate.surveys import spec_means, surveyed
from logitless.loss.evaluate.token_loss import TokenInputs
from logitless.loss.spec import ClipV, PolicyLossSpec, Reinforce

# Sums over calls are the batch's, or each is of its call alone.
METRICS = ("shares", "means")


def check_loss_options(
    spec: PolicyLossSpec,
    batch: BatchStats | None,
    totals: Totals | None,
    grad_scale: float,
    token_ids: Any,
    metrics: str = "shares",
) -> None:
    """What can be wrong before a value is looked at."""
    instance("spec", spec, (PolicyLossSpec,))
    if batch is not None:
        instance("batch", batch, (BatchStats,))
    if totals is not None:
        instance("totals", totals, (Totals,))
    finite("grad_scale", grad_scale)
    if type(metrics) is not str or metrics not in METRICS:
        choice("metrics", metrics, METRICS)
    if batch is None:
        return
    if totals is not None:
        raise ValueError("totals must be None where batch is given, which carries its own totals")
    for name in ("control", "correction", "surrogate"):
        mine = spec.batch_clip if name == "surrogate" else getattr(spec, name)
        given = getattr(batch, name)
        same = mine == given
        # Not !=, which torch.compile cannot trace of dataclasses with a number that may vary.
        if not same and not (name == "control" and spec.selects_in_call):
            raise ValueError(f"batch was made for {name}={given}, but the spec has {mine}")
    if token_ids is None and (spec.selects or spec.per_sequence):
        found = "selected tokens" if spec.selects else "cut sequences"
        raise ValueError(f"token_ids must be given with batch: {found} are found by id")


def separable(spec: PolicyLossSpec, *, batch: bool) -> bool:
    """Whether a token's coefficients follow from its own logp and what is known before."""
    selects = spec.control is not None and spec.control.selects
    if spec.whole_sequences or spec.surveys_call or (spec.needs_means and not batch):
        return False
    return not selects or (spec.selects and batch)


def call_inputs(
    logp: Array, entropy: Array | None, data: LossData, kernels: TokenKernels
) -> TokenInputs:
    """Of all tokens of a call."""
    tokens = _tokens(logp, entropy, data, kernels)
    weights = part_weights(tokens, data.spec, data.totals)
    return _inputs(tokens, data, weights, *_selection(tokens, data))


def rows_inputs(data: LossData, kernels: TokenKernels, *, wide: bool) -> TokenInputs:
    """Of a call whose logp and entropy are still to come, in float64 (wide) or float32, see
    `TokenInputs.with_values`: for a loss that is `separable`. Of any other it raises for what is
    wrong before a value is known."""
    _check_known(data)
    xp = kernels.xp
    later = xp.zeros(tuple(data.mask.shape), data.mask)
    later = xp.cast(later, xp.float64 if wide else xp.float32)
    tokens = _tokens(later, later, data, kernels)
    weights, batch = part_weights(tokens, data.spec, data.totals), data.batch
    if batch is None:
        return _inputs(tokens, data, weights, None, None)
    selected = _members(tokens, batch) if data.spec.selects else None
    return _inputs(tokens, data, weights, batch.means, selected)


def completed(
    known: TokenInputs, data: LossData, logp: Array, entropy: Array | None
) -> TokenInputs:
    """`rows_inputs` of any loss, once logp and entropy of all tokens are known."""
    kernels = kernels_of(known.tokens)
    name_bad_rows(kernels, logp)
    values = (None if x is None else kernels.xp.array("logp", x) for x in (logp, entropy))
    tokens = known.tokens.with_values(*values)
    return _inputs(tokens, data, known.weights, *_selection(tokens, data))


def metrics_of(data: LossData, *, entropy: bool) -> MetricTable:
    """Which metrics a call has, in the order of its outputs."""
    known = "batch" if data.batch is not None else "call" if data.totals is None else "totals"
    old, rollout = data.old_logp is not None, data.rollout_logp is not None
    return metric_table(data.spec, Given(old, rollout, entropy, known))


def _tokens(logp: Array, entropy: Array | None, data: LossData, kernels: TokenKernels) -> Tokens:
    spec, batch = data.spec, data.batch
    for name in sorted(spec.needs):
        given = entropy if name == "entropy" else getattr(data, name, True)
        # without one the call is on-policy
        if given is not None or name == "old_logp":
            continue
        raise ValueError(f"{name} must be given with {_why(spec, data, name)}, got None")
    tokens = make_tokens(
        logp,
        data.advantages,
        data.mask,
        kernels=kernels,
        old_logp=data.old_logp,
        entropy=entropy,
        ref_logp=data.ref_logp,
        rollout_logp=data.rollout_logp,
        weights=data.weights,
        old_entropy=data.old_entropy,
        cu_seqlens=data.cu_seqlens,
        token_ids=data.token_ids,
        threads=thread_count(data.mask),
    )
    if data.old_logp is None and "old_logp" in spec.needs:
        tokens = changed(tokens, old_logp=tokens.logp, on_policy=True)
    if spec.whole_sequences:
        tokens.require_sequences()
    known = batch is not None and batch.sequences is not None and spec.per_sequence
    if batch is not None and known:
        check_whole(tokens, kernels.xp.array("batch.sequences", batch.sequences))
    return tokens


def _inputs(
    tokens: Tokens,
    data: LossData,
    weights: tuple[float | Float64s, ...],
    means: Means | None,
    selected: Bools | None,
) -> TokenInputs:
    scales = mean_scales(tokens, data.spec, data.totals) if data.mean_metrics else None
    return TokenInputs(
        tokens,
        data.spec,
        data.coefficients,
        weights,
        selected,
        means,
        data.grad_scale,
        scales,
    )


def _selection(tokens: Tokens, data: LossData) -> tuple[Means | None, Bools | None]:
    """The means where they are known, and the selected tokens of this call where some are."""
    means, selected = _known_selection(tokens, data)
    if not data.spec.surveys_call:
        return means, selected
    known = Means(0.0, 0.0, 0) if means is None else means
    return surveyed(tokens, data.spec, known, "micro"), selected


def _known_selection(tokens: Tokens, data: LossData) -> tuple[Means | None, Bools | None]:
    spec, batch = data.spec, data.batch
    if spec.selects_in_call:
        means = spec_means(tokens, spec)
        return means, select_in_call(tokens, spec, means, _torch_permutation)
    if batch is not None:
        return batch.means, _members(tokens, batch) if spec.selects else None
    _check_known(data)
    if data.totals is not None:
        return None, None
    means = spec_means(tokens, spec)
    if not spec.selects:
        return means, None
    if tokens.given_ids is not None:
        check_ids(tokens)
    return means, selected_of_call(tokens, spec, means)


def _check_known(data: LossData) -> None:
    """Whether what is not given can be found in the call itself."""
    spec = data.spec
    if data.batch is not None or spec.selects_in_call:
        return
    if data.totals is not None:
        if spec.selects or spec.needs_means:
            raise ValueError(
                f"{_why(spec, data, 'batch')} looks at the whole optimizer batch: "
                "pass batch=batch_stats(...), got totals alone"
            )
    elif isinstance(spec.control, ClipV):
        raise ValueError(
            f"control={spec.control} selects by entropy_change: "
            "pass batch=batch_stats(..., entropy_change=...), got batch=None"
        )


def _members(tokens: Tokens, batch: BatchFacts) -> Bools:
    ids = tokens.xp.array("batch.selected", batch.selected)
    return kernels_of(tokens).members(tokens, ids)


def _why(spec: PolicyLossSpec, data: LossData, name: str) -> str:
    """The part of the spec that asks for an argument, as name=value."""
    spec = spec.with_coefficients(data.coefficients)
    for part in ("control", "correction", "kl", "entropy", "surrogate"):
        only: dict[str, Any] = {part: getattr(spec, part)}
        if part == "surrogate":
            only["ratio"] = spec.ratio
        alone = replace(_NO_RATIO, **only)
        if name in alone.needs or (name == "batch" and (alone.selects or alone.needs_means)):
            return f"spec.{part}={only[part]}"
    return f"spec.ratio={spec.ratio!r}"


_NO_RATIO = PolicyLossSpec(ratio="none", surrogate=Reinforce())


def _torch_permutation(n: int) -> Int64s:
    import torch

    return np.asarray(torch.randperm(n).numpy())
