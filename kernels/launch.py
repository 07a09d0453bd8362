"""What the launchers share: strides of a tile, the chain's scalars, the device of a launch."""

from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

# Multiply-adds fuse: fewer roundings and a tenth fewer instructions. Triton's default is changing.
OPTIONS = {"enable_fp_fusion": True}
# None fuses, where every machine is to find the same bits.
UNFUSED = {"enable_fp_fusion": False}


class Chain(NamedTuple):
    """y = softcap * tanh(slope * (raw + bias)) with slope = pre / softcap, or raw + bias."""

    pre: float
    slope: float
    softcap: float


class Strides(NamedTuple):
    """Row i starts at element (i // rows_per_batch) * batch + (i % rows_per_batch) * row.

    Where it starts at i * row all the same, `batched` is False and kernels skip the division.
    """

    batched: bool
    batch: int
    row: int
    rows_per_batch: int


def strides_of(tile: Tensor, n: int, name: str) -> Strides:  # tile: [n, width] or [b, t, width]
    """The strides of a tile, and an error where it does not hold n rows."""
    if tile.ndim not in (2, 3) or tile.shape[:-1].numel() != n:
        raise ValueError(
            f"{name} must be [n, width] or [b, t, width] with {n} rows, got {list(tile.shape)}"
        )
    if tile.shape[-1] > 1 and tile.stride(-1) != 1:
        raise ValueError(f"{name} must have stride 1 along its columns, got {tile.stride()}")
    if tile.ndim == 2:
        return Strides(False, 0, tile.stride(0), 1)
    b, t, _ = tile.shape
    if t == 1:
        return Strides(False, 0, tile.stride(0), 1)
    follows = b == 1 or tile.stride(0) == t * tile.stride(1)
    return Strides(not follows, tile.stride(0), tile.stride(1), t)


def same_batches(a: Strides, b: Strides) -> tuple[Strides, Strides]:
    """Both of them cut into the batches of the one that has batches."""
    if a.batched == b.batched:
        return a, b
    if a.batched:
        return a, Strides(True, a.rows_per_batch * b.row, b.row, a.rows_per_batch)
    return Strides(True, b.rows_per_batch * a.row, a.row, b.rows_per_batch), b


def device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on torch's current device and stream; the tensor says which device."""
    return torch.cuda.device_of(tensor)
