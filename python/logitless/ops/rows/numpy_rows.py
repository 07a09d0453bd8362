"""NumPy arrays at the row kernels of the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from logitless.backends import registry
from logitless.backends.row_kernels.rows import STATE, Rows
from logitless.backends.threads import thread_count
from logitless.inputs.options import DROPPED, FULL, STATISTICS, LogitTransform
from logitless.inputs.records import changed
from logitless.inputs.sampling_mask import Sets
from logitless.inputs.scaling import check_scaling, check_temperatures
from logitless.ops.rows.outputs import (
    DIFFERENTIABLE,
    TokenStats,
    stats_of,
    with_nothing_dropped,
)


def numpy_rows(op: str, targets: Any, mask: Any, head: LogitTransform, dtype: Any) -> Rows:
    """The rows of a call on NumPy arrays, which the CPU's backend serves."""
    flat_mask = None if mask is None else np.ascontiguousarray(mask).reshape(-1)
    wide = dtype == np.float64
    check_scaling(op, head, wide)
    row_scale, scale = None, head.numerator
    if isinstance(head.temperature, (int, float)):
        scale = scale / float(head.temperature)
    else:
        temperature = np.asarray(head.temperature, np.float64).reshape(-1)
        check_temperatures(op, temperature, flat_mask, head.logit_scale, head.softcap, wide)
        row_scale = scale / temperature
    compute = np.float64 if wide else np.float32
    bias = None if head.bias is None else np.ascontiguousarray(head.bias, compute)
    flat_targets = np.ascontiguousarray(targets.reshape(-1), np.int64)
    n = len(flat_targets)
    threads = thread_count(targets)
    return Rows(
        registry.get("cpu"), n, flat_targets, flat_mask, row_scale, scale, bias, head.pre, head.cap,
        threads,
    )  # fmt: skip


def numpy_stats(
    rows: Rows,
    state: Any,
    vocab: int,
    dtype: Any,
    extras: tuple[str, ...],
    shape: tuple[int, ...],
    index: Any = None,
) -> TokenStats:
    """From the states over all columns; `index` says where gathered rows belong."""
    out_dtype = np.float64 if dtype == np.float64 else np.float32
    names = (*DIFFERENTIABLE, *(name for name in STATISTICS if name in extras))
    out: dict[str, Any] = {name: np.empty(len(state), out_dtype) for name in names}
    if "argmax" in extras:
        out["argmax"] = np.empty(len(state), np.int64)
    rows.finalize(state, vocab, row_ids=index, **out)
    if index is not None:
        for name, values in out.items():
            out[name] = np.full(math.prod(shape), -1 if name == "argmax" else 0, values.dtype)
            out[name][index] = values
    return stats_of({name: array.reshape(shape) for name, array in out.items()}, extras)


def numpy_masked(
    rows: Rows,
    sets: Sets,
    values: Any,  # [entries] logits, without bias
    vocab: int,
    shape: tuple[int, ...],
    extras: tuple[str, ...],
    whole: Callable[[Any, tuple[str, ...]], TokenStats],  # of the rows of a mask [N]
) -> TokenStats:
    """Rows that have a set beside those that have none."""
    of_rows = tuple(name for name in extras if name not in (*FULL, *DROPPED))
    active = np.ones(rows.n, bool) if rows.mask is None else rows.mask
    others, full = active.copy(), any(name in FULL for name in extras)
    others[sets.places] = False
    base = whole(active if full else others, of_rows)
    wide = np.float64 if values.dtype == np.float64 else np.float32
    values = values.astype(wide)
    if rows.bias is not None:
        values = values + rows.bias[sets.ids]
    of_sets = changed(rows.gather(sets.places), bias=None)
    kernels, state = rows.backend.sets, np.empty((of_sets.n, STATE))
    assert kernels is not None
    csr = (sets.offsets, sets.ids, values)
    kernels.forward(of_sets, *csr, state=state, extras=bool(of_rows))
    found = numpy_stats(of_sets, state, vocab, wide, of_rows, shape, sets.places)
    has = (active & ~others).reshape(shape)
    both = ((*stats[:3], *stats.extras.values()) for stats in (found, base))
    logp, entropy, lse, *more = (np.where(has, a, b) for a, b in zip(*both, strict=True))
    known = dict(zip(of_rows, more, strict=True))
    if full:
        mass = np.where(has, np.minimum(np.exp(found.lse - base.lse), 1), active.reshape(shape))
        known |= {"kept_mass": mass.astype(wide), "full_logp": base.logp}
        known["full_entropy"] = base.entropy
    return with_nothing_dropped(TokenStats(logp, entropy, lse, known), extras)
