"""torch op over hidden x weight: tiles of logits in scratch, moments folded in, nothing else held.

Products belong to torch.mm; what surrounds them works in place on the tile while it is in cache.
Rows outside the mask never enter a product; rows whose upstream gradients are all zero never enter
a backward product.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from logitless.ops.library import begin_backward, register
from logitless.ops.outputs import DIFFERENTIABLE, as_float64, empty_outputs, requested
from logitless.ops.row_op import ROWS, UPSTREAM, make_rows
from logitless.ops.rows import STATE

_TILES = "int tile_rows, int tile_columns, int kept_columns, ScalarType logits_dtype"


class Tiles(NamedTuple):
    """The tiling of a call: rows a product, vocabulary columns a tile, columns kept."""

    rows: int
    columns: int
    kept: int
    dtype: torch.dtype

    def spans(self, vocab: int) -> Iterator[tuple[int, int]]:
        for start in range(0, vocab, self.columns):
            yield start, min(start + self.columns, vocab)

    def chunks(self, n: int) -> Iterator[slice]:
        for start in range(0, n, self.rows):
            yield slice(start, min(start + self.rows, n))

    def scratch(self, n: int, device: torch.device) -> Tensor:
        return torch.empty(min(self.rows, n) * self.columns, dtype=self.dtype, device=device)


def _view(buffer: Tensor, offset: int, n: int, width: int) -> Tensor:
    """A contiguous [n, width] window of a flat buffer."""
    return buffer[offset : offset + n * width].view(n, width)


def _forward(hidden: Tensor, weight: Tensor, *args: Any) -> tuple[Tensor, ...]:
    *row_args, extras = args[:9]
    tiles = Tiles(*args[9:])
    rows = make_rows(*row_args, op="linear_token_stats")
    index = None if rows.mask is None else rows.mask.nonzero().squeeze(1)
    rows = rows.gather(index)
    hidden, weight = hidden.detach(), weight.detach()
    h = (hidden if index is None else hidden[index]).to(tiles.dtype)
    n, vocab = len(h), len(weight)
    kept = hidden.new_empty(len(hidden) * tiles.kept, dtype=tiles.dtype)
    state = hidden.new_empty(len(hidden), STATE, dtype=torch.float64)
    scratch = tiles.scratch(n if tiles.kept < vocab else 0, hidden.device)
    chunks = [(chunk, rows.part(chunk)) for chunk in tiles.chunks(n)]
    for start, stop in tiles.spans(vocab):
        w = weight[start:stop].to(tiles.dtype)
        for chunk, part in chunks:
            count, width = part.n, stop - start
            if stop <= tiles.kept:
                tile = _view(kept, n * start + chunk.start * width, count, width)
            else:
                tile = _view(scratch, 0, count, width)
            torch.mm(h[chunk], w.t(), out=tile)
            part.forward(tile, state[chunk], start=start, first=start == 0, extras=extras)
    out = empty_outputs(n, extras, hidden)
    rows.finish(state[:n], vocab, row_ids=index, **requested(out, extras))
    if index is not None:
        out = {name: _scatter(value, index, len(hidden), name) for name, value in out.items()}
    return (*out.values(), state, kept)


def _scatter(values: Tensor, index: Tensor, n: int, name: str) -> Tensor:
    if len(values) != len(index):
        return values
    full = values.new_full((n,), -1 if name == "argmax" else 0)
    return full.index_copy_(0, index, values)


def _forward_fake(hidden: Tensor, weight: Tensor, *args: Any) -> tuple[Tensor, ...]:
    n, extras, tiles = hidden.shape[0], args[8], Tiles(*args[9:])
    state = hidden.new_empty(n, STATE, dtype=torch.float64)
    kept = hidden.new_empty(n * tiles.kept, dtype=tiles.dtype)
    return (*empty_outputs(n, extras, hidden).values(), state, kept)


def _active(targets: Tensor, mask: Tensor | None, upstream: list[Tensor | None]) -> Tensor:
    """Indices of the rows that have any gradient at all."""
    active = torch.zeros_like(targets, dtype=torch.bool)
    for gradient in upstream:
        if gradient is not None:
            active |= gradient != 0
    if mask is not None:
        active &= mask
    return active.nonzero().squeeze(1)


class _Sum:
    """A sum of partial products into `out`: in place where dtypes agree, else through float32."""

    def __init__(self, out: Tensor, dtype: torch.dtype) -> None:
        self.out, self.started = out, False
        self.direct = out.dtype == dtype and dtype in (torch.float32, torch.float64)
        self.total = out if self.direct else None

    def add(self, a: Tensor, b: Tensor) -> None:
        if self.direct:
            # beta=0 ignores what is there, so fresh memory needs no zeros.
            torch.addmm(self.out, a, b, beta=float(self.started), out=self.out)
        elif self.total is None:
            self.total = torch.mm(a, b).float()
        else:
            self.total += torch.mm(a, b)
        self.started = True

    def finish(self) -> None:
        if not self.direct and self.total is not None:
            self.out.copy_(self.total)


def _backward_kernel(hidden: Tensor, weight: Tensor, *args: Any) -> tuple[Tensor, ...]:
    row_args, (state, kept), upstream = args[:8], args[8:10], list(args[10:13])
    tiles, needs = Tiles(*args[13:17]), args[17]
    hidden, weight = hidden.detach(), weight.detach()
    rows, n, vocab = make_rows(*row_args, op="linear_token_stats"), len(hidden), len(weight)
    index = _active(rows.targets, rows.mask, upstream)
    grads = _empty_gradients(hidden, weight, needs)
    if len(index) == 0:
        return tuple(gradient.zero_() for gradient in grads)
    # Position of each active row among the rows of the forward: how kept tiles are laid out.
    forward_rows = n if rows.mask is None else int(rows.mask.sum())
    place = index if rows.mask is None else (rows.mask.cumsum(0) - 1)[index]
    everything = len(index) == forward_rows
    h = (hidden if len(index) == n else hidden[index]).to(tiles.dtype)
    state = state[:forward_rows] if everything else state[place]
    g = dict(zip(("g_logp", "g_entropy", "g_lse"), upstream, strict=True))
    g = {name: None if value is None else value[index] for name, value in g.items()}
    rows = rows.gather(index)
    chunks = [(chunk, rows.part(chunk)) for chunk in tiles.chunks(rows.n)]
    scratch = tiles.scratch(len(index), hidden.device)
    d_hidden = grads[0] if len(index) == n else hidden.new_empty(h.shape)
    sums = [_Sum(d_hidden[chunk], tiles.dtype) for chunk, _ in chunks] if needs[0] else []
    for start, stop in tiles.spans(vocab):
        w, width = weight[start:stop].to(tiles.dtype), stop - start
        d_weight = _Sum(grads[1][start:stop], tiles.dtype) if needs[1] else None
        for i, (chunk, part) in enumerate(chunks):
            count = part.n
            if stop <= tiles.kept and everything:
                tile = _view(kept, forward_rows * start + chunk.start * width, count, width)
            else:
                tile = _view(scratch, 0, count, width)
                if stop <= tiles.kept:
                    stored = _view(kept, forward_rows * start, forward_rows, width)
                    torch.index_select(stored, 0, place[chunk], out=tile)
                else:
                    torch.mm(h[chunk], w.t(), out=tile)
            part.backward(
                tile,
                state[chunk],
                tile,
                start=start,
                **{name: None if value is None else value[chunk] for name, value in g.items()},
            )
            if needs[0]:
                sums[i].add(tile, w)
            if d_weight is not None:
                d_weight.add(tile.t(), h[chunk])
            if needs[2]:
                column_sum = tile.sum(0, dtype=grads[2].dtype)
                grads[2][start:stop] = column_sum if i == 0 else grads[2][start:stop] + column_sum
        if d_weight is not None:
            d_weight.finish()
    for total in sums:
        total.finish()
    if needs[0] and len(index) < n:
        grads[0].zero_().index_copy_(0, index, d_hidden)
    return grads


def _empty_gradients(
    hidden: Tensor, weight: Tensor, needs: tuple[bool, bool, bool]
) -> tuple[Tensor, ...]:
    """Memory for d_hidden, d_weight, d_bias; empty where no gradient is asked for."""
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    return (
        torch.empty_like(hidden) if needs[0] else hidden.new_empty(0),
        torch.empty_like(weight) if needs[1] else hidden.new_empty(0),
        hidden.new_empty(len(weight) if needs[2] else 0, dtype=wide),
    )


_backward_op = register(
    f"linear_stats_backward(Tensor hidden, Tensor weight, {ROWS}, Tensor state, Tensor(a!) kept, "
    f"{UPSTREAM}, {_TILES}, bool[] needs) -> (Tensor, Tensor, Tensor)",
    _backward_kernel,
    lambda hidden, weight, *args: _empty_gradients(hidden, weight, args[-1]),
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, mask, bias, row_scale, *rest = inputs
    ctx.chain, ctx.tiles = rest[:4], rest[5:]
    ctx.mark_non_differentiable(*output[len(DIFFERENTIABLE) :])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, weight, targets, mask, bias, row_scale, *output[-2:])


def _backward(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
    begin_backward(ctx, "linear_token_stats", reuses_memory=True)
    hidden, weight, targets, mask, bias, row_scale, state, kept = ctx.saved_tensors
    needs = [ctx.needs_input_grad[i] for i in (0, 1, 4)]
    g = [as_float64(gradient) for gradient in upstream[:3]]
    grads = _backward_op(
        hidden,
        weight,
        targets,
        mask,
        bias,
        row_scale,
        *ctx.chain,
        state,
        kept,
        *g,
        *ctx.tiles,
        needs,
    )
    d_hidden, d_weight, d_bias = (d if need else None for d, need in zip(grads, needs, strict=True))
    return (d_hidden, d_weight, None, None, d_bias, *[None] * 10)


linear_stats = register(
    f"linear_stats(Tensor hidden, Tensor weight, {ROWS}, bool extras, {_TILES})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
    setup=_setup,
    backward=_backward,
)
