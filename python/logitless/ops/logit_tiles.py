"""Tiles of hidden x weight one after the other, for who looks at each of them once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from logitless import _core
from logitless.ops.cost import turns
from logitless.ops.self_check import require_row_independence
from logitless.ops.tiles import Tiles, view


def logit_tiles(
    h: Tensor,  # [n, H], padded by tiles.operand
    weight: Tensor,  # [V, H]
    n: int,
    tiles: Tiles,
) -> Iterator[tuple[int, slice, Tensor]]:
    """(first column, rows, their logits [rows, width]); a tile lives until the next is made."""
    if tiles.fixed:
        require_row_independence(tiles, weight.device, weight.shape[1], len(weight))
    scratch = tiles.scratch(n, weight)
    # The last tile may be shorter than the others: only all of them, or none, are turned.
    rows, dtype = min(n, tiles.rows), str(tiles.dtype).removeprefix("torch.")
    turned = torch.empty_like(scratch) if turns(rows, dtype, tiles.fixed) else None
    for start, stop in tiles.spans(len(weight)):
        w, width = weight[start:stop].to(tiles.dtype), stop - start
        for chunk in tiles.chunks(n):
            operand = h[tiles.height(chunk)]
            tile = view(scratch, 0, len(operand), width)
            if turned is not None:
                other = view(turned, 0, width, len(operand))
                torch.mm(w, operand.t(), out=other)
                _core.transpose(other, tile, torch.get_num_threads())
            else:
                for piece in tiles.pieces(len(operand)):
                    torch.mm(operand[piece], w.t(), out=tile[piece])
            yield start, chunk, tile[: chunk.stop - chunk.start]
