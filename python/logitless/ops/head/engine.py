"""The two passes over vocabulary tiles that every head op is made of. All in place, nothing held.

Products belong to torch.mm; what surrounds them works on the tile while it is in cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from logitless import _core
from logitless.backends.rows import Rows
from logitless.backends.topk import Candidates
from logitless.ops.head.batch_invariance import require_row_independence
from logitless.ops.head.gemm import LogitProduct, turns_pay
from logitless.ops.head.plan import WEIGHT_BYTES
from logitless.ops.head.tiling import WIDE, Sum, Tiles, view
from logitless.ops.rows.op import empty_states


def fold(
    h: Tensor,  # [n, H], padded by tiles.operand
    weight: Tensor,  # [V, H]
    rows: Rows,  # of n rows, without a mask
    state: Tensor,  # [n, STATE]
    tiles: Tiles,
    kept: Tensor,  # flat: padded n * tiles.kept
    extras: bool,
    candidates: Candidates | None = None,  # of n rows
) -> None:
    """Every row's moments over all tiles of h @ weight.T; the first tiles.kept columns stay, and
    in `candidates` each row's largest entries."""
    vocab = len(weight)
    if not vocab:
        empty_states(state)
        if candidates is not None:
            candidates.count.zero_()
    elif tiles.fixed:
        require_row_independence(tiles, weight.device, weight.shape[1], vocab)
    scratch = tiles.scratch(rows.n if tiles.kept < vocab else 0, weight)
    product = LogitProduct(rows.n, tiles, weight)
    chunks = [
        (chunk, rows.part(chunk), None if candidates is None else candidates.part(chunk))
        for chunk in tiles.chunks(rows.n)
    ]
    for start, stop in tiles.spans(vocab):
        w, width = weight[start:stop].to(tiles.dtype), stop - start
        for chunk, part, largest in chunks:
            operand = h[tiles.height(chunk)]
            if stop <= tiles.kept:
                tile = tiles.kept_tile(kept, rows.n, chunk, start, width)
            else:
                tile = view(scratch, 0, len(operand), width)
            product(operand, w, tile)
            part.forward(
                tile[: part.n], state[chunk], start=start, first=start == 0, extras=extras,
                candidates=largest,
            )  # fmt: skip


def turned(tile: Tensor, scratch: Tensor | None) -> Tensor:
    """tile.t(), laid out in `scratch` where products want it so: see csrc/cpu/rows/transpose.h."""
    if scratch is None:
        return tile.t()
    out = view(scratch, 0, tile.shape[1], tile.shape[0])
    _core.rows.transpose(tile, out, torch.get_num_threads())
    return out


class Upstream(NamedTuple):
    """d loss / d of each row's results, [n] float64 or None."""

    g_logp: Tensor | None
    g_entropy: Tensor | None
    g_lse: Tensor | None = None

    def some(self, targets: Tensor) -> Tensor:
        """[n] bool: the rows that have any gradient at all."""
        some = torch.zeros_like(targets, dtype=torch.bool)
        for gradient in self:
            if gradient is not None:
                some |= gradient != 0
        return some

    def active(self, targets: Tensor) -> Tensor:
        """Their indices."""
        return self.some(targets).nonzero().squeeze(1)

    def at(self, index: Tensor | slice) -> dict[str, Tensor | None]:
        return {
            name: None if value is None else value[index] for name, value in self._asdict().items()
        }


class Gradients(NamedTuple):
    """Where the gradients go; None where none is asked for."""

    # [active rows, H], padded
    hidden: Tensor | None
    # (start, stop, products to come) -> the sum of d_weight[start:stop]
    weight: Callable[[int, int, int], Sum] | None
    # [V], added to
    bias: Tensor | None
    # what each product is multiplied by: undoes a scale of the coefficients
    alpha: float = 1.0


def direct(tiles: Tiles, n: int, out: Gradients) -> bool:
    """Whether products of n rows round straight into d_weight."""
    if out.weight is None or tiles.dtype in WIDE:
        return True
    tile = out.weight(0, 0, len(list(tiles.chunks(n))))
    return tile.direct and tile.out.dtype == tiles.dtype


def widened(tiles: Tiles, n: int, weight: Tensor, out: Gradients) -> Tiles:
    """Few rows make small products, each with a cost of its own: as many times the columns as a
    tile of them has room for. What needs memory for each column stays as planned: sums of d_weight,
    weight in another dtype. With `fixed` products have the one shape."""
    if tiles.fixed or not n:
        return tiles
    times = tiles.rows // n
    if weight.dtype != tiles.dtype or not direct(tiles, n, out):
        times = min(times, WEIGHT_BYTES // (tiles.columns * weight.shape[1] * weight.itemsize))
    return tiles._replace(columns=max(tiles.columns, min(tiles.columns * times, len(weight))))


def partial_products(tiles: Tiles, n: int, weight: Tensor, out: Gradients) -> Tensor | None:
    """Room for a product of 16-bit operands on its way into a sum."""
    if tiles.dtype in WIDE:
        return None
    height = 0 if out.hidden is None else min(tiles.rows, tiles.padded(n))
    if not direct(tiles, n, out):
        height = max(height, min(tiles.columns, len(weight)))
    return weight.new_empty(height * weight.shape[1], dtype=tiles.dtype)


def gather(
    kept: Tensor, folding: Tiles, folded: int, place: Tensor, start: int, tile: Tensor
) -> None:
    """Some rows of the tiles that a fold of `folded` rows kept, from column `start` on."""
    n = len(place)
    for first, stop in folding.spans(tile.shape[1]):
        stored = view(kept, folding.padded(folded) * (start + first), folded, stop - first)
        torch.index_select(stored, 0, place, out=tile[:n, first:stop])
    tile[n:].zero_()


def unfold(
    h: Tensor,  # [n, H], padded: the active rows
    weight: Tensor,  # [V, H]
    rows: Rows,  # the active rows
    state: Tensor,  # [n, STATE]
    g: Upstream,  # [n] each
    tiles: Tiles,
    kept: Tensor,
    place: Tensor | None,  # [n] position among the rows of `fold`, which had `folded` of them
    folded: int,
    out: Gradients,
) -> None:
    """Logits again, from `kept` or by another product; d(logits) in their place; the products.

    `place` None: the active rows are all of them, and kept tiles are worked on where they lie.
    """
    vocab = len(weight)
    folding, in_place = tiles, place is None and tiles.kept > 0
    if not in_place:
        tiles = widened(tiles, rows.n, weight, out)
    scratch = tiles.scratch(rows.n if tiles.kept < vocab or not in_place else 0, weight)
    product = LogitProduct(rows.n, tiles, weight)
    turns = out.weight is not None and turns_pay(weight, tiles)
    turn = tiles.scratch(rows.n, weight) if turns else None
    chunks = [(chunk, rows.part(chunk)) for chunk in tiles.chunks(rows.n)]
    partial = partial_products(tiles, rows.n, weight, out)
    d_hidden, alpha = out.hidden, out.alpha
    sums = []
    if d_hidden is not None and not vocab:
        d_hidden.zero_()
    elif d_hidden is not None:
        tall = (d_hidden[tiles.height(chunk)] for chunk, _ in chunks)
        sums = [[Sum(x[piece], alpha=alpha) for piece in tiles.pieces(len(x))] for x in tall]
    for start, stop in tiles.spans(vocab, split=folding.whole_tiles(vocab)):
        w, width = weight[start:stop].to(tiles.dtype), stop - start
        d_weight = None if out.weight is None else out.weight(start, stop, len(chunks))
        for i, (chunk, part) in enumerate(chunks):
            operand = h[tiles.height(chunk)]
            if stop <= tiles.kept and place is None:
                tile = folding.kept_tile(kept, folded, chunk, start, width)
            else:
                tile = view(scratch, 0, len(operand), width)
                if stop > tiles.kept:
                    product(operand, w, tile)
                else:
                    assert place is not None
                    gather(kept, folding, folded, place[chunk], start, tile)
            mine = tile[: part.n]
            part.backward(mine, state[chunk], mine, start=start, **g.at(chunk))
            if sums:
                for piece, total in zip(tiles.pieces(len(tile)), sums[i], strict=True):
                    total.add(tile[piece], w, partial)
            if d_weight is not None:
                d_weight.add(turned(mine, turn), operand[: part.n], partial)
            if out.bias is not None:
                out.bias[start:stop].add_(mine.sum(0, dtype=out.bias.dtype), alpha=out.alpha)
        if d_weight is not None:
            d_weight.finish()
    for totals in sums:
        for total in totals:
            total.finish()
