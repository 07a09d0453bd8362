"""The tiling of a head call, and the logits that a forward keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from logitless.ops.rows.whole import cast, part_of

if TYPE_CHECKING:
    from logitless.ops.head.adapter.joined import Matrix
    from logitless.ops.head.planner.plan import Plan


class Tiling(NamedTuple):
    """Rows and vocabulary columns of a tile, and how many columns of logits are kept.

    `fixed`: 0, or the rows of each product that gives logits or d_hidden, padded with zeros, so
    that a row's result cannot depend on how many others there are; it divides `rows`.

    `question`: "", or what a graph of any length asks the planner once it runs, see late.py.

    `operands`: the dtype of hidden and weight in products, and of d(logits); `dtype` may be wider.

    `row_quantum`: numbers from one row of a tile to the next are a multiple of it.

    `capacity`: 0, or the most rows that may be active. On a device there are so many, whatever the
    mask and the gradients are: nothing waits for their number.
    """

    rows: int
    columns: int
    kept: int
    dtype: torch.dtype
    fixed: int
    question: str
    operands: torch.dtype
    row_quantum: int = 1
    capacity: int = 0

    @classmethod
    def of(cls, plan: Plan, vocab: int, dtype: torch.dtype, logits_dtype: torch.dtype) -> Tiling:
        """That of a plan, maybe of a wider dtype, for a weight of `vocab` rows in `dtype`."""
        operands = logits_dtype if plan.operand_dtype == plan.logits_dtype else dtype
        kept = min(plan.kept_columns, vocab)
        return cls(
            plan.rows, plan.columns, kept, logits_dtype, plan.fixed_rows, "", operands,
            plan.row_quantum, plan.active_capacity,
        )  # fmt: skip

    @classmethod
    def asked(
        cls, question: str, dtype: torch.dtype, logits_dtype: torch.dtype, capacity: int = 0
    ) -> Tiling:
        """One that a graph of any length learns when it runs."""
        return cls(0, 0, 0, logits_dtype, 0, question, dtype, capacity=capacity)

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

    def operand(self, hidden: Tensor, index: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """hidden[index] in the dtype of operands, padded; zeros where the mask of these rows is
        false, since 0 times what may be NaN there is no gradient."""
        h = hidden if index is None else hidden.index_select(0, index)
        if mask is not None:
            fill = h.masked_fill if index is None else h.masked_fill_
            h = fill(~mask[:, None], 0.0)
        h = cast(h, self.operands)
        n = self.padded(h.shape[0])
        return h if n == h.shape[0] else torch.cat([h, h.new_zeros(n - h.shape[0], h.shape[1])])

    def columns_of(self, weight: Matrix, start: int, stop: int) -> Tensor:
        """weight[start:stop] in the dtype of operands."""
        part = part_of(weight, slice(start, stop))
        return cast(part, self.operands) if isinstance(part, Tensor) else part.to(self.operands)

    def row_columns(self, width: int) -> int:
        """From one row of a tile of so many columns to the next."""
        return -(-width // self.row_quantum) * self.row_quantum

    def scratch(self, n: int, like: Matrix, dtype: torch.dtype | None = None) -> Tensor:
        """Flat memory for a tile of at most n rows."""
        size = min(self.rows, self.padded(n)) * self.row_columns(self.columns)
        return like.new_empty(size, dtype=dtype or self.dtype)

    def stored(self, n: int) -> int:
        """Numbers that the kept logits of n rows take, of those that may be active."""
        n = min(n, self.capacity) if self.capacity else n
        return self.padded(n) * self.row_columns(self.kept)

    def view(self, buffer: Tensor, offset: int, n: int, width: int) -> Tensor:
        """An [n, width] tile in a flat buffer."""
        if self.row_quantum == 1:
            return view(buffer, offset, n, width)
        return view(buffer, offset, n, self.row_columns(width))[:, :width]


class LogitStore(NamedTuple):
    """Logits of the n rows of a forward: the first `tiling.kept` columns of each, tile after tile,
    all rows of each tile. Where no columns are kept, every tile is made again by another product.
    """

    buffer: Tensor  # flat: tiling.stored(n)
    n: int
    tiling: Tiling

    @property
    def columns(self) -> int:
        return self.tiling.kept

    def tile(self, chunk: slice, start: int, width: int) -> Tensor:
        """Where the tile of some rows lies."""
        tiling, rows = self.tiling, self.tiling.height(chunk)
        offset = tiling.padded(self.n) * start + rows.start * tiling.row_columns(width)
        return tiling.view(self.buffer, offset, rows.stop - rows.start, width)

    def gather(self, index: Tensor, start: int, tile: Tensor) -> None:
        """Write the logits of some rows, from column `start` on, to a tile; zeros below them."""
        n, stop, columns = index.shape[0], start + tile.shape[1], self.tiling.columns
        for first in range(start // columns * columns, stop, columns):
            last = min(first + columns, self.columns)
            stored = self.tile(slice(0, self.n), first, last - first)
            left, right = max(first, start), min(last, stop)
            if (left, right) != (first, last):
                stored = stored[:, left - first : right - first]
            torch.index_select(stored, 0, index, out=tile[:n, left - start : right - start])
        if n < tile.shape[0]:
            tile[n:].zero_()


def view(buffer: Tensor, offset: int, n: int, width: int) -> Tensor:
    """A contiguous [n, width] window of a flat buffer."""
    return part_of(buffer, slice(offset, offset + n * width)).view(n, width)
