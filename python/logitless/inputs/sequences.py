"""The sequences of a call: padded rows, or packed tokens with the places where sequences end."""

from __future__ import annotations

from typing import Any

import numpy as np

from logitless.inputs.checks import shown
from logitless.inputs.tokens import Array, Int64s, Sequences


def sequences_of(
    xp: Any, shape: tuple[int, ...], like: Array, cu_seqlens: Array | None, *, on_host: bool
) -> Sequences | None:
    """None for packed tokens without cu_seqlens. Values are looked at `on_host` alone."""
    given = None if cu_seqlens is None else xp.array("cu_seqlens", cu_seqlens)
    if len(shape) == 2:
        if given is not None:
            raise ValueError(
                f"cu_seqlens goes with packed [N] inputs, got it with padded inputs {list(shape)}"
            )
        lengths = xp.lengths(shape[0], shape[1], like)
        return Sequences(lengths, shape[1], shape[0] * shape[1], xp)
    if given is None:
        return None
    if given.dtype not in (xp.int32, xp.int64) or given.ndim != 1 or not len(given):
        raise TypeError(f"cu_seqlens must be int32 [B + 1], got {shown(given)}")
    if on_host:
        _check_rise(np.asarray(given), shape[0])
    ends: Int64s = xp.cast(given, xp.int64)
    return Sequences(ends[1:] - ends[:-1], None, shape[0], xp)


def _check_rise(cu_seqlens: Array, n: int) -> None:
    # compared, not subtracted: a difference may wrap around
    (falls,) = (cu_seqlens[1:] < cu_seqlens[:-1]).nonzero()
    first, last = int(cu_seqlens[0]), int(cu_seqlens[-1])
    if first != 0 or last != n or falls.size:
        i = int(falls[0]) if falls.size else 0
        fall = f", {cu_seqlens[i]} at [{i}] and then {cu_seqlens[i + 1]}" if falls.size else ""
        raise ValueError(
            f"cu_seqlens must rise from 0 to N = {n}, each sequence whole, got {first} at [0]"
            f"{fall}, {last} at [{cu_seqlens.size - 1}]"
        )
