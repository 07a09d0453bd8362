"""A weight and the B of an adapter side by side: logits = [hidden, low] [weight, up]^T, one product
a tile, with low = scale * hidden A^T."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

from logitless.ops.head.gemm import GradientSum


class Joined:
    """[weight, up] as a matrix of V rows, of which a tile's alone are ever held.

    It has of a tensor what the engine asks of a weight. A slice is another of the kind; `to` writes
    its rows where those of the slice before were, which are then gone.
    """

    def __init__(self, weight: Tensor, up: Tensor, memory: list[Tensor] | None = None) -> None:
        self.weight, self.up = weight, up  # [V, H], [V, r]
        self.memory: list[Tensor] = [] if memory is None else memory
        self.dtype, self.device, self.itemsize = weight.dtype, weight.device, weight.itemsize

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1] + self.up.shape[1]

    @property
    def columns(self) -> tuple[slice, slice]:
        """Those of weight and of up."""
        width = self.weight.shape[1]
        return slice(width), slice(width, None)

    def __len__(self) -> int:
        return self.weight.shape[0]

    def __getitem__(self, rows: slice) -> Joined:
        return Joined(self.weight[rows], self.up[rows], self.memory)

    def to(self, dtype: torch.dtype) -> Tensor:
        rows, columns = self.shape
        size = rows * columns
        if not self.memory or self.memory[0].numel() < size or self.memory[0].dtype != dtype:
            self.memory[:] = [self.new_empty(size, dtype=dtype)]
        out = self.memory[0][:size].view(rows, columns)
        for part, place in parts(self):
            out[:, place] = part
        return out

    def new_empty(self, *shape: Any, **options: Any) -> Tensor:
        return self.weight.new_empty(*shape, **options)


Matrix: TypeAlias = Tensor | Joined


def joined(weight: Tensor, up: Tensor | None) -> Matrix:
    return weight if up is None else Joined(weight, up.detach())


def matrices(weight: Matrix) -> tuple[Tensor, Tensor | None]:
    """(weight, up or None)"""
    return (weight, None) if isinstance(weight, Tensor) else (weight.weight, weight.up)


def parts(weight: Matrix) -> list[tuple[Tensor, slice]]:
    """Its matrices, and the columns of each."""
    if isinstance(weight, Tensor):
        return [(weight, slice(None))]
    return list(zip((weight.weight, weight.up), weight.columns, strict=True))


def is_stored(weight: Matrix, dtype: torch.dtype) -> bool:
    """Whether its rows lie in memory as products take them, and are not made a tile at a time."""
    return isinstance(weight, Tensor) and weight.dtype == dtype


class JoinedSum:
    """The sums of products that are the gradients of weight and up; None where there is none."""

    def __init__(
        self, columns: tuple[slice, slice], weight: GradientSum | None, up: GradientSum
    ) -> None:
        self.parts = [
            (place, part)
            for place, part in zip(columns, (weight, up), strict=True)
            if part is not None
        ]
        self.out = up.out
        # B's gradient is wide, and so never a product as it is
        self.direct = False

    def add(self, a: Tensor, b: Tensor, scratch: Tensor | None = None) -> None:
        for place, part in self.parts:
            part.add(a, b[:, place], scratch)

    def finish(self) -> None:
        for _, part in self.parts:
            part.finish()
