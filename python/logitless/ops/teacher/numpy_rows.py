"""NumPy arrays of a student and a teacher at the kernels of the CPU: the forward alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from logitless.backends import registry
from logitless.backends.row_kernels.rows import STATE, Rows
from logitless.inputs.checks import shown
from logitless.inputs.naming import of_teacher
from logitless.inputs.options import ComputeOptions
from logitless.ops.head.planner.plan import cached_plan
from logitless.ops.rows.numpy_rows import numpy_rows
from logitless.ops.teacher.parse import Heads

# calls its argument with (first column, tile, teacher's tile) of every tile
_Tiles = Callable[[Callable[[int, Any, Any], None]], None]


def numpy_divergence(
    op: str, logits: Any, teacher_logits: Any, mask: Any, heads: Heads, kind: str, beta: float
) -> dict[str, Any]:
    """Flat results of [..., V]."""
    flat = (np.ascontiguousarray(x).reshape(-1, x.shape[-1]) for x in (logits, teacher_logits))
    own, other = flat
    rows = _rows(op, len(own), mask, heads, own.dtype)
    return _results(*rows, lambda fold: fold(0, own, other), own.dtype, kind, beta)


def numpy_linear_divergence(
    op: str,
    student: tuple[Any, Any],  # hidden [N, H], weight [V, H]
    teacher: tuple[Any, Any],
    mask: Any,
    heads: Heads,
    kind: str,
    beta: float,
    compute: ComputeOptions,
) -> dict[str, Any]:
    """Flat results, by tiles of all rows."""
    if compute.logits_dtype is not None:
        raise ValueError(
            f"logits_dtype must be left at its default for NumPy inputs, got "
            f"{shown(compute.logits_dtype)}"
        )
    (hidden, weight), (others, other_weight) = student, teacher
    dtype, n, vocab = hidden.dtype, len(hidden), len(weight)
    index = None if mask is None else np.flatnonzero(mask)
    if index is not None:
        hidden, others = hidden[index], others[index]
    own, other = (x.gather(index) for x in _rows(op, n, mask, heads, dtype))
    plan = cached_plan(
        registry.get("cpu").machine("cpu"), len(hidden), max(hidden.shape[1], others.shape[1]),
        vocab, max(dtype, others.dtype, key=lambda x: x.itemsize), compute.memory_budget,
        backward=False, heads=2,
    )  # fmt: skip

    def tiles(fold: Callable[[int, Any, Any], None]) -> None:
        for start in range(0, vocab, plan.columns):
            part = slice(start, start + plan.columns)
            fold(start, hidden @ weight[part].T, others @ other_weight[part].T)

    found = _results(own, other, tiles, dtype, kind, beta, index)
    if index is None:
        return found
    full = {name: np.zeros(n, values.dtype) for name, values in found.items()}
    for name, values in found.items():
        full[name][index] = values
    return full


def _rows(op: str, n: int, mask: Any, heads: Heads, dtype: Any) -> tuple[Rows, Rows]:
    targets = np.zeros(n, np.int64)
    own = numpy_rows(op, targets, mask, heads.student, dtype)
    with of_teacher():
        return own, numpy_rows(op, targets, mask, heads.teacher, dtype)


def _results(
    rows: Rows,
    teacher: Rows,
    tiles: _Tiles,
    dtype: Any,
    kind: str,
    beta: float,
    index: Any = None,
) -> dict[str, Any]:
    assert rows.backend.divergence is not None
    kernels, state = rows.backend.divergence(rows, teacher), np.empty((rows.n, STATE))

    def fold(start: int, *both: Any) -> None:
        kernels.forward(*both, state, start=start, first=start == 0)

    tiles(fold)
    wide = np.float64 if dtype == np.float64 else np.float32
    names = ("entropy", "teacher_entropy", "reverse_kl", "forward_kl")
    found: dict[str, Any] = {name: np.empty(rows.n, wide) for name in names}
    kernels.finalize(state, row_ids=index, **found)
    if kind != "jsd":
        return {"divergence": found[kind].copy(), **found}
    sums = np.zeros((rows.n, 2))

    def mix(start: int, *both: Any) -> None:
        kernels.mix(*both, state, sums, beta=beta, start=start, first=start == 0)

    tiles(mix)
    mixture = np.maximum((1 - beta) * sums[:, 0] + beta * sums[:, 1], 0).astype(wide)
    return {"divergence": mixture, **found}
