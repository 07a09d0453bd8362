"""Ids of tokens from those of their sequences and their positions."""

from __future__ import annotations

import numpy as np

from logitless.backends.arrays import to_numpy
from logitless.inputs.checks import is_tensor, shown
from logitless.inputs.tokens import Array


def make_ids(sequence_ids: Array, positions: Array, max_length: int) -> Array:
    """sequence_ids * max_length + positions, int64."""
    sequences, places = (
        to_numpy(name, x)
        for name, x in {"sequence_ids": sequence_ids, "positions": positions}.items()
    )
    for name, x in {"sequence_ids": sequences, "positions": places}.items():
        if x.dtype.kind not in "iu":
            raise TypeError(f"{name} must be integers, got {shown(x)}")
    if sequences.ndim == 1 and (places.ndim == 2 or places.shape != sequences.shape):
        sequences = sequences[:, None]
    if not _fit(sequences.shape, places.shape):
        raise ValueError(
            f"sequence_ids must be [B], [B, 1] or the shape of positions, {list(places.shape)}, "
            f"got {list(sequence_ids.shape)}"
        )
    if places.size and not (places.min() >= 0 and places.max() < max_length):
        raise ValueError(
            f"positions must be in [0, max_length) = [0, {max_length}), "
            f"got {places.min()} to {places.max()}"
        )
    if sequences.size and not (sequences.min() >= 0 and sequences.max() < 2**63 // max_length):
        raise ValueError(
            "sequence_ids must be in [0, 2^63 / max_length), "
            f"got {sequences.min()} to {sequences.max()}"
        )
    ids = sequences.astype(np.int64) * np.int64(max_length) + places.astype(np.int64)
    if is_tensor(sequence_ids):
        import torch

        return torch.from_numpy(ids).to(sequence_ids.device)
    return ids


def _fit(sequences: tuple[int, ...], places: tuple[int, ...]) -> bool:
    """[B, 1] with [T] or [B, T], or of one shape."""
    if sequences == places:
        return len(places) in (1, 2)
    column = len(sequences) == 2 and sequences[1] == 1
    return column and (len(places) == 1 or (len(places) == 2 and sequences[0] == places[0]))
