"""The two passes over vocabulary tiles that every head op is made of. All in place, nothing held.

Products belong to torch; what surrounds them works on the tile while it is in cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from logitless.backends.row_kernels.rows import Rows
from logitless.backends.row_kernels.topk import TopK
from logitless.ops.head.adapter.joined import JoinedSum, Matrix, is_stored
from logitless.ops.head.batch_invariance import require_row_independence
from logitless.ops.head.gemm import (
    WIDE,
    GradientSum,
    LogitGemm,
    Narrower,
    Transposer,
    products_of,
)
from logitless.ops.head.planner.cost import tile_columns
from logitless.ops.head.tiling import LogitStore, Tiling
from logitless.ops.rows.arguments import RowGradients
from logitless.ops.rows.op import empty_states
from logitless.ops.rows.whole import first_rows, part_of

if TYPE_CHECKING:
    from logitless.ops.head.sets import Entries


def forward_tiles(
    h: Tensor,  # [n, H], padded by tiling.operand
    weight: Matrix,  # [V, H]
    rows: Rows,  # of n rows, without a mask
    state: Tensor,  # [n, STATE]
    store: LogitStore,
    extras: bool,
    topk: TopK | None = None,  # of n rows
) -> None:
    """Every row's moments over all tiles of h @ weight.T; logits stay as far as `store` keeps them,
    and in `topk` the largest entries of each row."""
    vocab, tiling = weight.shape[0], store.tiling
    if not vocab:
        empty_states(state)
        if topk is not None:
            topk.count.zero_()
    elif tiling.fixed:
        require_row_independence(tiling, weight, products_of(rows.backend))
    scratch = tiling.scratch(rows.n if store.columns < vocab else 0, weight)
    product = LogitGemm(rows.n, tiling, weight, rows.backend)
    chunks = [
        (chunk, rows.part(chunk), None if topk is None else topk.part(chunk))
        for chunk in tiling.chunks(rows.n)
    ]
    for start, stop in tiling.spans(vocab):
        w, width = tiling.columns_of(weight, start, stop), stop - start
        for chunk, part, largest in chunks:
            operand = part_of(h, tiling.height(chunk))
            if stop <= store.columns:
                tile = store.tile(chunk, start, width)
            else:
                tile = tiling.view(scratch, 0, operand.shape[0], width)
            product(operand, w, tile)
            part.forward(
                first_rows(tile, part.n), part_of(state, chunk), start=start, first=start == 0,
                extras=extras, topk=largest,
            )  # fmt: skip
        # A cast of weight goes before the next is made.
        del w


class TileSinks(NamedTuple):
    """Where the gradients of a pass go; None where none is asked for."""

    # [rows, H], padded
    hidden: Tensor | None
    # (start, stop, products to come) -> the sum of d_weight[start:stop]
    weight: Callable[[int, int, int], GradientSum | JoinedSum] | None
    # [V], added to
    bias: Tensor | None
    # what each product is multiplied by: undoes a scale of the coefficients
    alpha: float


def backward_tiles(
    h: Tensor,  # [n, H], padded: the rows that get a gradient
    weight: Matrix,  # [V, H]
    rows: Rows,  # of these n rows
    state: Tensor,  # [n, STATE]
    g: RowGradients,  # [n] each
    store: LogitStore,
    index: Tensor | None,  # [n] their places among the rows of the store
    out: TileSinks,
    entries: Entries | None = None,  # d(logits) of rows that have them at some columns alone
) -> None:
    """Logits again, from `store` or by another product; d(logits) in their place; the products.

    `index` None: these rows are all of the store's, whose tiles are worked on where they lie.
    """
    vocab, in_place = weight.shape[0], index is None and store.columns > 0
    tiling = store.tiling if in_place else _widened(store.tiling, rows, weight, out)
    scratch = tiling.scratch(rows.n if store.columns < vocab or not in_place else 0, weight)
    product = LogitGemm(rows.n, tiling, weight, rows.backend)
    transposed = None if out.weight is None else Transposer(rows.n, tiling, weight, rows.backend)
    chunks = [(chunk, rows.part(chunk)) for chunk in tiling.chunks(rows.n)]
    narrowed = Narrower(rows.n, tiling, weight)
    spans = list(tiling.spans(vocab, split=store.tiling.whole_tiles(vocab)))
    partial = _partial_products(tiling, rows, weight, out)
    sums = _hidden_sums(tiling, rows, len(spans), out)
    for start, stop in spans:
        w, width = tiling.columns_of(weight, start, stop), stop - start
        d_weight = None if out.weight is None else out.weight(start, stop, len(chunks))
        for i, (chunk, part) in enumerate(chunks):
            operand = part_of(h, tiling.height(chunk))
            if stop <= store.columns and index is None:
                tile = store.tile(chunk, start, width)
            else:
                tile = tiling.view(scratch, 0, operand.shape[0], width)
                if entries is not None:
                    entries.part(chunk).write(tile, start)
                elif stop > store.columns:
                    product(operand, w, tile)
                else:
                    assert index is not None
                    store.gather(index[chunk], start, tile)
            own = first_rows(tile, part.n)
            if entries is None:
                of_rows = part_of(state, chunk)
                part.gradient(own, of_rows, own, start=start, **g.part(chunk).kernel_arguments)
            d_logits = narrowed(tile)
            if sums:
                for piece, total in zip(tiling.pieces(tile.shape[0]), sums[i], strict=True):
                    total.add(part_of(d_logits, piece), w, partial)
            if d_weight is not None and transposed is not None:
                of_tile = transposed(first_rows(d_logits, part.n))
                d_weight.add(of_tile, first_rows(operand, part.n), partial)
            if out.bias is not None:
                out.bias[start:stop].add_(own.sum(0, dtype=out.bias.dtype), alpha=out.alpha)
        if d_weight is not None:
            d_weight.finish()
        # A cast of weight goes before the next is made.
        del w
    for totals in sums:
        for total in totals:
            total.finish()


def _hidden_sums(tiling: Tiling, rows: Rows, spans: int, out: TileSinks) -> list[list[GradientSum]]:
    """The sums of d_hidden over all tiles: of each chunk of rows, those of each of its products."""
    if out.hidden is None:
        return []
    if not spans:
        out.hidden.zero_()
        return []
    tall = (part_of(out.hidden, tiling.height(chunk)) for chunk in tiling.chunks(rows.n))
    products, mixed = products_of(rows.backend), mixes(rows, out.hidden)
    return [
        [
            GradientSum(
                part_of(x, piece), products, mixed=mixed, single=spans == 1, alpha=out.alpha
            )
            for piece in tiling.pieces(x.shape[0])
        ]
        for x in tall
    ]


def mixes(rows: Rows, like: Matrix) -> bool:
    """Whether products of 16-bit operands are added up in float32."""
    return rows.backend.machine(like.device).mixed_products


def _direct(tiling: Tiling, n: int, out: TileSinks) -> bool:
    """Whether products of n rows round straight into d_weight."""
    if out.weight is None or tiling.operands in WIDE:
        return True
    tile = out.weight(0, 0, len(list(tiling.chunks(n))))
    return tile.direct and tile.out.dtype == tiling.operands


def _widened(tiling: Tiling, rows: Rows, weight: Matrix, out: TileSinks) -> Tiling:
    """Tiles of as many columns as the rows leave room for: few rows make small products, and each
    product has a cost of its own. What needs memory for every column stays as planned: sums of
    d_weight, weight in another dtype or with an adapter's B beside it. With `fixed` all products
    have one shape."""
    n, (vocab, width) = rows.n, weight.shape
    if tiling.fixed or not n:
        return tiling
    machine = rows.backend.machine(weight.device)
    as_planned = not (is_stored(weight, tiling.operands) and _direct(tiling, n, out))
    if not machine.cached:
        # fewer than planned, where the plan is one tile that is now gathered
        columns = tile_columns(vocab, min(n, tiling.rows), tiling.dtype.itemsize, machine)
        return tiling._replace(columns=min(columns, tiling.columns) if as_planned else columns)
    times = tiling.rows // n
    if as_planned:
        per_column = width * weight.itemsize
        times = min(times, machine.weight_bytes // (tiling.columns * per_column))
    return tiling._replace(columns=max(tiling.columns, min(tiling.columns * times, vocab)))


def _partial_products(tiling: Tiling, rows: Rows, weight: Matrix, out: TileSinks) -> Tensor | None:
    """Room for a product of 16-bit operands on its way into a sum."""
    if tiling.operands in WIDE or mixes(rows, weight):
        return None
    n = rows.n
    height = 0 if out.hidden is None else min(tiling.rows, tiling.padded(n))
    if not _direct(tiling, n, out):
        height = max(height, min(tiling.columns, weight.shape[0]))
    return weight.new_empty(height * weight.shape[1], dtype=tiling.operands)
