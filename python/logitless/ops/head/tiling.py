"""The tiling of a head call, and the logits that a forward keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Tiling(NamedTuple):
    """Rows and vocabulary columns of a tile, and how many columns of logits are kept.

    `fixed`: 0, or the rows of each product that gives logits or d_hidden, padded with zeros, so
    that a row's result cannot depend on how many others there are; it divides `rows`.

    `question`: "", or what a graph of any length asks the planner once it runs, see late_plan.py.
    """

    rows: int
    columns: int
    kept: int
    dtype: torch.dtype
    fixed: int
    question: str

    def spans(self, vocab: int, split: int = 0) -> Iterator[tuple[int, int]]:
        """The columns of each tile; none holds some of both sides of `split`."""
        for first, last in ((0, split), (split, vocab)):
            for start in range(first, last, self.columns):
                yield start, min(start + self.columns, last)

    def whole_tiles(self, vocab: int) -> int:
        """The columns of the tiles that are kept."""
        return vocab if self.kept >= vocab else self.kept // self.columns * self.columns

    def chunks(self, n: int) -> Iterator[slice]:
        """The rows of each tile, without padding."""
        for start in range(0, n, self.rows):
            yield slice(start, min(start + self.rows, n))

    def padded(self, n: int) -> int:
        return -(-n // self.fixed) * self.fixed if self.fixed else n

    def pieces(self, height: int) -> Iterator[slice]:
        """The rows of each product of a tile."""
        for start in range(0, height, self.fixed or height):
            yield slice(start, start + (self.fixed or height))

    def height(self, chunk: slice) -> slice:
        """The rows of a tile, padding included."""
        return slice(chunk.start, self.padded(chunk.stop))

    def operand(self, hidden: Tensor, index: Tensor | None) -> Tensor:
        """hidden[index] in the dtype of the logits, padded."""
        h = (hidden if index is None else hidden.index_select(0, index)).to(self.dtype)
        n = self.padded(h.shape[0])
        return h if n == h.shape[0] else torch.cat([h, h.new_zeros(n - h.shape[0], h.shape[1])])

    def scratch(self, n: int, like: Tensor) -> Tensor:
        return like.new_empty(min(self.rows, self.padded(n)) * self.columns, dtype=self.dtype)


class LogitStore(NamedTuple):
    """Logits of the n rows of a forward: the first `tiling.kept` columns of each, tile after tile,
    all rows of each tile. Where no columns are kept, every tile is made again by another product.
    """

    buffer: Tensor  # flat: padded n * tiling.kept
    n: int
    tiling: Tiling

    @property
    def columns(self) -> int:
        return self.tiling.kept

    def tile(self, chunk: slice, start: int, width: int) -> Tensor:
        """Where the tile of some rows lies."""
        rows = self.tiling.height(chunk)
        offset = self.tiling.padded(self.n) * start + rows.start * width
        return view(self.buffer, offset, rows.stop - rows.start, width)

    def gather(self, index: Tensor, start: int, tile: Tensor) -> None:
        """Write the logits of some rows, from column `start` on, to a tile; zeros below them."""
        n = index.shape[0]
        for first, stop in self.tiling.spans(tile.shape[1]):
            offset = self.tiling.padded(self.n) * (start + first)
            stored = view(self.buffer, offset, self.n, stop - first)
            torch.index_select(stored, 0, index, out=tile[:n, first:stop])
        if n < tile.shape[0]:
            tile[n:].zero_()


def view(buffer: Tensor, offset: int, n: int, width: int) -> Tensor:
    """A contiguous [n, width] window of a flat buffer."""
    return buffer[offset : offset + n * width].view(n, width)
