"""Products that make tiles of logits, and tiles one after the other for who looks once at each."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from logitless import _core
from logitless.ops.head.batch_invariance import require_row_independence
from logitless.ops.head.cost import turns
from logitless.ops.head.tiling import Tiles, view


def turns_pay(weight: Tensor, tiles: Tiles) -> bool:
    """Whether products with transposed operands are better made of turned tiles."""
    return (
        tiles.dtype == torch.bfloat16
        and weight.device.type == "cpu"
        and _core.rows.prefer_transposed_gemm()
    )


class LogitProduct:
    """Makes the tiles of n rows of hidden x weight, in the way that is fastest for so many."""

    def __init__(self, n: int, tiles: Tiles, weight: Tensor) -> None:
        self.tiles = tiles
        # The last tile may be shorter than the others: only all of them, or none, are turned.
        rows, dtype = min(n, tiles.rows), str(tiles.dtype).removeprefix("torch.")
        turned = turns_pay(weight, tiles) and turns(rows, dtype, tiles.fixed)
        self.scratch = tiles.scratch(n, weight) if turned else None

    def __call__(
        self,
        operand: Tensor,  # [rows, H], padded
        w: Tensor,  # [width, H]
        out: Tensor,  # [rows, width]
    ) -> None:
        if self.scratch is None:
            for piece in self.tiles.pieces(len(operand)):
                torch.mm(operand[piece], w.t(), out=out[piece])
            return
        other = view(self.scratch, 0, len(w), len(operand))
        torch.mm(w, operand.t(), out=other)
        _core.rows.transpose(other, out, torch.get_num_threads())


def all_logits(
    h: Tensor,  # [n, H], padded by tiles.operand
    weight: Tensor,  # [V, H]
    n: int,
    tiles: Tiles,
) -> Tensor:
    """[n, V], for few rows or few columns."""
    out = h.new_empty(n, len(weight), dtype=tiles.dtype)
    for first, chunk, tile in logit_tiles(h, weight, n, tiles):
        out[chunk, first : first + tile.shape[1]] = tile
    return out


def logit_tiles(
    h: Tensor,  # [n, H], padded by tiles.operand
    weight: Tensor,  # [V, H]
    n: int,
    tiles: Tiles,
) -> Iterator[tuple[int, slice, Tensor]]:
    """(first column, rows, their logits [rows, width]); a tile lives until the next is made."""
    if tiles.fixed and len(weight):
        require_row_independence(tiles, weight.device, weight.shape[1], len(weight))
    scratch, product = tiles.scratch(n, weight), LogitProduct(n, tiles, weight)
    for start, stop in tiles.spans(len(weight)):
        w, width = weight[start:stop].to(tiles.dtype), stop - start
        for chunk in tiles.chunks(n):
            operand = h[tiles.height(chunk)]
            tile = view(scratch, 0, len(operand), width)
            product(operand, w, tile)
            yield start, chunk, tile[: chunk.stop - chunk.start]
