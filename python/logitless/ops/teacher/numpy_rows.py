"""NumPy arrays of a student and a teacher at the kernels of the CPU: the forward alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from logitless.backends import registry
from logitless.backends.row_kernels.rows import STATE, Rows
from logitless.backends.threads import thread_count
from logitless.inputs.adapter import Adapter
from logitless.inputs.naming import of_teacher
from logitless.inputs.options import ComputeOptions
from logitless.inputs.records import changed
from logitless.inputs.sampling_mask import SamplingMask, Sets
from logitless.ops.head.numpy_statistics import low_ranks, refuse_for_numpy
from logitless.ops.head.planner.plan import cached_plan
from logitless.ops.rows.numpy_rows import numpy_rows
from logitless.ops.teacher.noise import Noise
from logitless.ops.teacher.parse import Heads

if TYPE_CHECKING:
    from logitless.backends.base import DivergenceKernels


def _kernels(rows: Rows, teacher: Rows) -> DivergenceKernels:
    assert rows.backend.divergence is not None
    return rows.backend.divergence(rows, teacher)


class _Tiles(NamedTuple):
    """The logits of rows by tiles."""

    # calls its argument with (first column, tile, teacher's tile) of every tile
    each: Callable[[Callable[[int, Any, Any], None]], None]

    def forward(self, rows: Rows, teacher: Rows, state: Any) -> None:
        kernels = _kernels(rows, teacher)

        def fold(start: int, own: Any, other: Any) -> None:
            kernels.forward(own, other, state, start=start, first=start == 0)

        self.each(fold)

    def mix(self, rows: Rows, teacher: Rows, state: Any, sums: Any, beta: float) -> None:
        kernels = _kernels(rows, teacher)

        def fold(start: int, own: Any, other: Any) -> None:
            kernels.mix(own, other, state, sums, beta=beta, start=start, first=start == 0)

        self.each(fold)


class _Entries(NamedTuple):
    """The logits of rows at their sets, with bias."""

    offsets: Any
    columns: Any
    own: Any
    other: Any

    def forward(self, rows: Rows, teacher: Rows, state: Any) -> None:
        assert rows.backend.sets is not None
        rows.backend.sets.pair_forward(rows, teacher, *self, state=state)

    def mix(self, rows: Rows, teacher: Rows, state: Any, sums: Any, beta: float) -> None:
        assert rows.backend.sets is not None
        rows.backend.sets.pair_mix(rows, teacher, *self, state=state, sums=sums, beta=beta)


def numpy_divergence(
    op: str,
    logits: Any,
    teacher_logits: Any,
    mask: Any,
    heads: Heads,
    kind: str,
    beta: float,
    sampling_mask: SamplingMask | None = None,
    noise: Noise | None = None,
) -> dict[str, Any]:
    """Flat results of [..., V]."""
    flat = (np.ascontiguousarray(x).reshape(-1, x.shape[-1]) for x in (logits, teacher_logits))
    own, other = flat
    if sampling_mask is not None:

        def whole(others: Any) -> dict[str, Any]:
            return numpy_divergence(op, own, other, others, heads, kind, beta, None, noise)

        def entries(sets: Sets) -> tuple[Any, Any]:
            return own[sets.rows, sets.ids], other[sets.rows, sets.ids]

        return _masked(
            op, sampling_mask, mask, heads, own.dtype, own.shape[1], kind, beta, noise, whole,
            entries,
        )  # fmt: skip
    rows = _rows(op, len(own), mask, heads, own.dtype, noise)
    return _results(*rows, _Tiles(lambda fold: fold(0, own, other)), own.dtype, kind, beta)


def numpy_linear_divergence(
    op: str,
    student: tuple[Any, Any],  # hidden [N, H], weight [V, H]
    teacher: tuple[Any, Any],
    mask: Any,
    heads: Heads,
    kind: str,
    beta: float,
    compute: ComputeOptions,
    sampling_mask: SamplingMask | None = None,
    noise: Noise | None = None,
    adapters: tuple[Adapter, ...] = (),  # of the student's
) -> dict[str, Any]:
    """Flat results, by tiles of all rows."""
    refuse_for_numpy(compute)
    (hidden, weight), (others, other_weight) = student, teacher
    dtype, n, vocab = hidden.dtype, len(hidden), len(weight)
    if sampling_mask is not None:

        def whole(others_mask: Any) -> dict[str, Any]:
            return numpy_linear_divergence(
                op, student, teacher, others_mask, heads, kind, beta, compute, None, noise, adapters
            )

        def entries(sets: Sets) -> tuple[Any, Any]:
            own = _products(hidden, weight, sets)
            for low, up in low_ranks(hidden, adapters):
                own += _products(low, up, sets)
            return own, _products(others, other_weight, sets)

        return _masked(
            op, sampling_mask, mask, heads, dtype, vocab, kind, beta, noise, whole, entries
        )
    index = None if mask is None else np.flatnonzero(mask)
    if index is not None:
        hidden, others = hidden[index], others[index]
    own, other = (x.gather(index) for x in _rows(op, n, mask, heads, dtype, noise))
    wider = max(dtype, others.dtype, key=lambda x: x.itemsize)
    plan = cached_plan(
        registry.get("cpu").machine("cpu"), len(hidden), max(hidden.shape[1], others.shape[1]),
        vocab, wider, compute.memory_budget, logits_dtype=wider, backward=False, heads=2,
        adapter_rank=sum(len(x.A) for x in adapters),
    )  # fmt: skip
    lows = low_ranks(hidden, adapters)

    def tiles(fold: Callable[[int, Any, Any], None]) -> None:
        for start in range(0, vocab, plan.columns):
            part = slice(start, start + plan.columns)
            tile = hidden @ weight[part].T
            for low, up in lows:
                tile += low @ up[part].T
            fold(start, tile, others @ other_weight[part].T)

    found = _results(own, other, _Tiles(tiles), dtype, kind, beta, index)
    if index is None:
        return found
    full = {name: np.zeros(n, values.dtype) for name, values in found.items()}
    for name, values in found.items():
        full[name][index] = values
    return full


def _masked(
    op: str,
    sampling_mask: SamplingMask,
    mask: Any,
    heads: Heads,
    dtype: Any,
    vocab: int,
    kind: str,
    beta: float,
    noise: Noise | None,
    whole: Callable[[Any], dict[str, Any]],  # of the rows of a mask [N]
    entries: Callable[[Sets], tuple[Any, Any]],  # the logits of both at sets, without bias
) -> dict[str, Any]:
    """Rows that have a set beside those that have none."""
    n = len(sampling_mask)
    others = np.ones(n, bool) if mask is None else mask.reshape(-1).copy()
    sets = sampling_mask.sets(None, others, vocab)
    others[sets.places] = False
    found = whole(others)
    wide = np.float64 if dtype == np.float64 else np.float32
    rows, values = [], []
    for side, raw in zip(_rows(op, n, mask, heads, dtype, noise), entries(sets), strict=True):
        bias = 0 if side.bias is None else side.bias[sets.ids]
        values.append((raw.astype(wide) + bias).astype(wide, copy=False))
        rows.append(changed(side.gather(sets.places), bias=None))
    own, other = rows
    some = _results(
        own, other, _Entries(sets.offsets, sets.ids, *values), dtype, kind, beta, sets.places
    )
    for name, part in some.items():
        found[name][sets.places] = part
    return found


def _products(hidden: Any, weight: Any, sets: Sets) -> Any:
    """hidden[row] . weight[id] of every entry."""
    kernels = registry.get("cpu").sets
    assert kernels is not None
    values = np.empty(len(sets.ids), np.float64 if hidden.dtype == np.float64 else np.float32)
    served = np.ascontiguousarray(hidden[sets.places])
    kernels.logits(
        sets.offsets, sets.ids, values, hidden=served, weight=np.ascontiguousarray(weight),
        threads=thread_count(hidden),
    )  # fmt: skip
    return values


def _rows(
    op: str, n: int, mask: Any, heads: Heads, dtype: Any, noise: Noise | None
) -> tuple[Rows, Rows]:
    targets = np.zeros(n, np.int64)
    own = numpy_rows(op, targets, mask, heads.student, dtype)
    with of_teacher():
        other = numpy_rows(op, targets, mask, heads.teacher, dtype)
    return own, other if noise is None else changed(other, noise=noise.of_arrays(n, mask))


def _results(
    rows: Rows,
    teacher: Rows,
    source: _Tiles | _Entries,
    dtype: Any,
    kind: str,
    beta: float,
    index: Any = None,
) -> dict[str, Any]:
    kernels, state = _kernels(rows, teacher), np.empty((rows.n, STATE))
    source.forward(rows, teacher, state)
    wide = np.float64 if dtype == np.float64 else np.float32
    names = ("entropy", "teacher_entropy", "reverse_kl", "forward_kl")
    found: dict[str, Any] = {name: np.empty(rows.n, wide) for name in names}
    kernels.finalize(state, row_ids=index, **found)
    if kind != "jsd":
        return {"divergence": found[kind].copy(), **found}
    sums = np.zeros((rows.n, 2))
    source.mix(rows, teacher, state, sums, beta)
    mixture = np.maximum((1 - beta) * sums[:, 0] + beta * sums[:, 1], 0).astype(wide)
    return {"divergence": mixture, **found}
