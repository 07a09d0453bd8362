"""torch op over hidden x weight: statistics forward; backward by kept logits or another product.

Rows outside the mask never enter a product; rows whose upstream gradients are all zero never enter
a backward product. Of a sharded vocabulary each rank folds its own columns; their states are
gathered and merged once in the forward, and d_hidden is added up once in the backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logitless.backends import memory
from logitless.backends.rows import STATE
from logitless.ops.head.engine import Gradients, Upstream, fold, unfold
from logitless.ops.head.tiling import TILES, Sum
from logitless.ops.rows.op import N_ROWS, ROWS, UPSTREAM, make_rows
from logitless.ops.rows.outputs import DIFFERENTIABLE, as_float64, empty_outputs, requested
from logitless.ops.sharding.shard import LATE, SHARD, sum_dtype, tiling_of
from logitless.ops.torch_op import begin_backward, register


def _forward(hidden: Tensor, weight: Tensor, *args: Any) -> tuple[Tensor, ...]:
    *row_args, extras = args[: N_ROWS + 1]
    tiles, shard = tiling_of(args[N_ROWS + 1 :], hidden, weight)
    rows = make_rows(*row_args, op="linear_token_stats")
    index = None if rows.mask is None else rows.mask.nonzero().squeeze(1)
    rows = rows.gather(index)
    hidden, weight = hidden.detach(), weight.detach()
    kept = memory.buffer(tiles.padded(len(hidden)) * tiles.kept, tiles.dtype, hidden)
    state = hidden.new_empty(len(hidden), STATE, dtype=torch.float64)
    mine, local = state[: rows.n], shard.local(rows)
    fold(tiles.operand(hidden, index), weight, local, mine, tiles, kept, extras)
    shard.merge(mine, rows)
    out = empty_outputs(rows.n, extras, hidden)
    rows.finish(mine, shard.vocab(len(weight)), row_ids=index, **requested(out, extras))
    if index is not None:
        out = {name: scatter(value, index, len(hidden), name) for name, value in out.items()}
    return (*out.values(), state, kept)


def scatter(values: Tensor, index: Tensor, n: int, name: str) -> Tensor:
    if len(values) != len(index):
        return values
    full = values.new_full((n,), -1 if name == "argmax" else 0)
    return full.index_copy_(0, index, values)


def _forward_fake(hidden: Tensor, weight: Tensor, *args: Any) -> tuple[Tensor, ...]:
    n, extras, (tiles, _) = hidden.shape[0], args[N_ROWS], tiling_of(args[N_ROWS + 1 :])
    state = hidden.new_empty(n, STATE, dtype=torch.float64)
    # How many logits are kept the plan will tell.
    late = bool(tiles.plan)
    held = torch.library.get_ctx().new_dynamic_size() if late else tiles.padded(n) * tiles.kept
    kept = hidden.new_empty(held, dtype=tiles.dtype)
    return (*empty_outputs(n, extras, hidden).values(), state, kept)


def _backward_kernel(hidden: Tensor, weight: Tensor, *args: Any) -> tuple[Tensor, ...]:
    row_args, (state, kept, *g) = args[:N_ROWS], args[N_ROWS : N_ROWS + 5]
    upstream, needs = Upstream(*g), args[N_ROWS + 5]
    tiles, shard = tiling_of(args[N_ROWS + 6 :], hidden, weight)
    hidden, weight = hidden.detach(), weight.detach()
    rows, n = shard.local(make_rows(*row_args, op="linear_token_stats")), len(hidden)
    index = upstream.active(rows.targets)
    if rows.mask is not None:
        index = index[rows.mask[index]]
    grads = empty_gradients(hidden, weight, needs)
    if len(index) == 0:
        return tuple(gradient.zero_() for gradient in grads)
    # Position of each active row among the rows of the forward: how kept tiles are laid out.
    folded = n if rows.mask is None else int(rows.mask.sum())
    place = index if rows.mask is None else (rows.mask.cumsum(0) - 1)[index]
    everything = len(index) == folded
    padded = tiles.padded(len(index))
    dtype = sum_dtype(shard, hidden.dtype)
    in_place = len(index) == n == padded and dtype == hidden.dtype
    d_hidden = grads[0] if in_place else hidden.new_empty(padded, hidden.shape[1], dtype=dtype)
    unfold(
        tiles.operand(hidden, None if len(index) == n else index),
        weight,
        rows.gather(index),
        state[:folded] if everything else state[place],
        Upstream(**upstream.at(index)),
        tiles,
        kept,
        None if everything else place,
        folded,
        Gradients(
            d_hidden if needs[0] else None,
            (lambda a, b, parts: Sum(grads[1][a:b], single=parts == 1)) if needs[1] else None,
            grads[2].zero_() if needs[2] else None,
        ),
    )
    if needs[0]:
        own = d_hidden[: len(index)]
        shard.reduce(own)
        if not in_place:
            grads[0].zero_().index_copy_(0, index, own.to(hidden.dtype))
    return grads


def empty_gradients(
    hidden: Tensor, weight: Tensor, needs: tuple[bool, bool, bool]
) -> tuple[Tensor, ...]:
    """Memory for d_hidden, d_weight, d_bias; empty where no gradient is asked for."""
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    return (
        torch.empty_like(hidden) if needs[0] else hidden.new_empty(0),
        memory.buffer_like(weight) if needs[1] else hidden.new_empty(0),
        hidden.new_empty(len(weight) if needs[2] else 0, dtype=wide),
    )


_backward_op = register(
    f"linear_stats_backward(Tensor hidden, Tensor weight, {ROWS}, Tensor state, Tensor(a!) kept, "
    f"{UPSTREAM}, bool[] needs, {TILES}, {SHARD}, {LATE}) -> (Tensor, Tensor, Tensor)",
    _backward_kernel,
    lambda hidden, weight, *args: empty_gradients(hidden, weight, args[N_ROWS + 5]),
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
        hidden, weight, targets, mask, bias, row_scale, *ctx.chain, state, kept, *g, needs,
        *ctx.tiles,
    )  # fmt: skip
    d_hidden, d_weight, d_bias = (d if need else None for d, need in zip(grads, needs, strict=True))
    return (d_hidden, d_weight, None, None, d_bias, *[None] * 14)


linear_stats = register(
    f"linear_stats(Tensor hidden, Tensor weight, {ROWS}, bool extras, {TILES}, {SHARD}, {LATE})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
    setup=_setup,
    backward=_backward,
)
