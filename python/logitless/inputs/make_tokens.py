"""torch tensors and NumPy arrays of a call, checked and turned into the flat arrays of `Tokens`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from logitless import _core
from logitless.inputs.checks import is_tensor, shown
from logitless.inputs.tokens import Floats, Int64s, Sequences, Tokens

if TYPE_CHECKING:
    import torch

    Array: TypeAlias = torch.Tensor | npt.NDArray[Any]
else:
    Array = Any


# Entries of a mask from which it is copied only where it has to be.
MANY = 1 << 15


def thread_count(x: object) -> int:
    """How many threads work on an array: torch.get_num_threads() on a tensor; on a NumPy array
    LOGITLESS_NUM_THREADS where it is set, else torch.get_num_threads() where torch is loaded, else
    as many as there are CPUs that this process may run on. Results do not depend on it."""
    torch = sys.modules.get("torch")
    if torch is None or (not is_tensor(x) and os.environ.get("LOGITLESS_NUM_THREADS")):
        return _core.runtime.default_threads()
    return int(torch.get_num_threads())


def is_traced(x: object) -> bool:
    """Whether x is a tensor in a graph that torch.compile traces, whose values nobody knows."""
    return is_tensor(x) and sys.modules["torch"].compiler.is_compiling()


def refuse_grad(**data: Array | None) -> None:
    """What is data may not require a gradient: none would ever flow into it."""
    for name, x in data.items():
        if x is not None and is_tensor(x) and x.requires_grad:
            raise ValueError(
                f"{name} is data and gets no gradient, got a tensor with requires_grad=True; "
                f"pass {name}.detach()"
            )


def to_numpy(name: str, x: Array) -> npt.NDArray[Any]:
    """The values on the CPU, 16-bit floats widened to float32; no copy where none is needed."""
    if is_tensor(x):
        tensor = x.detach().cpu()
        narrow = tensor.is_floating_point() and tensor.element_size() < 4
        if not narrow:
            return np.asarray(tensor.numpy())
        from logitless.backends.forked import without_lost_threads

        with without_lost_threads():
            return np.asarray(tensor.float().numpy())
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{name} must be a torch tensor or a NumPy array, got {shown(x)}")
    return x.astype(np.float32) if x.dtype == np.float16 else x


def truths(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The same with bytes of 0 and 1 alone: a view of other bytes as bool holds any, all of them
    true, and sums and bitwise operations take them as they are."""
    held = mask.view(np.uint8)
    # looking costs less than a copy where there are many, and more where there are few
    return mask if held.size > MANY and held.max() <= 1 else held.astype(np.bool_)


def make_tokens(
    logp: Array,  # [N] or [B, T]
    advantages: Array,  # the same, or [B], [B, 1]
    mask: Array,
    *,
    old_logp: Array | None = None,
    entropy: Array | None = None,
    ref_logp: Array | None = None,
    rollout_logp: Array | None = None,
    entropy_change: Array | None = None,
    cu_seqlens: Array | None = None,  # int32 [B + 1]
    token_ids: Array | None = None,
) -> Tokens:
    """Every array as a flat one of logp's float dtype; `token_ids` default to 0, 1, 2, ...

    A device's values are waited for here. What made a NaN of one of them, an op on a bad row, is to
    be named before anyone looks at them.
    """
    if is_tensor(logp):
        from logitless.backends.row_errors import raise_now

        raise_now(logp.device)
    values = to_numpy("logp", logp)
    if values.dtype not in (np.float32, np.float64):
        raise TypeError(f"logp must be a floating-point array, got {shown(logp)}")
    if values.ndim not in (1, 2):
        raise ValueError(
            f"logp must be packed [N] or padded [B, T], got shape {list(values.shape)}"
        )
    shape = values.shape
    sequences = _sequences(
        shape, None if cu_seqlens is None else to_numpy("cu_seqlens", cu_seqlens)
    )

    def floats(name: str, x: Array | None) -> Floats | None:
        return None if x is None else _flat(name, to_numpy(name, x), shape, values.dtype)

    valid = to_numpy("mask", mask)
    if valid.dtype != np.bool_:
        raise TypeError(f"mask must be bool, got {shown(mask)}")
    valid = truths(valid)
    ids = None
    if token_ids is not None:
        ids = to_numpy("token_ids", token_ids)
        if ids.dtype != np.int64:
            raise TypeError(f"token_ids must be int64, got {shown(token_ids)}")
        ids = _flat("token_ids", ids, shape, ids.dtype)
    return Tokens(
        shape=shape,
        mask=_flat("mask", valid, shape, valid.dtype),
        logp=np.ascontiguousarray(values).reshape(-1),
        advantages=_advantages(to_numpy("advantages", advantages), shape, sequences, values.dtype),
        old_logp=floats("old_logp", old_logp),
        entropy=floats("entropy", entropy),
        ref_logp=floats("ref_logp", ref_logp),
        rollout_logp=floats("rollout_logp", rollout_logp),
        entropy_change=floats("entropy_change", entropy_change),
        given_ids=ids,
        sequences=sequences,
        threads=thread_count(logp),
    )


def _flat(
    name: str, x: npt.NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    if x.shape != shape:
        raise ValueError(f"{name} must be shaped like logp, {list(shape)}, got {list(x.shape)}")
    if x.dtype.kind != dtype.kind:
        raise TypeError(f"{name} must be a floating-point array, got {shown(x)}")
    # what float32 cannot hold is infinite there, and named where the mask is true
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(x, dtype).reshape(-1)


def _sequences(shape: tuple[int, ...], cu_seqlens: npt.NDArray[Any] | None) -> Sequences | None:
    if len(shape) == 2:
        if cu_seqlens is not None:
            raise ValueError(
                f"cu_seqlens goes with packed [N] inputs, got it with padded inputs {list(shape)}"
            )
        return Sequences(np.full(shape[0], shape[1], np.int64), shape[1])
    if cu_seqlens is None:
        return None
    if cu_seqlens.dtype not in (np.int32, np.int64) or cu_seqlens.ndim != 1 or not cu_seqlens.size:
        raise TypeError(f"cu_seqlens must be int32 [B + 1], got {shown(cu_seqlens)}")
    # compared, not subtracted: a difference may wrap around
    falls = np.flatnonzero(cu_seqlens[1:] < cu_seqlens[:-1])
    first, last, n = int(cu_seqlens[0]), int(cu_seqlens[-1]), shape[0]
    if first != 0 or last != n or falls.size:
        i = int(falls[0]) if falls.size else 0
        fall = f", {cu_seqlens[i]} at [{i}] and then {cu_seqlens[i + 1]}" if falls.size else ""
        raise ValueError(
            f"cu_seqlens must rise from 0 to N = {n}, each sequence whole, got {first} at [0]"
            f"{fall}, {last} at [{cu_seqlens.size - 1}]"
        )
    ends: Int64s = cu_seqlens.astype(np.int64)
    return Sequences(ends[1:] - ends[:-1], None)


def _advantages(
    x: npt.NDArray[Any],
    shape: tuple[int, ...],
    sequences: Sequences | None,
    dtype: np.dtype[Any],
) -> Floats:
    per_sequence = () if sequences is None else ((sequences.number,), (sequences.number, 1))
    if sequences is not None and x.shape != shape and x.shape in per_sequence:
        x = x.reshape(-1)[sequences.of_token].reshape(shape)
    elif x.shape != shape:
        raise ValueError(
            f"advantages must be shaped like logp, {list(shape)}, or per sequence [B] or [B, 1] "
            f"(packed: with cu_seqlens), got {list(x.shape)}"
        )
    return _flat("advantages", x, shape, dtype)


def ids_of(selected: Array) -> Int64s:
    """Selected token ids, sorted, as an int64 array."""
    return to_numpy("batch.selected", selected)
