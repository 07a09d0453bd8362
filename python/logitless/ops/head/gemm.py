"""Products of the head: tiles of logits, and running sums of gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from logitless.backends.base import Backend, Products
from logitless.backends.products import TORCH
from logitless.ops.head.batch_invariance import require_row_independence
from logitless.ops.head.planner.cost import transposes
from logitless.ops.head.tiling import Tiling, view
from logitless.ops.rows.whole import first_rows, part_of

if TYPE_CHECKING:
    from logitless.ops.head.adapter.joined import Matrix

WIDE = (torch.float32, torch.float64)
# Libraries may add up the terms of a product of few rows one after the other: a chain of 150,000
# additions is off by 1e-5, where the blocks of a taller product are by 6e-7. (MKL does for a single
# row; for up to 7, and the last few of more, by the kernels of MKL_CBWR=COMPATIBLE.) So such
# products are made of pieces of CHAIN terms, of which batches of PIECES numbers at once; up to 64
# rows that takes no longer.
FEW_ROWS = 64
CHAIN = 512
PIECES = 1 << 19


def products_of(backend: Backend) -> Products:
    return backend.products or TORCH


class LogitGemm:
    """Makes the tiles of n rows of hidden x weight, in the way that is fastest for so many."""

    def __init__(self, n: int, tiling: Tiling, weight: Matrix, backend: Backend) -> None:
        self.tiling, self.transpose = tiling, backend.transpose
        self.multiply = products_of(backend).multiply
        # The last tile may be shorter than the others: all of them are transposed, or none.
        rows = min(n, tiling.rows)
        pays = backend.prefers_transposed(tiling.dtype)
        transposed = pays and transposes(
            rows, tiling.dtype, tiling.fixed, backend.machine(weight.device)
        )
        self.scratch = tiling.scratch(n, weight) if transposed else None

    def __call__(
        self,
        operand: Tensor,  # [rows, H], padded
        w: Tensor,  # [width, H]
        out: Tensor,  # [rows, width]
    ) -> None:
        if self.scratch is None:
            for piece in self.tiling.pieces(operand.shape[0]):
                self.multiply(part_of(operand, piece), w.t(), part_of(out, piece))
            return
        other = view(self.scratch, 0, w.shape[0], operand.shape[0])
        self.multiply(w, operand.t(), other)
        assert self.transpose is not None
        self.transpose(other, out, torch.get_num_threads())


class Transposer:
    """tile.t() as an operand of the products of d_weight, laid out anew where the backend's
    products are faster so."""

    def __init__(self, n: int, tiling: Tiling, weight: Matrix, backend: Backend) -> None:
        self.transpose = backend.transpose
        pays = backend.prefers_transposed(tiling.dtype)
        self.scratch = tiling.scratch(n, weight) if pays else None

    def __call__(self, tile: Tensor) -> Tensor:
        if self.scratch is None:
            return tile.t()
        out = view(self.scratch, 0, tile.shape[1], tile.shape[0])
        assert self.transpose is not None
        self.transpose(tile, out, torch.get_num_threads())
        return out


class Narrower:
    """d(logits) in the dtype of operands; no row kernel writes another than its logits have."""

    def __init__(self, n: int, tiling: Tiling, weight: Matrix) -> None:
        self.tiling = tiling
        narrow = tiling.operands != tiling.dtype
        self.scratch = tiling.scratch(n, weight, tiling.operands) if narrow else None

    def __call__(self, tile: Tensor) -> Tensor:
        if self.scratch is None:
            return tile
        return self.tiling.view(self.scratch, 0, *tile.shape).copy_(tile)


def all_logits(
    h: Tensor,  # [n, H], padded by tiling.operand
    weight: Matrix,  # [V, H]
    n: int,
    tiling: Tiling,
    backend: Backend,
) -> Tensor:
    """[n, V], for few rows or few columns; rows lie apart as those of a tile do."""
    vocab = weight.shape[0]
    out = h.new_empty(n, tiling.row_columns(vocab), dtype=tiling.dtype)[:, :vocab]
    for first, chunk, tile in logit_tiles(h, weight, n, tiling, backend):
        out[chunk, first : first + tile.shape[1]] = tile
    return out


def logit_tiles(
    h: Tensor,  # [n, H], padded by tiling.operand
    weight: Matrix,  # [V, H]
    n: int,
    tiling: Tiling,
    backend: Backend,
) -> Iterator[tuple[int, slice, Tensor]]:
    """(first column, rows, their logits [rows, width]); a tile lives until the next is made."""
    if tiling.fixed and weight.shape[0]:
        require_row_independence(tiling, weight, products_of(backend))
    scratch, product = tiling.scratch(n, weight), LogitGemm(n, tiling, weight, backend)
    for start, stop in tiling.spans(weight.shape[0]):
        w, width = tiling.columns_of(weight, start, stop), stop - start
        for chunk in tiling.chunks(n):
            operand = part_of(h, tiling.height(chunk))
            tile = tiling.view(scratch, 0, operand.shape[0], width)
            product(operand, w, tile)
            yield start, chunk, first_rows(tile, chunk.stop - chunk.start)


def short_chains(a: Tensor, b: Tensor, at_once: int) -> Iterator[Tensor]:
    """Parts of a @ b, which is their sum. No product in them has more than CHAIN terms; products
    of `at_once` numbers are made together."""
    terms = a.shape[1]
    cut = terms - terms % CHAIN
    step = CHAIN * max(1, at_once // (a.shape[0] * b.shape[1]))
    for start in range(0, cut, step):
        part = slice(start, min(start + step, cut))
        left = a[:, part].unflatten(1, (-1, CHAIN)).transpose(0, 1)
        yield torch.bmm(left, b[part].unflatten(0, (-1, CHAIN))).sum(0)
    if cut < terms:
        yield a[:, cut:] @ b[cut:]


class GradientSum:
    """out = alpha * (a sum of products).

    A wide `out` is added to in place; a 16-bit one is summed in float32 and rounded once, unless
    `single` says that there is but one product, whose own float32 sum then rounds straight into
    `out`. Products of 16-bit operands are added in float32 where the machine has such; else each
    rounds to the operands' dtype first.
    """

    def __init__(
        self,
        out: Tensor,
        products: Products = TORCH,
        *,
        mixed: bool = False,  # Machine.mixed_products
        single: bool = False,
        started: bool = False,
        alpha: float = 1.0,
        at_once: int = PIECES,
    ) -> None:
        self.out, self.started, self.alpha, self.at_once = out, started, alpha, at_once
        self.products, self.mixed = products, mixed
        wide = out.dtype in WIDE
        self.direct = single and not wide and alpha == 1.0
        self.total: Tensor | None = out if wide else None

    def add(self, a: Tensor, b: Tensor, scratch: Tensor | None = None) -> None:
        """Add a @ b; `scratch`: flat memory for the product, where it may not go to `out`."""
        if self.direct and a.dtype == self.out.dtype:
            self.products.multiply(a, b, self.out)
            return
        if self.total is None:
            self.total = self.out.new_empty(self.out.shape, dtype=torch.float32)
        few = a.shape[0] <= FEW_ROWS and (self.started or a.shape[1] > CHAIN)
        if self.total.dtype != a.dtype and not self.mixed:
            shape = self.out.shape
            memory = a.new_empty(shape) if scratch is None else view(scratch, 0, *shape)
            self.products.multiply(a, b, memory)
            self._include(memory)
        elif few and self.total.dtype == a.dtype:
            # not addmm, which may go on with the chain that the sum so far is the end of
            for part in short_chains(a, b, self.at_once):
                self._include(part)
        else:
            # beta=0 ignores what is there, so fresh memory needs no zeros.
            beta = float(self.started)
            self.products.add(self.total, a, b, beta=beta, alpha=self.alpha)
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
