"""torch op over hidden x weight with tail_mass > 0: statistics, and a backward of kept entries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logitless.backends.rows import STATE
from logitless.inputs.options import DROPPED
from logitless.ops.head.engine import Upstream
from logitless.ops.head.sparse import Support
from logitless.ops.head.stats_op import empty_gradients, scatter
from logitless.ops.head.support_passes import (
    Folded,
    fold_support,
    folded_rows,
    measure,
    split,
    unfold_support,
    weight_gradient,
)
from logitless.ops.head.tiling import TILES
from logitless.ops.rows.op import N_ROWS, ROWS, UPSTREAM, make_rows
from logitless.ops.rows.outputs import DIFFERENTIABLE, as_float64, empty_outputs, requested
from logitless.ops.sharding.shard import LATE, SHARD, tiling_of
from logitless.ops.torch_op import begin_backward, register

OP = "linear_token_stats"
# What the op returns after the statistics.
SAVED = 1 + len(Support._fields)


def _forward(hidden: Tensor, weight: Tensor, *args: Any) -> tuple[Tensor, ...]:
    *row_args, extras, tail_mass = args[: N_ROWS + 2]
    tiles, shard = tiling_of(args[N_ROWS + 2 :], hidden, weight)
    rows = make_rows(*row_args, op=OP)
    index = None if rows.mask is None else rows.mask.nonzero().squeeze(1)
    hidden, weight = hidden.detach(), weight.detach()
    folded = folded_rows(rows, index, hidden, shard)
    fold_support(hidden, weight, folded, tiles, tail_mass, extras)
    n, vocab = folded.rows.n, shard.vocab(len(weight))
    out = empty_outputs(n, extras, hidden)
    folded.rows.finish(folded.state[:n], vocab, row_ids=index, **requested(out, extras))
    measure(folded, vocab, tail_mass, tiles.dtype)
    wide = out["logp"].dtype
    for name, value in zip(DROPPED, folded.support[-2:], strict=True):
        out[name] = torch.empty(n, dtype=wide).copy_(value[:n])
    if index is not None:
        out = {name: scatter(value, index, len(hidden), name) for name, value in out.items()}
    return (*out.values(), folded.state, *folded.support)


def _forward_fake(hidden: Tensor, weight: Tensor, *args: Any) -> tuple[Tensor, ...]:
    n, extras = hidden.shape[0], args[N_ROWS]
    state = hidden.new_empty(n, STATE, dtype=torch.float64)
    out = empty_outputs(n, extras, hidden)
    dropped = (torch.empty_like(out["logp"]) for _ in range(2))
    return (*out.values(), *dropped, state, *Support.empty(n))


def _backward_kernel(hidden: Tensor, weight: Tensor, *args: Any) -> tuple[Tensor, ...]:
    row_args, state, rest = args[:N_ROWS], args[N_ROWS], args[N_ROWS + 1 :]
    support, rest = Support(*rest[: SAVED - 1]), rest[SAVED - 1 :]
    g, (tail_mass, needs) = Upstream(*rest[:3]), rest[3:5]
    tiles, shard = tiling_of(rest[5:], hidden, weight)
    hidden, weight = hidden.detach(), weight.detach()
    rows = make_rows(*row_args, op=OP)
    index = None if rows.mask is None else rows.mask.nonzero().squeeze(1)
    folded = Folded(rows.gather(index), index, state, support, shard)
    if index is not None:
        g = Upstream(**g.at(index))
    served = split(folded, g, tail_mass)
    grads = (
        hidden.new_zeros(hidden.shape if needs[0] else 0),
        weight_gradient(weight, weight.dtype, served) if needs[1] else hidden.new_empty(0),
        empty_gradients(hidden, weight, (False, False, needs[2]))[2].zero_(),
    )
    unfold_support(hidden, weight, folded, g, served, tiles, tail_mass, needs, grads)
    return grads


SUPPORT = "Tensor y, Tensor ids, Tensor floor, Tensor kept, Tensor mass, Tensor entropy"

_backward_op = register(
    f"linear_support_backward(Tensor hidden, Tensor weight, {ROWS}, Tensor state, {SUPPORT}, "
    f"{UPSTREAM}, float tail_mass, bool[] needs, {TILES}, {SHARD}, {LATE}) -> "
    "(Tensor, Tensor, Tensor)",
    _backward_kernel,
    lambda hidden, weight, *args: empty_gradients(hidden, weight, args[N_ROWS + SAVED + 4]),
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, mask, bias, row_scale, *rest = inputs
    ctx.chain, ctx.tail_mass, ctx.tiles = rest[:4], rest[5], rest[6:]
    ctx.mark_non_differentiable(*output[len(DIFFERENTIABLE) :])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, weight, targets, mask, bias, row_scale, *output[-SAVED:])


def _backward(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
    begin_backward(ctx, OP, reuses_memory=False)
    hidden, weight, targets, mask, bias, row_scale, *saved = ctx.saved_tensors
    needs = [ctx.needs_input_grad[i] for i in (0, 1, 4)]
    g = [as_float64(gradient) for gradient in upstream[:3]]
    grads = _backward_op(
        hidden, weight, targets, mask, bias, row_scale, *ctx.chain, *saved, *g, ctx.tail_mass,
        needs, *ctx.tiles,
    )  # fmt: skip
    d_hidden, d_weight, d_bias = (d if need else None for d, need in zip(grads, needs, strict=True))
    return (d_hidden, d_weight, None, None, d_bias, *[None] * 15)


linear_support_stats = register(
    f"linear_support_stats(Tensor hidden, Tensor weight, {ROWS}, bool extras, float tail_mass, "
    f"{TILES}, {SHARD}, {LATE}) -> (" + ", ".join(["Tensor"] * (9 + SAVED)) + ")",
    _forward,
    _forward_fake,
    setup=_setup,
    backward=_backward,
)
