"""The tiling of a head call, and the running sums of its products."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

WIDE = (torch.float32, torch.float64)
# Libraries may add up the terms of a product of few rows one after the other: a chain of 150,000
# additions is off by 1e-5, where the blocks of a taller product are by 6e-7. (MKL does for a single
# row; for up to 7, and the last few of more, by the kernels of MKL_CBWR=COMPATIBLE.) So such
# products are made of pieces of CHAIN terms, of which batches of PIECES numbers at once; up to 64
# rows that takes no longer.
FEW_ROWS = 64
CHAIN = 512
PIECES = 1 << 19
# The tail of every schema over tiles, in the order of `Tiles`.
N_TILES = 5
TILES = "int tile_rows, int tile_columns, int kept_columns, ScalarType logits_dtype, int fixed_rows"


class Tiles(NamedTuple):
    """Rows and vocabulary columns of a tile, columns whose logits are kept for backward.

    `fixed`: 0, or the rows of each product that gives logits or d_hidden, padded with zeros, so
    that a row's result cannot depend on how many others there are; it divides `rows`.

    `plan`: "", or what a graph of any length asks the planner for once it runs, see `late_plan`.
    """

    rows: int
    columns: int
    kept: int
    dtype: torch.dtype
    fixed: int
    plan: str = ""

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
        h = (hidden if index is None else hidden[index]).to(self.dtype)
        n = self.padded(len(h))
        return h if n == len(h) else torch.cat([h, h.new_zeros(n - len(h), h.shape[1])])

    def scratch(self, n: int, like: Tensor) -> Tensor:
        return like.new_empty(min(self.rows, self.padded(n)) * self.columns, dtype=self.dtype)

    def kept_tile(self, kept: Tensor, n: int, chunk: slice, start: int, width: int) -> Tensor:
        """Where the tile of a chunk lies among the kept: tile after tile, all rows of each."""
        rows = self.height(chunk)
        offset = self.padded(n) * start + rows.start * width
        return view(kept, offset, rows.stop - rows.start, width)


def view(buffer: Tensor, offset: int, n: int, width: int) -> Tensor:
    """A contiguous [n, width] window of a flat buffer."""
    return buffer[offset : offset + n * width].view(n, width)


def short_chains(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Parts of a @ b, which is their sum. No product in them has more than CHAIN terms."""
    terms = a.shape[1]
    cut = terms - terms % CHAIN
    step = CHAIN * max(1, PIECES // (len(a) * b.shape[1]))
    for start in range(0, cut, step):
        part = slice(start, min(start + step, cut))
        left = a[:, part].unflatten(1, (-1, CHAIN)).transpose(0, 1)
        yield torch.bmm(left, b[part].unflatten(0, (-1, CHAIN))).sum(0)
    if cut < terms:
        yield torch.mm(a[:, cut:], b[cut:])


class Sum:
    """out = alpha * (a sum of products).

    A wide `out` is added to in place; a 16-bit one is summed in float32 and rounded once, unless
    `single` says that there is but one product, whose own float32 sum then rounds straight into
    `out`. Partial products of 16-bit operands round to the operands' dtype.
    """

    def __init__(
        self, out: Tensor, *, single: bool = False, started: bool = False, alpha: float = 1.0
    ) -> None:
        self.out, self.started, self.alpha = out, started, alpha
        wide = out.dtype in WIDE
        self.direct = single and not wide and alpha == 1.0
        self.total: Tensor | None = out if wide else None

    def add(self, a: Tensor, b: Tensor, scratch: Tensor | None = None) -> None:
        """Add a @ b; `scratch`: flat memory for the product, where it may not go to `out`."""
        if self.direct and a.dtype == self.out.dtype:
            torch.mm(a, b, out=self.out)
            return
        if self.total is None:
            self.total = self.out.new_empty(self.out.shape, dtype=torch.float32)
        few = len(a) <= FEW_ROWS and (self.started or a.shape[1] > CHAIN)
        if self.total.dtype != a.dtype:
            memory = None if scratch is None else view(scratch, 0, *self.out.shape)
            self._include(torch.mm(a, b, out=memory))
        elif few:
            # not addmm, which may go on with the chain that the sum so far is the end of
            for part in short_chains(a, b):
                self._include(part)
        else:
            # beta=0 ignores what is there, so fresh memory needs no zeros.
            beta = float(self.started)
            torch.addmm(self.total, a, b, beta=beta, alpha=self.alpha, out=self.total)
        self.started = True

    def _include(self, product: Tensor) -> None:
        assert self.total is not None
        if self.started:
            self.total.add_(product, alpha=self.alpha)
        else:
            # not torch.mul(product, alpha), which would round to the product's dtype
            self.total.copy_(product).mul_(self.alpha)
        self.started = True

    def finish(self) -> None:
        if self.total is not None and self.total is not self.out:
            self.out.copy_(self.total)
