"""Tiles of logits of a head: made by a product, kept, and found again."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from logitless.backends.base import Backend
from logitless.ops.head.adapter.joined import Matrix
from logitless.ops.head.gemm import LogitGemm
from logitless.ops.head.tiling import LogitStore, Tiling


class TileMemory:
    """Room for a tile, and the way to make it; as large as the largest that is asked for."""

    def __init__(self, weight: Matrix, tiling: Tiling, backend: Backend) -> None:
        self.weight, self.tiling, self.backend = weight, tiling, backend
        self.sizes, self.scratch = (0, 0), weight.new_empty(0, dtype=tiling.dtype)
        self.gemm: LogitGemm | None = None
        self.cast: tuple[tuple[int, int], Tensor] | None = None

    def tile(self, n: int, width: int) -> Tensor:
        size = n * self.tiling.row_columns(width)
        if self.scratch.shape[0] < size:
            self.scratch = self.weight.new_empty(size, dtype=self.tiling.dtype)
        return self.tiling.view(self.scratch, 0, n, width)

    def columns(self, start: int, stop: int) -> Tensor:
        """Rows of weight in the dtype of operands, cast once for all chunks of rows."""
        weight, operands = self.weight, self.tiling.operands
        if isinstance(weight, Tensor) and weight.dtype == operands:
            return weight[start:stop]
        if self.cast is None or self.cast[0] != (start, stop):
            self.cast = None
            self.cast = (start, stop), weight[start:stop].to(operands)
        return self.cast[1]

    def multiply(self, operand: Tensor, start: int, stop: int, out: Tensor) -> None:
        n, width = out.shape
        if n > self.sizes[0] or width > self.sizes[1]:
            self.sizes = max(n, self.sizes[0]), max(width, self.sizes[1])
            tiling = self.tiling._replace(columns=self.sizes[1])
            self.gemm = LogitGemm(self.sizes[0], tiling, self.weight, self.backend)
        assert self.gemm is not None
        self.gemm(operand, self.columns(start, stop), out)


class HeadTiles(NamedTuple):
    """The logits of some rows of a head, a tile at a time; a tile lives until the next is asked
    for, unless it is kept."""

    operand: Tensor  # [n, H] in the dtype of operands
    store: LogitStore  # of the rows of the forward
    memory: TileMemory
    chunk: slice  # of the store's rows
    places: Tensor | None = None  # [n] of other rows among them
    # whether the tiles that are kept are there already
    filled: bool = False

    @classmethod
    def of(
        cls, operand: Tensor, weight: Matrix, store: LogitStore, backend: Backend, *, filled: bool
    ) -> HeadTiles:
        memory = TileMemory(weight, store.tiling, backend)
        return cls(operand, store, memory, slice(0, operand.shape[0]), None, filled)

    def at(self, index: Tensor) -> HeadTiles:
        return self._replace(operand=self.operand[index], places=index)

    def part(self, chunk: slice) -> HeadTiles:
        places = None if self.places is None else self.places[chunk]
        return self._replace(operand=self.operand[chunk], chunk=chunk, places=places)

    def __call__(self, start: int, width: int) -> Tensor:  # [n, width]
        n, stop = self.operand.shape[0], start + width
        kept = stop <= self.store.columns
        if kept and self.places is None:
            tile = self.store.tile(self.chunk, start, width)
        else:
            tile = self.memory.tile(n, width)
        if not kept or not self.filled:
            self.memory.multiply(self.operand, start, stop, tile)
        elif self.places is not None:
            self.store.gather(self.places, start, tile)
        return tile
