"""Per-token statistics of a head call on NumPy arrays: the forward alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from logitless.backends import registry
from logitless.backends.row_kernels.rows import STATE
from logitless.inputs.adapter import Adapter
from logitless.inputs.checks import shown
from logitless.inputs.options import ComputeOptions, LogitTransform
from logitless.inputs.sampling_mask import SamplingMask
from logitless.ops.head.planner.plan import cached_plan
from logitless.ops.rows.numpy_rows import numpy_masked, numpy_rows, numpy_stats
from logitless.ops.rows.outputs import TokenStats, split_extras, with_nothing_dropped
from logitless.ops.rows.selected import with_selected


def refuse_for_numpy(compute: ComputeOptions) -> None:
    """What NumPy inputs have no use for."""
    plain = ComputeOptions()
    for name in (
        "logits_dtype", "batch_invariant", "tail_mass", "tail_entries", "active_capacity"
    ):  # fmt: skip
        value, default = getattr(compute, name), getattr(plain, name)
        if value is not default and not (name.startswith("tail_") and value == default):
            raise ValueError(
                f"{name} must be left at its default for NumPy inputs, got {shown(value)}"
            )


def numpy_statistics(
    op: str,
    hidden: Any,  # [..., H]
    weight: Any,  # [V, H]
    targets: Any,
    mask: Any,
    head: LogitTransform,
    compute: ComputeOptions,
    shape: tuple[int, ...],
    extras: tuple[str, ...] = (),
    sampling_mask: SamplingMask | None = None,
    adapters: tuple[Adapter, ...] = (),
) -> TokenStats:
    refuse_for_numpy(compute)
    of_rows, _ = split_extras(extras)
    flat = hidden.reshape(-1, hidden.shape[-1])
    rows = numpy_rows(op, targets, mask, head, flat.dtype)
    if sampling_mask is not None:
        sets = sampling_mask.sets(rows.targets, rows.mask, len(weight))

        def whole(others: Any, of_rows: tuple[str, ...]) -> TokenStats:
            return numpy_statistics(
                op, hidden, weight, targets, others.reshape(shape), head, compute, shape, of_rows,
                adapters=adapters,
            )  # fmt: skip

        values = np.empty(len(sets.ids), np.float64 if flat.dtype == np.float64 else np.float32)
        kernels = rows.backend.sets
        assert kernels is not None
        served = flat[sets.places]
        kernels.logits(
            sets.offsets, sets.ids, values, hidden=served, weight=np.ascontiguousarray(weight),
            threads=rows.threads,
        )  # fmt: skip
        for low, up in low_ranks(served, adapters):
            added = np.empty_like(values)
            kernels.logits(
                sets.offsets, sets.ids, added, hidden=low, weight=np.ascontiguousarray(up),
                threads=rows.threads,
            )  # fmt: skip
            values += added
        return numpy_masked(rows, sets, values, len(weight), shape, extras, whole)
    plan = cached_plan(
        registry.get("cpu").machine("cpu"), len(flat), flat.shape[1], len(weight), flat.dtype,
        compute.memory_budget, logits_dtype=flat.dtype, backward=False,
        adapter_rank=sum(len(x.A) for x in adapters),
    )  # fmt: skip
    index = None if rows.mask is None else np.flatnonzero(rows.mask)
    flat, rows = flat if index is None else flat[index], rows.gather(index)
    lows = low_ranks(flat, adapters)
    state = np.empty((rows.n, STATE))
    scratch = np.empty(plan.rows * plan.columns, flat.dtype)
    for start in range(0, len(weight), plan.columns):
        w = weight[start : start + plan.columns]
        for first in range(0, rows.n, plan.rows):
            chunk = slice(first, min(first + plan.rows, rows.n))
            part = rows.part(chunk)
            tile = scratch[: part.n * len(w)].reshape(part.n, len(w))
            np.matmul(flat[chunk], w.T, out=tile)
            for low, up in lows:
                tile += low[chunk] @ up[start : start + plan.columns].T
            part.forward(tile, state[chunk], start=start, first=start == 0, extras=bool(of_rows))
    stats = numpy_stats(rows, state, len(weight), flat.dtype, of_rows, shape, index)
    return with_nothing_dropped(stats, extras)


def numpy_selected(
    stats: TokenStats,
    hidden: Any,  # [..., H]
    weight: Any,  # [V, H]
    ids: Any,  # [K]; None: nothing is asked for
    mask: Any,
    head: LogitTransform,
    adapters: tuple[Adapter, ...],
) -> TokenStats:
    """With the log-probs of these ids."""
    if ids is None:
        return stats
    raw = hidden @ weight[ids].T
    for low, up in low_ranks(hidden, adapters):
        raw = raw + low @ up[ids].T
    return with_selected(stats, raw, ids, mask, head)


def low_ranks(hidden: Any, adapters: tuple[Adapter, ...]) -> list[tuple[Any, Any]]:
    """(scale * hidden A^T, B) of each, in the dtype of hidden."""
    return [
        ((hidden @ A.T * scale).astype(hidden.dtype), B.astype(hidden.dtype, copy=False))
        for A, B, scale in adapters
    ]
