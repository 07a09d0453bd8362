"""torch tensors and NumPy arrays of a call, checked and turned into the flat arrays of `Tokens`."""

from __future__ import annotations

from typing import Any

import numpy as np

from logitless.backends import registry
from logitless.backends.threads import thread_count
from logitless.backends.token_kernels.arrays import tensor_like
from logitless.backends.token_kernels.protocol import TokenKernels
from logitless.inputs.checks import is_tensor, shown
from logitless.inputs.gradients import is_traced
from logitless.inputs.sequences import sequences_of
from logitless.inputs.tokens import Array, Floats, Sequences, Tokens


def make_tokens(
    logp: Array,  # [N] or [B, T]
    advantages: Array,  # the same, or [B], [B, 1]
    mask: Array,
    *,
    kernels: TokenKernels | None = None,  # None: the CPU's
    old_logp: Array | None = None,
    entropy: Array | None = None,
    ref_logp: Array | None = None,
    rollout_logp: Array | None = None,
    entropy_change: Array | None = None,
    weights: Array | None = None,  # shaped like advantages
    old_entropy: Array | None = None,
    cu_seqlens: Array | None = None,  # int32 [B + 1]
    token_ids: Array | None = None,
    threads: int | None = None,  # None: as for logp
) -> Tokens:
    """Every array as a flat one of logp's float dtype, where the kernels compute; `token_ids`
    default to 0, 1, 2, ...
    """
    kernels = registry.token_kernels("cpu") if kernels is None else kernels
    xp = kernels.xp
    name_bad_rows(kernels, logp)
    values = xp.array("logp", logp)
    dtype = values.dtype
    if dtype not in (xp.float32, xp.float64):
        raise TypeError(f"logp must be a floating-point array, got {shown(logp)}")
    if values.ndim not in (1, 2):
        raise ValueError(
            f"logp must be packed [N] or padded [B, T], got shape {list(values.shape)}"
        )
    shape = tuple(values.shape)
    sequences = sequences_of(xp, shape, values, cu_seqlens, on_host=kernels.on_host)

    def floats(name: str, x: Array | None) -> Floats | None:
        return None if x is None else _flat(xp, name, xp.array(name, x), shape, dtype)

    def either(name: str, x: Array) -> Floats:
        return _of_tokens_or_sequences(xp, name, xp.array(name, x), shape, sequences, dtype)

    valid = xp.array("mask", mask)
    if xp.kind(valid.dtype) != "b":
        raise TypeError(f"mask must be bool, got {shown(mask)}")
    valid = xp.truths(valid)
    ids = None
    if token_ids is not None:
        ids = xp.array("token_ids", token_ids)
        if ids.dtype != xp.int64:
            raise TypeError(f"token_ids must be int64, got {shown(token_ids)}")
        ids = _flat(xp, "token_ids", ids, shape, ids.dtype)
    return Tokens(
        shape=shape,
        mask=_flat(xp, "mask", valid, shape, valid.dtype),
        logp=xp.flat(values, dtype),
        advantages=either("advantages", advantages),
        old_logp=floats("old_logp", old_logp),
        entropy=floats("entropy", entropy),
        ref_logp=floats("ref_logp", ref_logp),
        rollout_logp=floats("rollout_logp", rollout_logp),
        entropy_change=floats("entropy_change", entropy_change),
        weights=None if weights is None else either("weights", weights),
        old_entropy=floats("old_entropy", old_entropy),
        given_ids=ids,
        sequences=sequences,
        kernels=kernels,
        threads=thread_count(logp) if threads is None else threads,
    )


def _flat(xp: Any, name: str, x: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    if x.shape != shape:
        raise ValueError(f"{name} must be shaped like logp, {list(shape)}, got {list(x.shape)}")
    if x.dtype != dtype and xp.kind(x.dtype) != xp.kind(dtype):
        raise TypeError(f"{name} must be a floating-point array, got {shown(x)}")
    return xp.flat(x, dtype)


def _of_tokens_or_sequences(
    xp: Any, name: str, x: Array, shape: tuple[int, ...], sequences: Sequences | None, dtype: Any
) -> Floats:
    if x.shape == shape:
        return _flat(xp, name, x, shape, dtype)
    number = None if sequences is None else sequences.number
    if sequences is None or tuple(x.shape) not in ((number,), (number, 1)):
        raise ValueError(
            f"{name} must be shaped like logp, {list(shape)}, or per sequence [B] or [B, 1] "
            f"(packed: with cu_seqlens), got {list(x.shape)}"
        )
    x = x.reshape(-1)[sequences.of_token].reshape(shape)
    return _flat(xp, name, x, shape, dtype)


def name_bad_rows(kernels: TokenKernels, logp: Array) -> None:
    """Where the kernels are the CPU's, the values of a device are waited for. What made a NaN of
    one of them, an op on a bad row, is to be named before anyone looks at them."""
    if kernels.on_host and is_tensor(logp):
        from logitless.backends.row_kernels.errors import raise_now

        raise_now(logp.device)


def name_flagged(logp: Array) -> None:
    """At the start of a loss: what an earlier call flagged on the device is named if it is known by
    now. Where no row kernel is called nobody else asks."""
    if is_tensor(logp) and not is_traced(logp):
        from logitless.backends.row_kernels.errors import raise_found

        raise_found(logp.device)


def make_ids(sequence_ids: Array, positions: Array, max_length: int) -> Array:
    """sequence_ids * max_length + positions, int64. On a device -1 of what the host raises for."""
    kernels = registry.token_kernels_of(sequence_ids)
    xp = kernels.xp
    sequences, places = xp.array("sequence_ids", sequence_ids), xp.array("positions", positions)
    for name, x in {"sequence_ids": sequences, "positions": places}.items():
        if xp.kind(x.dtype) not in "iu":
            raise TypeError(f"{name} must be integers, got {shown(x)}")
    if sequences.ndim == 1 and (places.ndim == 2 or places.shape != sequences.shape):
        sequences = sequences[:, None]
    if not _fit(sequences.shape, places.shape):
        raise ValueError(
            f"sequence_ids must be [B], [B, 1] or the shape of positions, {list(places.shape)}, "
            f"got {list(sequence_ids.shape)}"
        )
    most = 2**63 // max_length
    if not kernels.on_host:
        known = (sequences >= 0) & (sequences < most) & (places >= 0) & (places < max_length)
        ids = xp.cast(sequences, xp.int64) * max_length + xp.cast(places, xp.int64)
        return ids.where(known, -1)
    if places.size and not (places.min() >= 0 and places.max() < max_length):
        raise ValueError(
            f"positions must be in [0, max_length) = [0, {max_length}), "
            f"got {places.min()} to {places.max()}"
        )
    if sequences.size and not (sequences.min() >= 0 and sequences.max() < most):
        raise ValueError(
            "sequence_ids must be in [0, 2^63 / max_length), "
            f"got {sequences.min()} to {sequences.max()}"
        )
    ids = sequences.astype(np.int64) * np.int64(max_length) + places.astype(np.int64)
    return tensor_like(ids, sequence_ids) if is_tensor(sequence_ids) else ids


def _fit(sequences: tuple[int, ...], places: tuple[int, ...]) -> bool:
    """[B, 1] with [T] or [B, T], or of one shape."""
    if sequences == places:
        return len(places) in (1, 2)
    column = len(sequences) == 2 and sequences[1] == 1
    return column and (len(places) == 1 or (len(places) == 2 and sequences[0] == places[0]))
